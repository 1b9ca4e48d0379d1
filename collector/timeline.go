package collector

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// recorder is what the timeline asks of a store.
type recorder interface {
	Record(ctx context.Context, changes []flow.Change) error
	Timeline(ctx context.Context, sight flow.Sight, since, until time.Time, yield func(flow.Change) bool) error
}

// timeline takes changes of the cluster in: flows are judged by them at once,
// and the store keeps them.
type timeline struct {
	store   recorder
	history *history
	cluster string
	log     *slog.Logger
	// told, if set, is called with each change after the start.
	told func(*flow.Change)

	mu      sync.Mutex
	early   []flow.Change // what was found at the start, until all of it is
	begun   bool
	waiting []flow.Change // for the store
	news    chan struct{} // holds one when something waits
}

func newTimeline(s recorder, h *history, cluster string, log *slog.Logger) *timeline {
	return &timeline{store: s, history: h, cluster: cluster, log: log, news: make(chan struct{}, 1)}
}

// restore begins with what the store knows of the last hours, and returns it.
func (t *timeline) restore(ctx context.Context, now time.Time) (known []flow.Change, err error) {
	err = t.store.Timeline(ctx, flow.SeeAll(), now.Add(-historyKept), now, func(c flow.Change) bool {
		if c.Cluster == t.cluster {
			known = append(known, c)
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("read timeline: %w", err)
	}
	if err := t.history.apply(known); err != nil {
		t.log.Error("a part of the timeline is not judged by", "error", err)
	}
	t.history.restored = len(known) > 0
	return known, nil
}

// changed takes a change in, without waiting for the store.
func (t *timeline) changed(c flow.Change) {
	c.Cluster = t.cluster
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.begun {
		t.early = append(t.early, c)
		return
	}
	t.take(c)
	if t.told != nil {
		t.told(&c)
	}
}

// settled says that everything that was there at the start has been told. It
// was told in any order, and says of itself since when it is so.
func (t *timeline) settled() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.begun {
		return
	}
	slices.SortStableFunc(t.early, func(a, b flow.Change) int { return a.Time.Compare(b.Time) })
	t.take(t.early...)
	t.history.begin(lastDeletion(t.early))
	t.begun, t.early = true, nil
}

// lastDeletion is when it was found last that something is gone; the zero time
// if nothing is.
func lastDeletion(changes []flow.Change) (at time.Time) {
	for i := range changes {
		if c := &changes[i]; c.Deleted && c.Kind != flow.ChangeIdentity {
			at = c.Time
		}
	}
	return at
}

func (t *timeline) take(changes ...flow.Change) {
	if err := t.history.apply(changes); err != nil {
		t.log.Error("a change is not judged by", "error", err)
	}
	t.waiting = append(t.waiting, changes...)
	select {
	case t.news <- struct{}{}:
	default:
	}
}

// retryInterval is how long a store that refused changes is left alone.
const retryInterval = 5 * time.Second

// run stores what waits, until ctx ends, and then what is left.
func (t *timeline) run(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-t.news:
		case <-ctx.Done():
		}
		for !t.write(ctx) && ctx.Err() == nil {
			select {
			case <-time.After(retryInterval):
			case <-ctx.Done():
			}
		}
	}
}

// write reports whether nothing is left to store.
func (t *timeline) write(ctx context.Context) bool {
	t.mu.Lock()
	changes := t.waiting
	t.waiting = nil
	t.mu.Unlock()
	if len(changes) == 0 {
		return true
	}
	// What is known when the collector stops is worth the moment it takes.
	writing, cancel := context.WithTimeout(context.WithoutCancel(ctx), retryInterval)
	defer cancel()
	if err := t.store.Record(writing, changes); err != nil {
		t.log.Error("changes of the cluster are not stored yet, trying again", "changes", len(changes), "error", err)
		t.mu.Lock()
		t.waiting = append(changes, t.waiting...)
		t.mu.Unlock()
		return false
	}
	return true
}
