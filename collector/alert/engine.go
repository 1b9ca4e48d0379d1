package alert

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// Judge is asked about the flows that alerts are about.
type Judge interface {
	// Explain says why the policies decide as they do about a flow, and which
	// rule came closest to allowing it; empty where there is nothing to say.
	Explain(f *flow.Flow) (explanation, nearest string)
	// DeniedAt reports whether the policies of another time denied it too.
	DeniedAt(f *flow.Flow, at time.Time) bool
}

// Engine evaluates rules. It belongs to one goroutine at a time.
type Engine struct {
	config   *Config
	judge    Judge
	rules    []*compiled
	table    [verdictCount][assessmentCount][kindCount]candidates
	memory   *memory
	nodes    *nodes
	changes  []Change
	silences []Silence
	acks     map[string]Acknowledgment
	pairs    map[flow.Pair]report
	// looked holds edges that memory was asked about: flows share their
	// endpoints, so that this costs a tenth of hashing their names.
	looked map[lookedKey]struct{}
	// ended are alerts whose rules are gone: told once.
	ended  []*group
	counts Stats
	ticked time.Time
	awake  bool // an event may have made an alert pending since then
}

// candidates are the rules that could be about flows of one kind.
type candidates struct {
	rules   []*compiled
	onlyNew bool // all of them ask for new edges
}

type lookedKey struct {
	from, to *flow.Endpoint
	src, dst netip.Addr // src unless it is a pod's
	port     uint16
	protocol flow.Protocol
}

// maxLooked bounds the endpoints that are kept alive.
const maxLooked = 1 << 15

// report is the last report of refused connections.
type report struct {
	node string
	end  time.Time
}

// Stats counts for metrics.
type Stats struct {
	Firing  map[RuleSeverity]int // 0 of a rule of which no alert fires
	Pending int
	Fired   uint64 // since the start
	// Overflow counts events of groups that a rule had no room for.
	Overflow uint64
	// Full says that more edges are known than can be remembered, so that new
	// ones are missed.
	Full bool
}

// RuleSeverity is what firing alerts are counted by.
type RuleSeverity struct{ Rule, Severity string }

const (
	// maxPairs bounds what is remembered of reports.
	maxPairs = 1 << 16
	// reportSlack is how far two nodes' reports of a connection may lie apart.
	reportSlack = 15 * time.Second
	// maxGroups is how many groups a rule may have.
	maxGroups = 10_000
)

// NewEngine returns an engine that knows nothing yet.
func NewEngine(c *Config, j Judge) *Engine {
	e := &Engine{
		judge: j, memory: newMemory(), nodes: newNodes(), acks: make(map[string]Acknowledgment), pairs: make(map[flow.Pair]report),
		looked: make(map[lookedKey]struct{}),
	}
	e.Configure(c)
	return e
}

// Configure changes the rules. Alerts of rules that stay go on; those of rules
// that are gone resolve.
func (e *Engine) Configure(c *Config) {
	before := make(map[string]*compiled)
	for _, r := range e.rules {
		before[r.Name] = r
	}
	e.config, e.rules = c, nil
	clear(e.looked)
	e.table = [verdictCount][assessmentCount][kindCount]candidates{}
	for _, rule := range c.Rules {
		r, err := compile(rule)
		if err != nil {
			continue // Parse leaves no such rule
		}
		if old := before[r.Name]; old != nil && old.by == r.by && (old.Count == nil) == (r.Count == nil) && (r.Count == nil || *old.Count == *r.Count) {
			r.groups = old.groups
			delete(before, r.Name)
		}
		e.rules = append(e.rules, r)
		if r.Coverage == nil {
			e.enter(r)
		}
	}
	for _, r := range before {
		for _, g := range r.groups {
			if g.alert.State == Firing {
				e.ended = append(e.ended, g)
			}
		}
	}
}

// enter puts a rule where flows that it could be about are looked up.
func (e *Engine) enter(r *compiled) {
	for v := range verdictCount {
		for a := range assessmentCount {
			for k := range kindCount {
				if r.match.could(flow.Verdict(v), flow.Assessment(a), flow.EndpointKind(k)) {
					c := &e.table[v][a][k]
					c.onlyNew = r.New == "edge" && (c.onlyNew || len(c.rules) == 0) && !refused(flow.Verdict(v), flow.Assessment(a))
					c.rules = append(c.rules, r)
				}
			}
		}
	}
}

// of gives the rules that could be about a flow; nil if there are none.
func (e *Engine) of(f *flow.Flow) *candidates {
	v, a, k := int(f.Verdict), int(f.Assessment), int(kindOf(f.Destination))
	if v >= verdictCount || a >= assessmentCount || k >= kindCount || len(e.table[v][a][k].rules) == 0 {
		return nil
	}
	return &e.table[v][a][k]
}

