package agent

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// queue keeps batches until the collector has committed them. It holds at most
// max flows: beyond that the oldest batches lose their flows, allowed ones
// first and denials last, and say so in a Gap.
type queue struct {
	mu      sync.Mutex
	key     flow.BatchKey // of the next batch, its sequence less one
	batches []*flow.Batch // unacknowledged, oldest first
	flows   int
	dropped uint64 // flows that were dropped
	max     int
	closed  bool
	changed chan struct{} // closed and replaced when something happens
}

func newQueue(cluster, instance string, maxFlows int) *queue {
	return &queue{
		key:     flow.BatchKey{Cluster: cluster, Instance: instance, Epoch: rand.Uint64()},
		max:     maxFlows,
		changed: make(chan struct{}),
	}
}

// put adds a batch and gives it its key.
func (q *queue) put(b *flow.Batch) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.key.Sequence++
	b.Key = q.key
	q.batches = append(q.batches, b)
	q.flows += len(b.Flows)
	for _, denied := range []bool{false, true} {
		for i := 0; q.flows > q.max && i < len(q.batches)-1; i++ {
			q.shed(i, denied)
		}
	}
	q.wake()
}

// shed takes flows out of batch i: the denied ones too only if denied says so.
func (q *queue) shed(i int, denied bool) {
	b := *q.batches[i] // the stream may be reading the one that is queued
	kept := slices.DeleteFunc(slices.Clone(b.Flows), func(f flow.Flow) bool {
		return denied || f.Verdict != flow.VerdictDenied
	})
	lost := len(b.Flows) - len(kept)
	if lost == 0 {
		return
	}
	b.Flows = kept
	b.Gaps = append(slices.Clone(b.Gaps), flow.Gap{
		Node: b.Node, Kind: flow.GapQueue, Start: b.Start, End: b.End, Lost: uint64(lost),
		Detail: "the collector was away too long for the agent's queue",
	})
	q.batches[i] = &b
	q.flows -= lost
	q.dropped += uint64(lost)
}

// ack forgets the batch with a key.
func (q *queue) ack(key flow.BatchKey) {
	q.mu.Lock()
	defer q.mu.Unlock()
	i, found := slices.BinarySearchFunc(q.batches, key.Sequence, func(b *flow.Batch, seq uint64) int {
		return int(int64(b.Key.Sequence) - int64(seq))
	})
	if !found || q.batches[i].Key != key {
		return
	}
	q.flows -= len(q.batches[i].Flows)
	q.batches = slices.Delete(q.batches, i, i+1)
	q.wake()
}

// refuse forgets a batch that can never be taken: sending it again would hold
// back all others for ever. A batch of its own tells what was lost.
func (q *queue) refuse(key flow.BatchKey, why string) {
	q.mu.Lock()
	i := slices.IndexFunc(q.batches, func(b *flow.Batch) bool { return b.Key == key })
	if i < 0 {
		q.mu.Unlock()
		return
	}
	b := q.batches[i]
	q.dropped += uint64(len(b.Flows))
	q.mu.Unlock()
	if len(b.Flows) > 0 {
		q.put(&flow.Batch{Node: b.Node, Scope: b.Scope, Start: b.End, End: b.End, Gaps: []flow.Gap{{
			Node: b.Node, Kind: flow.GapMalformed, Start: b.Start, End: b.End, Lost: uint64(len(b.Flows)),
			Detail: strings.ToValidUTF8("the collector cannot take these flows: "+why, "?"),
		}}})
	}
	q.ack(key)
}

// next waits for the oldest batch with a sequence above after. It returns nil
// when the queue is closed and empty.
func (q *queue) next(ctx context.Context, after uint64) (*flow.Batch, error) {
	for {
		q.mu.Lock()
		for _, b := range q.batches {
			if b.Key.Sequence > after {
				q.mu.Unlock()
				return b, nil
			}
		}
		done, changed := q.closed && len(q.batches) == 0, q.changed
		q.mu.Unlock()
		if done {
			return nil, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// close says that no batch will follow.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.wake()
}

// waiting returns how many batches and flows are not acknowledged.
func (q *queue) waiting() (batches, flows int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.batches), q.flows
}

// behind returns how old the oldest unacknowledged batch is, and how many flows
// were dropped.
func (q *queue) behind(now time.Time) (oldest time.Duration, dropped uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.batches) > 0 {
		oldest = max(0, now.Sub(q.batches[0].End))
	}
	return oldest, q.dropped
}

func (q *queue) wake() {
	close(q.changed)
	q.changed = make(chan struct{})
}
