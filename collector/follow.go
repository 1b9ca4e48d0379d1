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
	sight  flow.Sight // guarded by the hub
	filter flow.Filter
	news   chan news
	missed flow.Gap // Lost is 0 if nothing was; guarded by the hub
}

// news is what one commit has for a follower.
type news struct {
	flows []sighted
	gaps  []flow.Gap
}

// sighted is a flow, and how it shows to who follows.
type sighted struct{ whole, shown flow.Flow }

const followBuffer = 256 // commits

func (h *hub) follow(s flow.Sight, f flow.Filter) *follower {
	w := &follower{sight: s, filter: f, news: make(chan news, followBuffer)}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.followers[w] = struct{}{}
	return w
}

// see changes what a follower sees of what comes from now on.
func (h *hub) see(w *follower, s flow.Sight) {
	h.mu.Lock()
	defer h.mu.Unlock()
	w.sight = s
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
		for _, g := range b.Gaps {
			if shown, ok := w.sight.Gap(g); ok {
				n.gaps = append(n.gaps, shown)
			}
		}
		for j := range b.Flows {
			if shown, ok := w.sight.Flow(b.Flows[j]); ok && w.filter.Matches(&shown) {
				n.flows = append(n.flows, sighted{b.Flows[j], shown})
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