// Observe takes in flows that were named and judged. They are not kept.
func (e *Engine) Observe(now time.Time, flows []flow.Flow) {
	e.nodes.now = now
	for i := range flows {
		f := &flows[i]
		c := e.of(f)
		if c == nil || c.onlyNew && e.lookedAt(f) {
			continue
		}
		e.take(now, f, c)
	}
}

// lookedAt reports whether memory was asked about the same ends lately: then
// it knows the edge.
func (e *Engine) lookedAt(f *flow.Flow) bool {
	k := lookedKey{from: f.Source, to: f.Destination, dst: f.Dst, port: f.Port, protocol: f.Protocol}
	if kindOf(f.Source) != flow.EndpointPod {
		k.src = f.Src
	}
	if _, known := e.looked[k]; known {
		return true
	}
	if len(e.looked) >= maxLooked {
		clear(e.looked)
	}
	e.looked[k] = struct{}{}
	return false
}

// Sift gives the flows that rules could be about, for an engine elsewhere;
// edges that it has given before it leaves out where rules ask for new ones only.
func (e *Engine) Sift(flows []flow.Flow) []flow.Flow {
	var out []flow.Flow
	for i := range flows {
		f := &flows[i]
		c := e.of(f)
		if c == nil || c.onlyNew && (e.lookedAt(f) || !e.memory.see(e.hashOf(f))) {
			continue
		}
		out = append(out, *f)
	}
	return out
}

func (e *Engine) hashOf(f *flow.Flow) uint64 {
	return e.memory.hash(edgeHash{f.Cluster, keyOf(f.Src, f.Source).wide(), keyOf(f.Dst, f.Destination).wide(), f.Protocol, f.Port})
}

// event is a flow as rules see it.
type event struct {
	*flow.Flow
	from, to endKey
	at       time.Time // when it was, never in the future
	refused  bool
	isNew    bool    // the edge was never seen, or never refused, before
	denial   *denial // of a refusal
	count    uint64  // connections that were not counted yet
}

func (e *Engine) take(now time.Time, f *flow.Flow, c *candidates) {
	ev := event{Flow: f, at: f.End, refused: refused(f.Verdict, f.Assessment)}
	if ev.at.After(now) {
		ev.at = now
	}
	if h := e.hashOf(f); ev.refused {
		ev.denial, ev.isNew = e.memory.deny(h, f.Start.UnixMilli(), f.End.UnixMilli())
		ev.count = e.uncounted(f)
	} else {
		if ev.isNew = e.memory.see(h); !ev.isNew && c.onlyNew {
			return
		}
		ev.count = f.Connections
	}
	ev.from, ev.to = keyOf(f.Src, f.Source), keyOf(f.Dst, f.Destination)
	if _, known := e.memory.workloads[workloadKey{f.Cluster, ev.from}]; !known && ev.from.Kind == flow.EndpointPod {
		e.memory.workloads[workloadKey{f.Cluster, ev.from}] = e.nodes.watchedBefore(f.Start)
	}
	for _, r := range c.rules {
		if r.takes(f) {
			e.hit(r, now, &ev)
		}
	}
}

// uncounted is how many refused connections a report has that another node's
// report did not have.
func (e *Engine) uncounted(f *flow.Flow) uint64 {
	if len(e.pairs) >= maxPairs {
		clear(e.pairs)
	}
	p := f.Pair()
	last, known := e.pairs[p]
	if known && last.node != f.Node && f.Start.Sub(last.end).Abs() <= reportSlack {
		return 0
	}
	e.pairs[p] = report{f.Node, f.End}
	return f.Connections
}

// hit is called with each flow that a rule is about.
func (e *Engine) hit(r *compiled, now time.Time, ev *event) {
	e.awake = true
	if r.New == "edge" && (ev.refused || !ev.isNew || vague(ev.from) || vague(ev.to) || !e.learned(r, ev.Cluster, ev.from)) {
		return
	}
	if r.New == "denial" && (!ev.refused || !e.learned(r, ev.Cluster, ev.from)) {
		return
	}
	key := groupKey{Cluster: ev.Cluster}
	if r.by.source {
		key.From = ev.from
	}
	if r.by.destination {
		key.To = ev.to
	}
	if r.by.port {
		key.Protocol, key.Port = ev.Protocol, ev.Port
	}
	if r.by.node {
		key.Node = ev.Node
	}
	switch {
	case r.by.change:
		e.hitChanges(r, now, ev, key)
	case r.by.policy:
		for i, p := range ev.Policies {
			if key.Policy = (policyKey{p.Kind, p.Namespace, p.Name}); i == 0 || key.Policy != (policyKey{ev.Policies[i-1].Kind, ev.Policies[i-1].Namespace, ev.Policies[i-1].Name}) {
				e.group(r, key).take(r, now, ev)
			}
		}
	case r.New == "denial" && !ev.isNew:
		// What goes on is not new, but it is still the same trouble.
		if g := r.groups[key]; g != nil && (g.alert.State == Firing || g.alert.State == Pending) {
			g.take(r, now, ev)
		}
	default:
		e.group(r, key).take(r, now, ev)
	}
}

