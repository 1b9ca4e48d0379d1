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
// flows, and is told how many.
type follower struct {
	filter flow.Filter
	news   chan news
	seen   map[flow.Pair]shown // across nodes, so that a connection shows once
	missed uint64
}

// news is what one commit has for a follower.
type news struct {
	flows []flow.Flow
	gaps  []flow.Gap
}

// shown is the last report of a pair that a follower was given.
type shown struct {
	node    string
	verdict flow.Verdict
	end     time.Time
}

const (
	followBuffer = 256
	// followSlack is how far two nodes' reports of a connection may lie apart.
	followSlack = 15 * time.Second
	maxShown    = 1 << 16
)

func (h *hub) follow(f flow.Filter) *follower {
	w := &follower{filter: f, news: make(chan news, followBuffer), seen: make(map[flow.Pair]shown)}
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

// publish gives a group of committed batches to all followers. It never waits.
func (h *hub) publish(batches []flow.Batch) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.followers {
		n := w.pick(batches)
		if len(n.flows)+len(n.gaps) == 0 {
			continue
		}
		if w.missed > 0 {
			n.gaps = append(n.gaps, flow.Gap{
				Node: "collector", Source: "follow", Kind: flow.GapQueue, Start: time.Now(), End: time.Now(), Lost: w.missed,
				Detail: "this reader is slower than the flows that pass its filter; they are stored",
			})
		}
		select {
		case w.news <- n:
			w.missed = 0
		default:
			w.missed += uint64(len(n.flows))
		}
	}
}

func (w *follower) pick(batches []flow.Batch) news {
	var n news
	for i := range batches {
		b := &batches[i]
		n.gaps = append(n.gaps, b.Gaps...)
		for j := range b.Flows {
			if f := &b.Flows[j]; w.filter.Matches(f) && w.isNews(f) {
				n.flows = append(n.flows, *f)
			}
		}
	}
	return n
}

// isNews reports whether another node has not told of the same connections already.
func (w *follower) isNews(f *flow.Flow) bool {
	p := f.Pair()
	last, ok := w.seen[p]
	if ok && last.node != f.Node && f.Start.Sub(last.end).Abs() <= followSlack && flow.SameConnections(last.verdict, f.Verdict) &&
		(f.Verdict == last.verdict || f.Verdict == flow.VerdictUnanswered || f.Verdict == flow.VerdictUnknown) {
		return false
	}
	if len(w.seen) >= maxShown {
		clear(w.seen)
	}
	w.seen[p] = shown{f.Node, f.Verdict, f.End}
	return true
}
