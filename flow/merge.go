package flow

import (
	"cmp"
	"slices"
	"time"
)

// Merge joins what two nodes report of the same connections, so that a
// connection between nodes is one flow: reports of one Pair whose windows
// touch, from different nodes, become one. A denial absorbs the other node's
// unanswered report, and counts are the larger side's, never the sum. Allowed
// and denied connections of one pair are different connections and stay apart.
// The result is ordered by Start; slack is the window that the nodes report by.
func Merge(reports []Flow, slack time.Duration) []Flow {
	slices.SortStableFunc(reports, func(a, b Flow) int { return a.Start.Compare(b.Start) })
	out := make([]Flow, 0, len(reports))
	m := NewMerger(slack, func(f Flow) bool { out = append(out, f); return true })
	for _, f := range reports {
		m.Add(f)
	}
	m.Close()
	return out
}

// Merger is Merge for more reports than fit in memory. They come ordered by
// Start, and so do the flows that it gives.
type Merger struct {
	slack time.Duration
	yield func(Flow) bool
	queue []*merged          // not given yet, by Start
	open  map[Pair][]*merged // those of them that a report may still join
	done  bool
}

// NewMerger gives flows to yield, until that returns false.
func NewMerger(slack time.Duration, yield func(Flow) bool) *Merger {
	return &Merger{slack: slack, yield: yield, open: make(map[Pair][]*merged)}
}

// Add takes a report in. It returns false when no more are wanted.
func (m *Merger) Add(f Flow) bool {
	m.give(f.Start)
	if m.done {
		return false
	}
	pair := f.Pair()
	if j := joinable(m.open[pair], &f, m.slack); j != nil {
		j.add(&f)
		return true
	}
	n := &merged{flow: f, pair: pair, start: f.Start, sides: []side{sideOf(&f)}}
	m.queue = append(m.queue, n)
	m.open[pair] = append(m.open[pair], n)
	return true
}

// Close gives what is left.
func (m *Merger) Close() {
	for _, n := range m.queue {
		if m.done {
			return
		}
		m.done = !m.yield(n.flow)
	}
	m.queue = nil
}

// give hands out what no report from now on can join.
func (m *Merger) give(now time.Time) {
	for len(m.queue) > 0 && !m.done && now.Sub(m.queue[0].start) > m.slack {
		n := m.queue[0]
		m.queue = m.queue[1:]
		if rest := slices.DeleteFunc(m.open[n.pair], func(o *merged) bool { return o == n }); len(rest) > 0 {
			m.open[n.pair] = rest
		} else {
			delete(m.open, n.pair)
		}
		m.done = !m.yield(n.flow)
	}
}

// merged is a flow that reports may still join.
type merged struct {
	flow  Flow
	pair  Pair
	start time.Time // of the first report
	sides []side
}

// side is what one node reports of a merged flow.
type side struct {
	node           string
	connections    uint64
	sent, received Counters
	counted        bool
}

func sideOf(f *Flow) side {
	return side{f.Node, f.Connections, f.Sent, f.Received, f.Counted}
}

func joinable(candidates []*merged, f *Flow, slack time.Duration) *merged {
	for _, m := range candidates {
		if f.Start.Sub(m.start) <= slack && m.flow.Cluster == f.Cluster && m.takes(f) && SameConnections(m.flow.Verdict, f.Verdict) {
			return m
		}
	}
	return nil
}

// takes reports whether f's node has not reported this flow yet, or only goes
// on with it: the nodes read their counters at different moments, and what one
// tells in this window the other may tell in the next.
func (m *merged) takes(f *Flow) bool {
	return m.side(f.Node) == nil || f.Connections == 0 && len(m.sides) > 1
}

func (m *merged) side(node string) *side {
	for i := range m.sides {
		if m.sides[i].node == node {
			return &m.sides[i]
		}
	}
	return nil
}

// SameConnections reports whether two nodes may have given these two verdicts
// to the same connections.
func SameConnections(a, b Verdict) bool {
	weak := func(v Verdict) bool { return v == VerdictUnanswered || v == VerdictUnknown }
	return a == b || weak(a) || weak(b)
}

// rank orders verdicts by the weight of their evidence.
func rank(v Verdict) int {
	switch v {
	case VerdictDenied:
		return 3
	case VerdictAllowed:
		return 2
	case VerdictUnanswered:
		return 1
	}
	return 0
}

func (m *merged) add(f *Flow) {
	a := &m.flow
	decides, other := *a, *f
	if rank(f.Verdict) > rank(a.Verdict) {
		decides, other = *f, *a
	}
	// The client's side knows the original source and the Service.
	if other.TranslatedSrc.IsValid() && !decides.TranslatedSrc.IsValid() {
		decides.Src, decides.TranslatedSrc, decides.Source = other.Src, other.TranslatedSrc, other.Source
	}
	decides.Service = cmp.Or(decides.Service, other.Service)
	decides.Source = cmp.Or(decides.Source, other.Source)
	decides.Destination = cmp.Or(decides.Destination, other.Destination)
	decides.SourcePort = cmp.Or(decides.SourcePort, other.SourcePort)
	if other.Start.Before(decides.Start) {
		decides.Start = other.Start
	}
	if other.End.After(decides.End) {
		decides.End = other.End
	}
	decides.TCPFlags |= other.TCPFlags
	decides.Sources |= other.Sources
	if len(decides.Policies) == 0 {
		decides.Policies = other.Policies
	}
	m.flow = decides
	m.count(f)
}

// count adds to the node's side. The flow has the larger side's counts.
func (m *merged) count(f *Flow) {
	if s := m.side(f.Node); s != nil {
		s.connections += f.Connections
		s.sent.add(f.Sent)
		s.received.add(f.Received)
		s.counted = s.counted || f.Counted
	} else {
		m.sides = append(m.sides, sideOf(f))
	}
	largest := m.sides[0]
	m.flow.Connections = 0
	for _, s := range m.sides {
		m.flow.Connections = max(m.flow.Connections, s.connections)
		if s.counted && (!largest.counted || s.bytes() > largest.bytes()) {
			largest = s
		}
	}
	m.flow.Sent, m.flow.Received, m.flow.Counted = largest.sent, largest.received, largest.counted
}

func (s *side) bytes() uint64 { return s.sent.Bytes + s.received.Bytes }

func (c *Counters) add(d Counters) {
	c.Packets += d.Packets
	c.Bytes += d.Bytes
}
