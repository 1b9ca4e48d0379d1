package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flowaudit/flowaudit/agent/spool"
	"github.com/flowaudit/flowaudit/flow"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
	"github.com/flowaudit/flowaudit/proto/zstd"
)

// backlog sends what had to wait, on streams of its own: live batches do not
// stand behind it.
type backlog struct {
	*stream
	careful atomic.Int32 // so many batches are still to be sent one by one

	mu      sync.Mutex
	flying  map[flow.BatchKey]sentBatch
	changed chan struct{} // closed and replaced when one has landed
}

// sentBatch is a batch on its way.
type sentBatch struct {
	entry      *entry // of memory; nil if it came from disk
	record     spool.Record
	message    *flowauditv1.Batch
	start, end time.Time
	flows      int
}

const (
	// maxFlying bounds what the backlog has on its way, so that little is
	// between it and the live batches where both wait for the store.
	maxFlying = 16
	// carefulFor is for how many batches after a refusal they go one by one:
	// all that can have been on their way with the refused one.
	carefulFor = 64
)

// run sends the backlog until the queue is closed and there is none, or the
// stream breaks.
func (l *backlog) run(ctx context.Context) error {
	for {
		more, err := l.wait(ctx)
		if err != nil || !more {
			return err
		}
		if err := l.session(ctx); err != nil {
			l.blame(err)
			return err
		}
	}
}

// wait waits for a backlog; false if none can come any more.
func (l *backlog) wait(ctx context.Context) (bool, error) {
	for {
		changed, closed := l.queue.wait()
		if waits, _ := l.queue.backlog(); waits {
			return true, nil
		}
		if live, _ := l.queue.live(); closed && live == 0 {
			return false, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// session is one stream. It ends when the backlog is gone.
func (l *backlog) session(ctx context.Context) error {
	l.flying, l.changed = make(map[flow.BatchKey]sentBatch), make(chan struct{})
	l.queue.again()
	if l.queue.disk != nil {
		l.queue.disk.rewind()
	}
	group, ctx := errgroup.WithContext(ctx)
	report, err := l.client.Report(ctx, grpc.UseCompressor(zstd.Name))
	if err != nil {
		return fmt.Errorf("open stream for the backlog: %w", err)
	}
	group.Go(func() error { return l.send(ctx, report) })
	group.Go(func() error { return l.receive(report) })
	return group.Wait()
}

func (l *backlog) send(ctx context.Context, report flowauditv1.Ingest_ReportClient) error {
	for {
		changed, _ := l.queue.wait()
		b, err := l.next(ctx)
		if err != nil {
			return err
		}
		if b == nil {
			if waits, _ := l.queue.backlog(); !waits {
				return report.CloseSend()
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return ctx.Err()
			}
			continue
		}
		refused, err := transmit(report, b.message)
		if refused != nil {
			l.landed(flowauditv1.ToBatchKey(b.message.GetKey()))
			l.drop(b, refused)
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil // the reason is what receive gets
			}
			return fmt.Errorf("send a batch of the backlog: %w", err)
		}
	}
}

// next gives the next batch when there is room for it on its way; nil if there
// is none now.
func (l *backlog) next(ctx context.Context) (*sentBatch, error) {
	if err := l.room(ctx); err != nil {
		return nil, err
	}
	if e := l.queue.nextLate(); e != nil {
		b := sentBatch{entry: e, message: e.wire(), flows: len(e.batch.Flows)}
		b.start, b.end = span(e.batch)
		l.fly(&b)
		return &b, nil
	}
	for l.queue.disk != nil {
		waits, before := l.queue.backlog()
		if !waits {
			return nil, nil
		}
		r, ok, err := l.queue.disk.next(before)
		if err != nil || !ok {
			return nil, err
		}
		b := sentBatch{record: r, start: r.Start, end: r.End, flows: int(r.Flows)}
		if b.message, err = l.queue.disk.load(&r); err != nil {
			l.drop(&b, err)
			continue
		}
		l.fly(&b)
		return &b, nil
	}
	return nil, nil
}

// fly notes a batch as on its way.
func (l *backlog) fly(b *sentBatch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b.record.Payload = nil
	l.flying[flowauditv1.ToBatchKey(b.message.GetKey())] = *b
}

// room waits until another batch may be sent.
func (l *backlog) room(ctx context.Context) error {
	for {
		limit := maxFlying
		if l.careful.Load() > 0 {
			limit = 1
		}
		l.mu.Lock()
		n, changed := len(l.flying), l.changed
		l.mu.Unlock()
		if n < limit {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (l *backlog) receive(report flowauditv1.Ingest_ReportClient) error {
	for {
		ack, err := report.Recv()
		if errors.Is(err, io.EOF) {
			if n := len(l.inFlight()); n > 0 {
				return fmt.Errorf("the collector ended the backlog's stream before %d batches were acknowledged", n)
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("receive acknowledgement: %w", err)
		}
		l.note(ack)
		l.land(ack)
	}
}

// land forgets a batch that is acknowledged.
func (l *backlog) land(ack *flowauditv1.Ack) {
	b, ok := l.landed(flowauditv1.ToBatchKey(ack.GetKey()))
	if !ok {
		return
	}
	if l.careful.Load() > 0 {
		l.careful.Add(-1)
	}
	l.complain(ack, b.start, b.end, b.flows)
	l.done(&b)
}

// landed takes a batch from those that are on their way.
func (l *backlog) landed(key flow.BatchKey) (b sentBatch, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, ok = l.flying[key]
	delete(l.flying, key)
	close(l.changed)
	l.changed = make(chan struct{})
	return b, ok
}

func (l *backlog) done(b *sentBatch) {
	if b.entry != nil {
		l.queue.ack(b.entry.batch.Key)
		return
	}
	l.queue.ackRecord(b.record)
}

func (l *backlog) inFlight() (all []sentBatch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range l.flying {
		all = append(all, b)
	}
	return all
}

// drop gives up a batch that cannot be sent or that the collector will never take.
func (l *backlog) drop(b *sentBatch, err error) {
	l.log.Error("a batch is given up", "flows", b.flows, "from", b.start, "to", b.end, "error", err)
	if b.flows > 0 {
		l.queue.tell(refusal(b.start, b.end, uint64(b.flows), err.Error()))
	}
	l.done(b)
}

// suspect reports whether a stream ended because of what a batch holds. It did
// not say which: until that is found they go one by one.
func (l *backlog) suspect(err error) bool {
	if status.Code(err) != codes.InvalidArgument {
		return false
	}
	l.careful.Store(carefulFor)
	return true
}

// blame gives up the batch that a stream ended for, if it was alone.
func (l *backlog) blame(err error) {
	alone := l.careful.Load() > 0
	if !l.suspect(err) {
		return
	}
	if all := l.inFlight(); alone && len(all) == 1 {
		l.drop(&all[0], err)
	}
}
