package flow

import (
	"cmp"
	"slices"
)

// mergePair makes one flow a verdict of what nodes report of one pair over a
// long time, where it cannot be told any more which report of one node belongs
// to which of the other. It follows Merge: counts are the larger side's, and
// connections of which one node saw no reply are those that the other refused
// or answered, as far as these go.
func mergePair(reports []Flow) []Flow {
	if sameNode(reports) {
		return reports
	}
	// The order in which stores give them follows from who they are of.
	slices.SortStableFunc(reports, func(a, b Flow) int { return a.Start.Compare(b.Start) })
	var out []Flow
	at := make(map[edgeVerdict]int)
	weak := make(map[string]uint64)   // unanswered and unknown connections by node
	strong := make(map[string]uint64) // refused and answered ones
	for i := range reports {
		f := &reports[i]
		if f.Verdict == VerdictUnanswered || f.Verdict == VerdictUnknown {
			weak[f.Node] += f.Connections
			continue
		}
		strong[f.Node] += f.Connections
		v := edgeVerdict{f.Verdict, f.Expected, f.Assessment, f.Caveat}
		if j, ok := at[v]; ok {
			joinSides(&out[j], f)
		} else {
			at[v] = len(out)
			out = append(out, *f)
		}
	}
	var total, decided uint64
	for _, f := range out {
		decided += f.Connections
	}
	for node, n := range weak {
		total = max(total, n+strong[node])
	}
	for _, n := range strong {
		total = max(total, n)
	}
	return append(out, leftover(reports, total-min(total, decided))...)
}

type edgeVerdict struct {
	verdict, expected Verdict
	assessment        Assessment
	caveat            Caveat
}

func sameNode(reports []Flow) bool {
	for i := range reports {
		if reports[i].Node != reports[0].Node {
			return false
		}
	}
	return true
}

// joinSides adds another node's report of the same connections.
func joinSides(a *Flow, b *Flow) {
	if b.TranslatedSrc.IsValid() && !a.TranslatedSrc.IsValid() {
		// The client's side knows the original source.
		a.Src, a.TranslatedSrc, a.Source = b.Src, b.TranslatedSrc, b.Source
	}
	a.Source, a.Destination = cmp.Or(a.Source, b.Source), cmp.Or(a.Destination, b.Destination)
	if a.Node == b.Node {
		a.Connections += b.Connections
		a.Sent.add(b.Sent)
		a.Received.add(b.Received)
	} else {
		a.Connections = max(a.Connections, b.Connections)
		if b.Sent.Bytes+b.Received.Bytes > a.Sent.Bytes+a.Received.Bytes {
			a.Sent, a.Received = b.Sent, b.Received
		}
	}
	if b.Start.Before(a.Start) {
		a.Start = b.Start
	}
	if b.End.After(a.End) {
		a.End = b.End
	}
}

// leftover are the unanswered reports as far as nothing better explains them.
func leftover(reports []Flow, n uint64) []Flow {
	var out []Flow
	for i := range reports {
		f := reports[i]
		if n == 0 {
			break
		}
		if f.Verdict != VerdictUnanswered && f.Verdict != VerdictUnknown {
			continue
		}
		f.Connections = min(f.Connections, n)
		n -= f.Connections
		out = append(out, f)
	}
	return out
}
