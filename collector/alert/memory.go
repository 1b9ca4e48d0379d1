package alert

import (
	"hash/maphash"
	"slices"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// memory knows which edges were ever seen, as far as rules ask for new ones.
type memory struct {
	seed    maphash.Seed
	edges   map[uint64]struct{}
	denials map[uint64]*denial
	// workloads holds how much had been watched when a workload was first seen.
	workloads map[workloadKey]time.Duration
	full      bool
}

// denial is an edge that was refused.
type denial struct {
	began, last int64 // of the present run, in Unix milliseconds
}

// runGap ends a run of refusals: what begins after it begins anew.
const runGap = int64(time.Hour / time.Millisecond)

// maxKnown bounds what is remembered. Where there is more, what is not known
// is taken for known: an alert that is missing is said, a flood of wrong ones helps nobody.
const maxKnown = 8 << 20

type edgeHash struct {
	cluster  string
	from, to endKey
	protocol flow.Protocol
	port     uint16
}

type workloadKey struct {
	cluster string
	from    endKey
}

func newMemory() *memory {
	return &memory{
		seed: maphash.MakeSeed(), edges: make(map[uint64]struct{}), denials: make(map[uint64]*denial), workloads: make(map[workloadKey]time.Duration),
	}
}

func (m *memory) hash(k edgeHash) uint64 { return maphash.Comparable(m.seed, k) }

// see reports whether an edge is new, and remembers it.
func (m *memory) see(h uint64) bool {
	if _, known := m.edges[h]; known {
		return false
	}
	if len(m.edges) >= maxKnown {
		m.full = true
		return false
	}
	m.edges[h] = struct{}{}
	return true
}

// deny remembers a refusal from first to last. It reports whether the edge was
// never refused before.
func (m *memory) deny(h uint64, first, last int64) (d *denial, isNew bool) {
	d = m.denials[h]
	switch {
	case d == nil && len(m.denials) >= maxKnown:
		m.full = true
		return &denial{}, false
	case d == nil:
		d = &denial{began: first, last: last}
		m.denials[h] = d
		return d, true
	case first-d.last > runGap:
		d.began = first
	}
	d.last = max(d.last, last)
	return d, false
}

// Learn takes in an edge that was recorded before. What is learned is not new.
func (e *Engine) Learn(edge *flow.Edge) {
	from, to := edgeEndKey(&edge.Source), edgeEndKey(&edge.Destination)
	h := e.memory.hash(edgeHash{edge.Cluster, from.wide(), to.wide(), edge.Protocol, edge.Port})
	if refused(edge.Verdict, edge.Assessment) {
		e.memory.deny(h, edge.First.UnixMilli(), edge.Last.UnixMilli())
	} else {
		e.memory.see(h)
	}
	if from.Kind == flow.EndpointPod {
		e.firstSeen(edge.Cluster, from, edge.First)
	}
}

// firstSeen notes how much had been watched when a workload was first seen.
func (e *Engine) firstSeen(cluster string, from endKey, at time.Time) {
	k := workloadKey{cluster, from}
	watched := e.nodes.watchedBefore(at)
	if before, known := e.memory.workloads[k]; !known || watched < before {
		e.memory.workloads[k] = watched
	}
}

// learned reports whether enough was watched for a new edge to mean something.
func (e *Engine) learned(r *compiled, cluster string, from endKey) bool {
	watched := e.nodes.watched()
	if r.LearnBy == "workload" {
		first, known := e.memory.workloads[workloadKey{cluster, from}]
		if !known {
			return r.Learning == 0
		}
		watched -= first
	}
	return watched >= time.Duration(r.Learning)
}

// nodes knows of each node how much of it was watched.
type nodes struct {
	known  map[string]*node
	oldest time.Time // since when anything was watched
	median time.Duration
	stale  bool
	// share, if set, is how much of the time since oldest was watched.
	share float64
	now   time.Time
}

// node is a node's coverage.
type node struct {
	covered time.Duration
	cluster string
	heard   time.Time // zero until it has reported to this engine
	gone    bool      // it is no longer part of the cluster
}

func newNodes() *nodes { return &nodes{known: make(map[string]*node)} }

func (n *nodes) of(name string) *node {
	known := n.known[name]
	if known == nil {
		known = &node{}
		n.known[name] = known
	}
	return known
}

// cover adds what a node watched.
func (n *nodes) cover(name string, start, end time.Time) {
	if !end.After(start) {
		return
	}
	n.of(name).covered += end.Sub(start)
	n.stale = true
	if n.oldest.IsZero() || start.Before(n.oldest) {
		n.oldest = start
	}
}

// watched is how much the cluster was watched: what half of its nodes were at
// least, so that neither one old node nor one new one decides.
func (n *nodes) watched() time.Duration {
	if n.share > 0 {
		return time.Duration(float64(n.now.Sub(n.oldest)) * n.share)
	}
	if n.stale {
		n.stale = false
		all := make([]time.Duration, 0, len(n.known))
		for _, known := range n.known {
			if !known.gone {
				all = append(all, known.covered)
			}
		}
		slices.Sort(all)
		n.median = 0
		if len(all) > 0 {
			n.median = all[(len(all)-1)/2]
		}
	}
	return n.median
}

// watchedBefore is how much of it lies before a moment, as if it were spread evenly.
func (n *nodes) watchedBefore(at time.Time) time.Duration {
	all := n.now.Sub(n.oldest)
	if n.oldest.IsZero() || all <= 0 || !at.After(n.oldest) {
		return 0
	}
	return time.Duration(float64(n.watched()) * min(1, at.Sub(n.oldest).Seconds()/all.Seconds()))
}

// Covered takes in how much was watched before this engine began.
func (e *Engine) Covered(c flow.Coverage, now time.Time) {
	e.nodes.now = now
	for _, known := range c.Nodes {
		e.nodes.of(known.Node).covered += known.Covered
		e.nodes.stale = true
	}
	if e.nodes.oldest.IsZero() || c.Since.Before(e.nodes.oldest) {
		e.nodes.oldest = c.Since
	}
}

// Forget forgets the past, so that it can be learned anew. Alerts go on.
func (e *Engine) Forget() {
	e.memory = newMemory()
	clear(e.looked)
	for _, n := range e.nodes.known {
		n.covered = 0
	}
	e.nodes.oldest, e.nodes.stale, e.changes = time.Time{}, true, nil
}

// Reset forgets everything but the rules: another engine goes on with the alerts.
func (e *Engine) Reset() {
	for _, r := range e.rules {
		clear(r.groups)
	}
	e.ended, e.nodes = nil, newNodes()
	clear(e.pairs)
	e.Forget()
}
