package agent

import (
	"sync"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// inbox carries slices of observations from the sources to the table, and
// empty ones back, so that none is allocated while it runs.
type inbox struct {
	full  chan []flow.Observation
	empty chan []flow.Observation

	mu    sync.Mutex
	gaps  []flow.Gap
	after func(flow.Gap) // takes the gaps once no window does; nil before
	flows []flow.Flow    // that a network plugin has aggregated itself
}

const (
	inboxSlices = 16
	sliceLength = 256
)

func newInbox() *inbox {
	return &inbox{
		full:  make(chan []flow.Observation, inboxSlices),
		empty: make(chan []flow.Observation, inboxSlices+8),
	}
}

// deliver hands a filled slice to the table and takes an empty one. It blocks
// while the table is busy; the kernel's socket buffer holds what comes then.
func (b *inbox) deliver(filled []flow.Observation) []flow.Observation {
	if len(filled) > 0 {
		b.full <- filled
		filled = nil
	}
	select {
	case s := <-b.empty:
		return s
	default:
		if filled != nil {
			return filled
		}
		return make([]flow.Observation, 0, sliceLength)
	}
}

// release gives a slice back that the table is done with.
func (b *inbox) release(s []flow.Observation) {
	select {
	case b.empty <- s[:0]:
	default:
	}
}

// maxGaps bounds how many gaps a window keeps apart; further ones of the same
// source and kind are joined.
const maxGaps = 64

// lost takes a gap in, joined with the last one of its kind where they touch.
func (b *inbox) lost(g flow.Gap) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.after != nil {
		b.after(g)
		return
	}
	for i := len(b.gaps) - 1; i >= 0; i-- {
		p := &b.gaps[i]
		if p.Source != g.Source || p.Kind != g.Kind || p.Detail != g.Detail {
			continue
		}
		if len(b.gaps) < maxGaps && (g.Start.Sub(p.End) > time.Second || p.Start.Sub(g.End) > time.Second) {
			break
		}
		if g.Start.Before(p.Start) {
			p.Start = g.Start
		}
		if g.End.After(p.End) {
			p.End = g.End
		}
		p.Lost += g.Lost
		return
	}
	b.gaps = append(b.gaps, g)
}

// divert gives the gaps that are in and all that come to another.
func (b *inbox) divert(to func(flow.Gap)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, g := range b.gaps {
		to(g)
	}
	b.gaps, b.after = nil, to
}

// maxReported bounds the flows that wait for the window's end.
const maxReported = 1 << 16

// report takes flows in that a network plugin has aggregated itself.
func (b *inbox) report(flows []flow.Flow) {
	b.mu.Lock()
	room := maxReported - len(b.flows)
	kept := flows[:min(len(flows), room)]
	b.flows = append(b.flows, kept...)
	b.mu.Unlock()
	if n := len(flows) - len(kept); n > 0 {
		now := time.Now()
		b.lost(flow.Gap{Kind: flow.GapTable, Start: now, End: now, Lost: uint64(n), Detail: "a network plugin reported more flows than a window holds"})
	}
}

// takeFlows returns the flows since the last call.
func (b *inbox) takeFlows() []flow.Flow {
	b.mu.Lock()
	defer b.mu.Unlock()
	f := b.flows
	b.flows = nil
	return f
}

// takeGaps returns the gaps since the last call.
func (b *inbox) takeGaps() []flow.Gap {
	b.mu.Lock()
	defer b.mu.Unlock()
	g := b.gaps
	b.gaps = nil
	return g
}
