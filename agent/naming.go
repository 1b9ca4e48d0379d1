package agent

import (
	"net/netip"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// naming keeps flows back until it is known whose they are: a pod's first
// packets may come before the API server tells of it, and the last word about
// the one that had its address before. They wait a bounded time, in a bounded
// number, and are then given as they stand.
type naming struct {
	names   namer
	window  *window
	waiting []waitingFlow
}

type waitingFlow struct {
	flow flow.Flow
	look time.Time // when to look again
	last time.Time // then it goes, named or not; the zero time if it may wait
}

// maxEarlyWait is how long a first denial waits. What is not sure by then the
// collector looks at again.
const maxEarlyWait = 750 * time.Millisecond

// maxWaiting bounds how many flows wait.
const maxWaiting = 1 << 14

func newNaming(w *window) *naming { return &naming{names: w.names, window: w} }

// take names flows, and gives those whose names are settled. The others may
// wait until last, if that is set.
func (n *naming) take(flows []flow.Flow, now, last time.Time) []flow.Flow {
	ready := flows[:0]
	for _, f := range flows {
		switch due := n.name(&f); {
		case !now.Before(due):
			ready = append(ready, f)
		case len(n.waiting) < maxWaiting:
			n.waiting = append(n.waiting, waitingFlow{f, nextLook(due, now), last})
		default:
			ready = append(ready, n.unsettled(f, now))
		}
	}
	return ready
}

// due gives the flows that have waited long enough.
func (n *naming) due(now time.Time) []flow.Flow {
	var ready []flow.Flow
	kept := n.waiting[:0]
	for _, w := range n.waiting {
		over := !w.last.IsZero() && !now.Before(w.last)
		if now.Before(w.look) && !over {
			kept = append(kept, w)
			continue
		}
		switch due := n.name(&w.flow); {
		case !now.Before(due):
			ready = append(ready, w.flow)
		case over:
			ready = append(ready, n.unsettled(w.flow, now))
		default:
			w.look = nextLook(due, now)
			kept = append(kept, w)
		}
	}
	clear(n.waiting[len(kept):])
	n.waiting = kept
	return ready
}

// lookEvery bounds how long it takes until news is noticed that makes further
// waiting needless.
const lookEvery = 500 * time.Millisecond

func nextLook(due, now time.Time) time.Time {
	if soon := now.Add(lookEvery); soon.Before(due) {
		return soon
	}
	return due
}

// rest gives all that still wait.
func (n *naming) rest(now time.Time) []flow.Flow {
	out := make([]flow.Flow, 0, len(n.waiting))
	for _, w := range n.waiting {
		n.name(&w.flow)
		out = append(out, n.unsettled(w.flow, now))
	}
	n.waiting = nil
	return out
}

// unsettled takes the names away that news may still change: the collector,
// which knows all pods, looks again.
func (n *naming) unsettled(f flow.Flow, now time.Time) flow.Flow {
	for _, end := range []struct {
		addr netip.Addr
		name **flow.Endpoint
	}{{f.Src, &f.Source}, {f.Dst, &f.Destination}} {
		if _, news := n.names.Holder(end.addr, f.NamedFrom, f.NamedTo); now.Before(f.NamedTo.Add(news)) {
			*end.name = nil
		}
	}
	return f
}

// name names both ends by all that is known now, and says until when news may
// change that.
func (n *naming) name(f *flow.Flow) (due time.Time) {
	src, a := n.names.Holder(f.Src, f.NamedFrom, f.NamedTo)
	dst, b := n.names.Holder(f.Dst, f.NamedFrom, f.NamedTo)
	// Where we know nobody a plugin may have named the end.
	if !unknown(src) {
		f.Source = src
	}
	if !unknown(dst) {
		f.Destination = dst
	}
	told := f.Verdict == flow.VerdictDenied && f.Direction != flow.DirectionUnknown && n.window.local(f.Source) && n.window.local(f.Destination)
	if d := n.window.direction(f.Source, f.Destination); d != flow.DirectionUnknown && !told {
		f.Direction = d
	}
	return f.NamedTo.Add(max(a, b))
}
