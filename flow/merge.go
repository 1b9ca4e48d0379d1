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
	queue []*merged           // not given yet, by Start
	open  map[pairOf]*pending // those of them that a report may still join
	done  bool
}

// NewMerger gives flows to yield, until that returns false.
func NewMerger(slack time.Duration, yield func(Flow) bool) *Merger {
	return &Merger{slack: slack, yield: yield, open: make(map[pairOf]*pending)}
}

// Add takes a report in. It returns false when no more are wanted.
func (m *Merger) Add(f Flow) bool {
	m.give(f.Start)
	if m.done {
		return false
	}
	key := pairOf{f.Pair(), f.Cluster}
	p := m.open[key]
	if p == nil {
		p = &pending{}
		m.open[key] = p
	}
	n := p.joinable(&f, m.slack)
	if n == nil {
		n = &merged{flow: f, key: key, start: f.Start, sides: []side{sideOf(&f)}, number: p.given + len(p.flows)}
		m.queue = append(m.queue, n)
		p.flows = append(p.flows, n)
	} else {
		n.add(&f)
	}
	p.note(n)
	return true
}

// Close gives what is left.
func (m *Merger) Close() {
	for _, n := range m.queue {
		if m.done {
			return
		}
		m.settle(n, m.open[n.key])
	}
	m.queue = nil
}

// settle gives a flow, if anything of it was not given before.
func (m *Merger) settle(n *merged, p *pending) {
	if p.balance == nil && len(p.flows) == 1 && len(n.sides) == 1 { // the most are so: nothing touches them
		m.done = !m.yield(n.flow)
		return
	}
	if p.balance == nil {
		p.balance = &balance{}
	}
	if vague(&n.flow) {
		// Whoever names its connections counts first.
		for _, o := range p.takeCertain() {
			if !vague(&o.flow) {
				p.balance.settleOnce(o)
			}
		}
	}
	if p.balance.settleOnce(n) {
		m.done = !m.yield(n.flow)
	}
}

// give hands out what no report from now on can join.
func (m *Merger) give(now time.Time) {
	for len(m.queue) > 0 && !m.done && now.Sub(m.queue[0].start) > m.slack {
		n := m.queue[0]
		m.queue = m.queue[1:]
		p := m.open[n.key]
		m.settle(n, p)
		if p.drop(); len(p.flows) == 0 {
			delete(m.open, n.key)
		}
	}
}

// pairOf is a pair in a cluster: others use the same addresses.
type pairOf struct {
	Pair
	cluster string
}

// merged is a flow that reports may still join.
type merged struct {
	flow  Flow
	key   pairOf
	start time.Time // of the first report
	sides []side
	// number counts the pair's flows.
	number int
	noted  bool // as certain
	// settled says that its counts are what is new in it already, and tells
	// whether that is anything.
	settled, tells bool
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
	decides.Source = knownEnd(decides.Source, other.Source)
	decides.Destination = knownEnd(decides.Destination, other.Destination)
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
	decides.contest(&other)
	m.flow = decides
	m.count(f)
}

// contest takes back what another node's report disproves of where the flow
// was stopped.
func (f *Flow) contest(other *Flow) {
	switch {
	case f.Node == other.Node:
	case f.Verdict == VerdictDenied && other.Verdict == VerdictDenied:
		f.Direction = DirectionUnknown // each refused connections of its own
	case f.Reason == ReasonLostBetween:
		f.Reason = ReasonNoReply // it did come to the other
	}
}

// count adds to the node's side. How much of it is new is settled when the
// flow is given.
func (m *merged) count(f *Flow) {
	if s := m.side(f.Node); s != nil {
		told := sideOf(f)
		s.add(&told)
		return
	}
	m.sides = append(m.sides, sideOf(f))
}
