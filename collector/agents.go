package collector

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// agents remembers what each agent last said about itself.
type agents struct {
	mu    sync.Mutex
	known map[agentKey]*agentRecord
	of    map[nodeOf][]agentKey // those that reported for a node first
}

// agentRecord is one agent as the collector knows it.
type agentRecord struct {
	node, instance string
	home           nodeOf // what it reported for first
	scope          flow.Scope
	status         flow.AgentStatus
	lastSeen       time.Time
	gaps           []flow.Gap // of the last hour
	flowRate       rate
	observations   rate
}

const (
	gapMemory   = time.Hour
	agentMemory = 24 * time.Hour
	maxAgentGap = 1000
	// maxInstances bounds those of one node: it may have been made anew, or lie.
	maxInstances = 16
)

func newAgents() *agents {
	return &agents{known: make(map[agentKey]*agentRecord), of: make(map[nodeOf][]agentKey)}
}

// agentKey tells agents apart: instances are unique in one cluster only.
type agentKey struct{ cluster, instance string }

func keyOfAgent(b *flow.Batch) agentKey { return agentKey{b.Key.Cluster, b.Key.Instance} }

// heard takes in what a batch says about its agent, stored or not.
func (a *agents) heard(b *flow.Batch) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.known[keyOfAgent(b)]
	if r == nil {
		r = &agentRecord{instance: b.Key.Instance, home: nodeOf{b.Key.Cluster, b.Node}}
		a.add(keyOfAgent(b), r)
	}
	r.lastSeen = time.Now()
	if older(&b.Agent, &r.status) {
		return // it had to wait: what came before it says more
	}
	if !r.status.Started.Equal(b.Agent.Started) {
		r.observations = rate{}
	}
	r.node, r.scope, r.status = b.Node, b.Scope, b.Agent
}

// add remembers an agent, in place of the one of its node that was silent for
// the longest time if there are too many.
func (a *agents) add(key agentKey, r *agentRecord) {
	if keys := a.of[r.home]; len(keys) >= maxInstances {
		a.forget(slices.MinFunc(keys, func(x, y agentKey) int { return a.known[x].lastSeen.Compare(a.known[y].lastSeen) }))
	}
	a.known[key] = r
	a.of[r.home] = append(a.of[r.home], key)
}

func (a *agents) forget(key agentKey) {
	home := a.known[key].home
	delete(a.known, key)
	if a.of[home] = slices.DeleteFunc(a.of[home], func(k agentKey) bool { return k == key }); len(a.of[home]) == 0 {
		delete(a.of, home)
	}
}

// older reports whether an agent said a before b.
func older(a, b *flow.AgentStatus) bool {
	if !a.Started.Equal(b.Started) {
		return a.Started.Before(b.Started)
	}
	return a.Observations < b.Observations
}

// stored counts what a batch has brought; what is sent again counts once.
func (a *agents) stored(b *flow.Batch) {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.known[keyOfAgent(b)]
	if r == nil {
		return // not seen for a day, and forgotten
	}
	r.flowRate.add(now, float64(len(b.Flows)))
	if !older(&b.Agent, &r.status) {
		r.observations.total(now, float64(b.Agent.Observations))
	}
	r.gaps = append(r.gaps, b.Gaps...)
	if n := len(r.gaps); n > maxAgentGap {
		r.gaps = r.gaps[n-maxAgentGap:]
	}
}

// list gives a copy of all records by node, and forgets agents not seen for a day.
func (a *agents) list() []agentRecord {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []agentRecord
	for key, r := range a.known {
		if now.Sub(r.lastSeen) > agentMemory {
			a.forget(key)
			continue
		}
		// Also of an agent that is silent: old losses end, whoever reports.
		r.gaps = slices.DeleteFunc(r.gaps, func(g flow.Gap) bool { return now.Sub(g.End) > gapMemory })
		c := *r
		c.gaps = slices.Clone(r.gaps)
		out = append(out, c)
	}
	slices.SortFunc(out, func(x, y agentRecord) int {
		return cmp.Or(cmp.Compare(x.node, y.node), cmp.Compare(x.instance, y.instance))
	})
	return out
}

// rate is events a second over the last half minute or so.
type rate struct {
	since time.Time
	count float64
	last  float64
	value float64
	begun bool
}

const rateSpan = 30 * time.Second

// add counts n events at a time.
func (r *rate) add(now time.Time, n float64) {
	if !r.begun {
		// What came first was gathered before there was a time to divide by.
		r.begun, r.since = true, now
		return
	}
	r.count += n
	if d := now.Sub(r.since); d >= time.Second {
		r.value = r.count / d.Seconds()
		if d >= rateSpan {
			r.since, r.count = now, 0
		}
	}
}

// total takes a counter that only grows.
func (r *rate) total(now time.Time, v float64) {
	r.add(now, max(0, v-r.last))
	r.last = v
}
