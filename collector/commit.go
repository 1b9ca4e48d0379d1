package collector

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
)

// appender is what the committer asks of a store.
type appender interface {
	Append(ctx context.Context, batches []flow.Batch) (duplicate []bool, err error)
}

// committer stores the batches of all agents, many in one transaction: while
// one group is being written the next one gathers.
type committer struct {
	store   appender
	waiting chan submission
	// committed is told each group of new batches after it is durable, in their
	// order, while the next group is being written.
	committed func([]flow.Batch)
	durable   chan []flow.Batch
	// trouble is why the newest group is not stored; nil when it is.
	trouble atomic.Pointer[string]
}

// submission is a batch on its way into the store. done is called once, from
// the committer's goroutine, when the batch is durable or will not be;
// duplicate says that it was stored before.
type submission struct {
	batch flow.Batch
	done  func(duplicate bool, err error)
}

const (
	maxWaiting    = 64      // batches; beyond it agents are held back
	maxGroupFlows = 200_000 // bounds the memory and the delay of one transaction
)

func newCommitter(s appender, committed func([]flow.Batch)) *committer {
	return &committer{store: s, waiting: make(chan submission, maxWaiting), committed: committed, durable: make(chan []flow.Batch)}
}

// submit queues a batch; it blocks while the store is behind.
func (c *committer) submit(ctx context.Context, s submission) error {
	select {
	case c.waiting <- s:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run commits until waiting is closed, and everything in it is stored and told.
func (c *committer) run(ctx context.Context) {
	var telling sync.WaitGroup
	telling.Go(func() {
		for batches := range c.durable {
			c.committed(batches)
		}
	})
	for first := range c.waiting {
		c.commit(ctx, c.gather(first))
	}
	close(c.durable)
	telling.Wait()
}

// gather takes what is waiting, without waiting for more.
func (c *committer) gather(first submission) []submission {
	group := []submission{first}
	flows := len(first.batch.Flows)
	for flows < maxGroupFlows {
		select {
		case s, ok := <-c.waiting:
			if !ok {
				return group
			}
			group = append(group, s)
			flows += len(s.batch.Flows)
		default:
			return group
		}
	}
	return group
}

func (c *committer) commit(ctx context.Context, group []submission) {
	batches := make([]flow.Batch, len(group))
	for i := range group {
		batches[i] = group[i].batch
	}
	duplicate, err := c.store.Append(ctx, batches)
	if err != nil && len(group) > 1 && ctx.Err() == nil {
		// One batch may be what the store cannot take: the others must not suffer.
		for _, s := range group {
			c.commit(ctx, []submission{s})
		}
		return
	}
	switch {
	case err == nil:
		c.trouble.Store(nil)
	case !errors.Is(err, store.ErrBatch):
		text := err.Error()
		c.trouble.Store(&text)
	}
	if err != nil {
		err = fmt.Errorf("store batch %s: %w", group[0].batch.Key, err)
	}
	for i, s := range group {
		s.done(i < len(duplicate) && duplicate[i], err)
	}
	if err == nil {
		c.durable <- fresh(batches, duplicate)
	}
}

// fresh leaves out the batches that were stored before.
func fresh(batches []flow.Batch, duplicate []bool) []flow.Batch {
	out := batches[:0]
	for i, b := range batches {
		if i >= len(duplicate) || !duplicate[i] {
			out = append(out, b)
		}
	}
	return out
}
