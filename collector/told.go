package collector

import (
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// told remembers what a follower has been given, so that it sees each
// connection once: also one that was committed while the stored flows were
// read, and one that two nodes report.
type told struct {
	stored map[storedKey][]span
	pairs  map[flow.Pair]shown
}

// storedKey tells a node's flows apart. A stored flow may be two nodes' merged,
// so its Key need not be what the node reported.
type storedKey struct {
	pair       flow.Pair
	verdict    flow.Verdict
	node       string
	sourcePort uint16
}

type span struct{ start, end time.Time }

// shown is the last report of a pair that a follower was given.
type shown struct {
	node    string
	verdict flow.Verdict
	end     time.Time
}

const (
	// recent is how far back a flow's end may lie that is committed only now.
	recent = 10 * time.Minute
	// followSlack is how far two nodes' reports of a connection may lie apart.
	followSlack = 15 * time.Second
	maxShown    = 1 << 16
)

func newTold() *told {
	return &told{stored: make(map[storedKey][]span), pairs: make(map[flow.Pair]shown)}
}

func keyOfStored(f *flow.Flow) storedKey { return storedKey{f.Pair(), f.Verdict, f.Node, f.SourcePort} }

// addStored takes in a flow of the stored part, if it is recent.
func (t *told) addStored(f *flow.Flow, now time.Time) {
	if now.Sub(f.End) > recent {
		return
	}
	k := keyOfStored(f)
	t.stored[k] = append(t.stored[k], span{f.Start, f.End})
	t.show(f)
}

// news are those of flows that were not told yet, as they show.
func (t *told) news(flows []sighted) []flow.Flow {
	var out []flow.Flow
	for i := range flows {
		if t.isNews(&flows[i]) {
			out = append(out, flows[i].shown)
		}
	}
	return out
}

// isNews reports whether a flow was not told yet, by its node or by another one,
// and remembers it. What is stored is known as it shows; the nodes' reports of
// one connection are told apart by the whole.
func (t *told) isNews(n *sighted) bool {
	f := &n.whole
	for _, s := range t.stored[keyOfStored(&n.shown)] {
		if !f.Start.Before(s.start) && !f.End.After(s.end) {
			return false
		}
	}
	last, ok := t.pairs[f.Pair()]
	if ok && last.node != f.Node && f.Start.Sub(last.end).Abs() <= followSlack &&
		(f.Verdict == last.verdict || f.Verdict == flow.VerdictUnanswered || f.Verdict == flow.VerdictUnknown) {
		return false
	}
	t.show(f)
	return true
}

func (t *told) show(f *flow.Flow) {
	if len(t.pairs) >= maxShown {
		clear(t.pairs)
	}
	t.pairs[f.Pair()] = shown{f.Node, f.Verdict, f.End}
}
