package collector

import (
	"sync"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// hub gives each newly committed flow to everyone who follows.
type hub struct {
	mu        sync.Mutex
	followers map[*follower]struct{}
}

func newHub() *hub { return &hub{followers: make(map[*follower]struct{})} }

// follower receives what passes its filter. A reader that is too slow loses
// some, and is told how much.
type follower struct {
	filter flow.Filter
	news   chan news
	missed flow.Gap // Lost is 0 if nothing was; guarded by the hub
}

// news is what one commit has for a follower.
type news struct {
	flows []flow.Flow
	gaps  []flow.Gap
}

const followBuffer = 256 // commits

func (h *hub) follow(f flow.Filter) *follower {
	w := &follower{filter: f, news: make(chan news, followBuffer)}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.followers[w] = struct{}{}
	return w
}

func (h *hub) leave(w *follower) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.followers, w)
}

// count is how many follow.
func (h *hub) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.followers)
}

// publish gives a group of committed batches to all followers. It never waits.
func (h *hub) publish(batches []flow.Batch) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.followers {
		n := w.pick(batches)
		if len(n.flows)+len(n.gaps) == 0 {
			continue
		}
		select {
		case w.news <- n:
		default:
			w.miss(uint64(len(n.flows) + len(n.gaps)))
		}
	}
}

func (w *follower) pick(batches []flow.Batch) news {
	var n news
	for i := range batches {
		b := &batches[i]
		n.gaps = append(n.gaps, b.Gaps...)
		for j := range b.Flows {
			if f := &b.Flows[j]; w.filter.Matches(f) {
				n.flows = append(n.flows, *f)
			}
		}
	}
	return n
}

func (w *follower) miss(n uint64) {
	now := time.Now()
	if w.missed.Lost == 0 {
		w.missed = flow.Gap{
			Node: "collector", Source: "follow", Kind: flow.GapQueue, Start: now,
			Detail: "this reader is slower than the flows that pass its filter; they are stored",
		}
	}
	w.missed.End = now
	w.missed.Lost += n
}

// missed gives what a follower has missed since it was last asked. It misses
// only when its news are full, so it has more to read, and asks again.
func (h *hub) missed(w *follower) []flow.Gap {
	h.mu.Lock()
	defer h.mu.Unlock()
	if w.missed.Lost == 0 {
		return nil
	}
	g := w.missed
	w.missed = flow.Gap{}
	return []flow.Gap{g}
}
