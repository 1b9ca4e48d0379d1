package agent

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flowaudit/flowaudit/agent/spool"
	"github.com/flowaudit/flowaudit/flow"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// queue keeps batches until the collector has committed them: in memory those
// that are sent as they come, on disk all of them. Without a disk, or while it
// takes nothing, memory holds at most max flows: beyond that the oldest batches
// lose their flows, allowed ones first and denials last, and say so in a Gap.
type queue struct {
	disk *disk // nil if there is none

	node  string // whom it tells for
	scope flow.Scope

	mu      sync.Mutex
	key     flow.BatchKey // of the next batch, its sequence less one
	entries []*entry      // unacknowledged and in memory, oldest first
	flows   int
	dropped uint64 // flows that were dropped
	max     int
	closed  bool
	// streaming says that a stream takes batches as they come.
	streaming bool
	changed   chan struct{}  // closed and replaced when something happens
	saving    *entry         // is being written to disk
	acked     []spool.Record // on disk, acknowledged, and not forgotten there yet

	lost  atomic.Uint64 // flows that the disk has dropped, or that were damaged there
	bytes atomic.Int64  // on disk
	since atomic.Int64  // since when the oldest batch waits on disk, Unix nanoseconds; 0 if none does
}

// entry is a batch in memory.
type entry struct {
	batch   *flow.Batch
	added   time.Time
	late    bool // it goes with the backlog
	sent    bool // on a stream that is open
	spooled bool // it is on disk

	once    sync.Once
	message *flowauditv1.Batch
}

// wire gives the batch's message. It is made once, for disk and stream.
func (e *entry) wire() *flowauditv1.Batch {
	e.once.Do(func() { e.message = flowauditv1.FromBatch(e.batch) })
	return e.message
}

// span is the time that a batch tells of: of its flows too, which may be in a
// batch that covers nothing by itself.
func span(b *flow.Batch) (start, end time.Time) {
	start, end = b.Start, b.End
	for i := range b.Flows {
		f := &b.Flows[i]
		if !f.Start.IsZero() && f.Start.Before(start) {
			start = f.Start
		}
		if f.End.After(end) {
			end = f.End
		}
	}
	return start, end
}

func (e *entry) lane() spool.Lane {
	if len(e.batch.Flows) > 0 && e.batch.Flows[0].Verdict == flow.VerdictDenied {
		return spool.High
	}
	return spool.Low
}

const (
	// maxLiveAge is how long a batch that is on disk waits in memory while no
	// stream takes it: what is older comes with the backlog.
	maxLiveAge = 15 * time.Second
	// liveShare of the flows in memory may be on disk too while a stream takes
	// them, awayShare while none does.
	liveShare = 2
	awayShare = 16
)

func newQueue(cluster, instance string, epoch uint64, maxFlows int) *queue {
	return &queue{
		key:     flow.BatchKey{Cluster: cluster, Instance: instance, Epoch: epoch},
		max:     maxFlows,
		changed: make(chan struct{}),
	}
}

// put adds a batch and gives it its key. It waits for nothing.
func (q *queue) put(b *flow.Batch) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.add(b)
}

func (q *queue) add(b *flow.Batch) {
	q.key.Sequence++
	b.Key = q.key
	q.entries = append(q.entries, &entry{batch: b, added: time.Now()})
	q.flows += len(b.Flows)
	q.demote()
	for _, denied := range []bool{false, true} {
		for i := 0; q.flows > q.max && i < len(q.entries)-1; i++ {
			q.shed(i, denied)
		}
	}
	q.wake()
}

// demote leaves to the disk what has waited for too long, or is too much.
func (q *queue) demote() {
	share := awayShare
	if q.streaming {
		share = liveShare
	}
	for i := 0; i < len(q.entries)-1; i++ {
		e := q.entries[i]
		if e.spooled && !e.sent && (q.flows > q.max/share || time.Since(e.added) > maxLiveAge) {
			q.remove(i)
			i--
		}
	}
}

