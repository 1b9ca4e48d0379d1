package collector

import (
	"sync"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// blind remembers when the collector could not reach the API server, and tells
// it as a gap of every node that reports: the far ends of its flows may have
// the names of before.
type blind struct {
	mu    sync.Mutex
	spans []span               // in order, not touching each other
	told  map[string]time.Time // by node, up to when it was told
}

// blindMemory is how long a span is remembered.
const blindMemory = time.Hour

func newBlind() *blind { return &blind{told: make(map[string]time.Time)} }

// lost takes a time in.
func (b *blind) lost(g flow.Gap) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.spans) > 0 && g.End.Sub(b.spans[0].end) > blindMemory {
		b.spans = b.spans[1:]
	}
	if n := len(b.spans); n > 0 && !g.Start.After(b.spans[n-1].end) {
		b.spans[n-1].end = g.End
		return
	}
	b.spans = append(b.spans, span{g.Start, g.End})
}

// add tells a batch's node what it was not told yet. The function that it
// returns takes that back.
func (b *blind) add(batch *flow.Batch) (undo func()) {
	if !batch.End.After(batch.Start) {
		return func() {} // it covers no time
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	before, known := b.told[batch.Node]
	for _, s := range b.spans {
		from := s.start
		if known && from.Before(before) {
			from = before
		}
		if !s.end.After(from) {
			continue
		}
		batch.Gaps = append(batch.Gaps, flow.Gap{
			Node: batch.Node, Source: "collector", Kind: flow.GapNames, Start: from, End: s.end,
			Detail: "the collector could not reach the API server: far ends have the names that were known before",
		})
		b.told[batch.Node] = s.end
	}
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.told[batch.Node] = before
	}
}