// vague ends are nobody's edge.
func vague(k endKey) bool {
	return k.Kind == flow.EndpointUnknown || k.Kind == flow.EndpointAmbiguous
}

// group finds or makes a group. Where a rule has too many, one more stands for
// all others, unless they are counted: then their sum means nothing.
func (e *Engine) group(r *compiled, key groupKey) *group {
	g := r.groups[key]
	if g != nil {
		return g
	}
	if len(r.groups) >= maxGroups {
		e.counts.Overflow++
		if r.Count != nil {
			return newGroup(r, key) // and forgotten
		}
		key = groupKey{Cluster: key.Cluster, More: true}
		if g = r.groups[key]; g != nil {
			return g
		}
	}
	g = newGroup(r, key)
	r.groups[key] = g
	return g
}

// item is what a rule counts of an event.
func (e *event) item(of string) uint64 {
	switch of {
	case "ports":
		return uint64(e.Port) | uint64(e.Protocol)<<16
	case "addresses":
		if !e.Dst.IsValid() {
			return e.item("workloads") // only names are known
		}
		b := e.Dst.As16()
		return binary.BigEndian.Uint64(b[:8])*1099511628211 ^ binary.BigEndian.Uint64(b[8:])
	case "workloads":
		var h uint64 = 14695981039346656037
		for _, part := range []string{e.to.Namespace, e.to.Workload.Kind, e.to.Workload.Name, e.to.Node} {
			for i := range len(part) {
				h = (h ^ uint64(part[i])) * 1099511628211
			}
			h = (h ^ '/') * 1099511628211
		}
		return h
	}
	return 0
}

// Changed takes in a change of the cluster.
func (e *Engine) Changed(c *flow.Change) {
	if c.Kind != flow.ChangePolicy && c.Kind != flow.ChangeNamespace {
		return
	}
	e.changes = append(e.changes, Change{c.Time, c.Kind.String(), c.Namespace, c.Name, c.Author, c.Deleted})
	if n := len(e.changes); n > maxChanges {
		e.changes = append(e.changes[:0], e.changes[n-maxChanges/2:]...)
	}
}

// maxChanges bounds the changes that a denial may be explained by.
const maxChanges = 1024

// hitChanges finds the change that a refusal began after: the newest one
// before the first refusal of its run, if the policies from before it did not deny.
func (e *Engine) hitChanges(r *compiled, now time.Time, ev *event, key groupKey) {
	if ev.denial == nil {
		return
	}
	began := time.UnixMilli(ev.denial.began)
	for i := len(e.changes) - 1; i >= 0; i-- {
		c := &e.changes[i]
		since := began.Sub(c.Time)
		if since > time.Duration(r.AfterChange) {
			return
		}
		if since < -clockSlack || !c.concerns(ev.Flow) {
			continue
		}
		key.Policy, key.Changed = policyKey{c.Kind, c.Namespace, c.Name}, c.Time.UnixMilli()
		g := r.groups[key]
		if g == nil {
			if e.judge.DeniedAt(ev.Flow, c.Time.Add(-time.Millisecond)) {
				return // it was denied before, and nobody tried
			}
			g = e.group(r, key)
			g.alert.Change = c
		}
		g.take(r, now, ev)
		return
	}
}

// clockSlack is how far a node's clock may be behind.
const clockSlack = time.Second

// concerns reports whether a change may be why a flow is refused: one of a
// policy that decides, one that is gone from the namespace of either end, or
// one of a namespace's labels.
func (c *Change) concerns(f *flow.Flow) bool {
	if c.Kind == flow.ChangeNamespace.String() {
		return f.Source != nil && f.Source.Namespace == c.Name || f.Destination != nil && f.Destination.Namespace == c.Name
	}
	for _, p := range f.Policies {
		if p.Namespace == c.Namespace && (p.Name == c.Name || c.Deleted) {
			return true
		}
	}
	return false
}