func (q *queue) remove(i int) {
	q.flows -= len(q.entries[i].batch.Flows)
	q.entries = slices.Delete(q.entries, i, i+1)
}

// shed takes flows out of batch i: the denied ones too only if denied says so.
// What is on disk keeps them.
func (q *queue) shed(i int, denied bool) {
	e := q.entries[i]
	b := *e.batch // the stream may be reading the one that is queued
	kept := slices.DeleteFunc(slices.Clone(b.Flows), func(f flow.Flow) bool {
		return denied || f.Verdict != flow.VerdictDenied
	})
	lost := len(b.Flows) - len(kept)
	if lost == 0 || e == q.saving || e.spooled {
		return
	}
	start, end := span(&b)
	b.Flows = kept
	b.Gaps = append(slices.Clone(b.Gaps), flow.Gap{
		Node: b.Node, Kind: flow.GapQueue, Start: start, End: end, Lost: uint64(lost),
		Detail: "the collector was away too long for the agent's queue",
	})
	q.entries[i] = &entry{batch: &b, added: e.added, late: e.late, sent: e.sent}
	q.flows -= lost
	q.dropped += uint64(lost)
}

// ack forgets the batch with a key.
func (q *queue) ack(key flow.BatchKey) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.take(key)
}

func (q *queue) take(key flow.BatchKey) {
	i, found := q.find(key)
	if !found {
		return
	}
	e := q.entries[i]
	if e.spooled {
		q.acked = append(q.acked, spool.Record{Lane: e.lane(), Epoch: key.Epoch, Sequence: key.Sequence})
	}
	q.remove(i)
	q.wake()
}

// get gives the batch with a key; nil if it is not in memory.
func (q *queue) get(key flow.BatchKey) *flow.Batch {
	q.mu.Lock()
	defer q.mu.Unlock()
	if i, found := q.find(key); found {
		return q.entries[i].batch
	}
	return nil
}

func (q *queue) find(key flow.BatchKey) (i int, found bool) {
	i, found = slices.BinarySearchFunc(q.entries, key.Sequence, func(e *entry, seq uint64) int {
		return int(int64(e.batch.Key.Sequence) - int64(seq))
	})
	return i, found && q.entries[i].batch.Key == key
}

// ackRecord forgets a batch that came from the disk.
func (q *queue) ackRecord(r spool.Record) {
	q.mu.Lock()
	defer q.mu.Unlock()
	r.Payload = nil
	q.acked = append(q.acked, r)
	q.wake()
}

// tell adds a batch that says what was lost, and covers nothing else.
func (q *queue) tell(g flow.Gap) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.dropped += g.Lost
	q.add(q.loss(g))
}

func (q *queue) loss(g flow.Gap) *flow.Batch {
	g.Node = q.node
	return &flow.Batch{Node: q.node, Scope: q.scope, Start: g.End, End: g.End, Gaps: []flow.Gap{g}}
}

// refuse forgets a batch that can never be taken: sending it again would hold
// back all others for ever. A batch of its own tells what was lost.
func (q *queue) refuse(key flow.BatchKey, why string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	i, found := q.find(key)
	if !found {
		return
	}
	if b := q.entries[i].batch; len(b.Flows) > 0 {
		q.dropped += uint64(len(b.Flows))
		start, end := span(b)
		q.add(q.loss(refusal(start, end, uint64(len(b.Flows)), why)))
	}
	q.take(key)
}

// refusal tells of flows that can never be taken.
func refusal(start, end time.Time, flows uint64, why string) flow.Gap {
	return flow.Gap{
		Kind: flow.GapMalformed, Start: start, End: end, Lost: flows,
		Detail: strings.ToValidUTF8("the collector cannot take these flows: "+why, "?"),
	}
}

