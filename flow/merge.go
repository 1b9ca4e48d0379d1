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
	// open holds, for each pair, the merged flows that a later report may still join.
	open := make(map[Pair][]*merged)
	var order []*merged
	for i := range reports {
		f := &reports[i]
		candidates := slices.DeleteFunc(open[f.Pair()], func(m *merged) bool {
			return f.Start.Sub(m.flow.End) > slack
		})
		if m := joinable(candidates, f); m != nil {
			m.add(f)
		} else {
			m = &merged{flow: *f, nodes: []string{f.Node}}
			candidates = append(candidates, m)
			order = append(order, m)
		}
		open[f.Pair()] = candidates
	}
	out := make([]Flow, len(order))
	for i, m := range order {
		out[i] = m.flow
	}
	return out
}

type merged struct {
	flow  Flow
	nodes []string
}

func joinable(candidates []*merged, f *Flow) *merged {
	for _, m := range candidates {
		if m.flow.Cluster == f.Cluster && !slices.Contains(m.nodes, f.Node) && SameConnections(m.flow.Verdict, f.Verdict) {
			return m
		}
	}
	return nil
}

// SameConnections reports whether two nodes may have given these two verdicts
// to the same connections.
func SameConnections(a, b Verdict) bool {
	if a == b {
		return true
	}
	if a == VerdictUnanswered || a == VerdictUnknown {
		a, b = b, a
	}
	return b == VerdictUnanswered || b == VerdictUnknown
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
	m.nodes = append(m.nodes, f.Node)
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
	decides.Connections = max(decides.Connections, other.Connections)
	if other.Counted && (!decides.Counted || other.bytes() > decides.bytes()) {
		decides.Sent, decides.Received, decides.Counted = other.Sent, other.Received, true
	}
	decides.TCPFlags |= other.TCPFlags
	decides.Sources |= other.Sources
	if len(decides.Policies) == 0 {
		decides.Policies = other.Policies
	}
	m.flow = decides
}

func (f *Flow) bytes() uint64 { return f.Sent.Bytes + f.Received.Bytes }