// next waits for the oldest live batch with a sequence above after. It returns
// nil when the queue is closed and has none.
func (q *queue) next(ctx context.Context, after uint64) (*entry, error) {
	for {
		q.mu.Lock()
		live := 0
		for _, e := range q.entries {
			if e.late {
				continue
			}
			live++
			if e.batch.Key.Sequence > after {
				e.sent = true
				q.mu.Unlock()
				return e, nil
			}
		}
		done, changed := q.closed && live == 0, q.changed
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

// live counts the batches that go out as they come.
func (q *queue) live() (n int, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, e := range q.entries {
		if !e.late {
			n++
		}
	}
	return n, q.closed
}

// open says that the live stream is.
func (q *queue) open() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.streaming = true
}

// broken leaves to the backlog what was sent and not acknowledged: the live
// stream has ended.
func (q *queue) broken() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.streaming = false
	for i := 0; i < len(q.entries); i++ {
		e := q.entries[i]
		if e.late || !e.sent {
			continue
		}
		e.late, e.sent = true, false
		if e.spooled {
			q.remove(i)
			i--
		}
	}
	q.wake()
}

// nextLate gives the oldest batch in memory that goes with the backlog and was
// not sent on the stream that is open; nil if there is none.
func (q *queue) nextLate() *entry {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, e := range q.entries {
		if e.late && !e.sent && e != q.saving {
			e.sent = true
			return e
		}
	}
	return nil
}

// again makes what the backlog's stream has not brought to an end new to the next one.
func (q *queue) again() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, e := range q.entries {
		if e.late {
			e.sent = false
		}
	}
}

// backlog reports whether there is one: in memory, or on disk beside what is in
// memory too. From before on the disk's records are in memory as well, or are
// acknowledged and not forgotten yet.
func (q *queue) backlog() (waits bool, before uint64) {
	q.mu.Lock()
	live, before := 0, ^uint64(0)
	for _, e := range q.entries {
		waits = waits || e.late
		before = min(before, e.batch.Key.Sequence)
		if e.spooled {
			live++
		}
	}
	if q.saving != nil {
		live++
		before = min(before, q.saving.batch.Key.Sequence)
	}
	for _, r := range q.acked {
		if r.Epoch == q.key.Epoch {
			live++
			before = min(before, r.Sequence)
		}
	}
	q.mu.Unlock()
	return waits || q.disk != nil && q.disk.behind(live), before
}

// close says that no batch will follow.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.wake()
}

// waiting returns how many batches and flows are in memory and not acknowledged,
// and how many of the flows are not on disk.
func (q *queue) waiting() (batches, flows, unsafe int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, e := range q.entries {
		if !e.spooled {
			unsafe += len(e.batch.Flows)
		}
	}
	return len(q.entries), q.flows, unsafe
}

// wait returns a channel that is closed when something happens, and whether the
// queue is closed.
func (q *queue) wait() (changed <-chan struct{}, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.changed, q.closed
}

// behind returns how old the oldest unacknowledged batch is, and how many flows
// were dropped.
func (q *queue) behind(now time.Time) (oldest time.Duration, dropped uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.entries) > 0 {
		oldest = max(0, now.Sub(q.entries[0].batch.End))
	}
	if since := q.since.Load(); since != 0 {
		oldest = max(oldest, now.Sub(time.Unix(0, since)))
	}
	return oldest, q.dropped + q.lost.Load()
}

// onDisk is what waits on disk, and its bound, in bytes; 0 without a disk.
func (q *queue) onDisk() (bytes, limit int64) {
	if q.disk == nil {
		return 0, 0
	}
	return q.bytes.Load(), q.disk.options.MaxBytes
}

func (q *queue) wake() {
	close(q.changed)
	q.changed = make(chan struct{})
}

// full is how much of its bound the queue has used, in percent.
func (q *queue) full() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	full := 100 * q.flows / q.max
	if bytes, limit := q.onDisk(); limit > 0 {
		return max(full, int(100*bytes/limit))
	}
	return full
}
