package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/flowaudit/flowaudit/flow"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
	"github.com/flowaudit/flowaudit/proto/zstd"
)

// stream sends what the queue holds to the collector until it is acknowledged:
// batches as they come on one stream, what had to wait on another.
type stream struct {
	queue  *queue
	client flowauditv1.IngestClient
	// hurry makes the connection's next attempt due: it has pauses of its own,
	// up to two minutes, which are too long.
	hurry func()
	log   *slog.Logger

	connected              atomic.Bool // a stream is open
	acknowledged, rejected atomic.Uint64
	acknowledgedAt         atomic.Int64 // Unix nanoseconds; 0 before the first
}

const (
	minBackoff = 250 * time.Millisecond
	maxBackoff = 5 * time.Second
)

// run sends until the queue is closed and empty, or ctx ends.
func (s *stream) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	late := &backlog{stream: s}
	group.Go(func() error {
		return s.retry(ctx, s.away, func(ctx context.Context) error {
			err := s.session(ctx)
			if late.suspect(err) {
				s.log.Error("collector refuses a batch, and does not say which: what waits is sent one by one", "error", err)
			}
			s.queue.broken()
			return err
		})
	})
	group.Go(func() error { return s.retry(ctx, func(error) {}, late.run) }) // the live stream has said it
	return group.Wait()
}

func (s *stream) away(err error) {
	batches, flows, _ := s.queue.waiting()
	s.log.Warn("collector is away, flows wait in the queue", "error", err, "batches", batches, "flows", flows)
}

// retry calls session until it succeeds, and away once it fails again and again.
func (s *stream) retry(ctx context.Context, away func(error), session func(context.Context) error) error {
	backoff, told := minBackoff, false
	for {
		began := time.Now()
		s.hurry()
		err := session(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Since(began) > maxBackoff {
			// A collector ends connections now and then: whoever shows a token has to
			// show it anew. It is away only if the next one fails.
			backoff, told = minBackoff, false
			s.log.Info("stream to the collector ended, opening another", "error", err)
		} else if !told {
			told = true
			away(err)
		}
		select {
		case <-time.After(backoff):
		case <-ctx.Done():
			return ctx.Err()
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// session is one live stream: it sends every batch once, as it comes, and
// takes acknowledgements.
func (s *stream) session(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	report, err := s.client.Report(ctx, grpc.UseCompressor(zstd.Name))
	if err != nil {
		return fmt.Errorf("open stream: %w", err)
	}
	s.queue.open()
	s.connected.Store(true)
	defer s.connected.Store(false)
	group.Go(func() error { return s.send(ctx, report) })
	group.Go(func() error { return s.receive(report) })
	return group.Wait()
}

func (s *stream) send(ctx context.Context, report flowauditv1.Ingest_ReportClient) error {
	var sent uint64
	for {
		e, err := s.queue.next(ctx, sent)
		if err != nil {
			return err
		}
		if e == nil {
			return report.CloseSend()
		}
		refused, err := transmit(report, e.wire())
		if refused != nil {
			s.refuse(e.batch, refused)
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil // the reason is what receive gets
			}
			return fmt.Errorf("send batch %s: %w", e.batch.Key, err)
		}
		sent = e.batch.Key.Sequence
	}
}

// maxMessage is what a collector takes.
const maxMessage = 16 << 20

// errUnsendable is of a batch that no message can hold.
var errUnsendable = errors.New("no message can hold the batch")

// encodable says why no message can hold a batch; nil if one can.
func encodable(m *flowauditv1.Batch) error {
	if n := proto.Size(m); n > maxMessage {
		return fmt.Errorf("%w: it takes %d bytes, and a message has %d at most", errUnsendable, n, maxMessage)
	}
	if _, err := proto.Marshal(m); err != nil { // a name that is no UTF-8
		return fmt.Errorf("%w: %w", errUnsendable, err)
	}
	return nil
}

// transmit sends a batch, or says why it can never be sent.
func transmit(report flowauditv1.Ingest_ReportClient, m *flowauditv1.Batch) (refused, err error) {
	if proto.Size(m) > maxMessage {
		return encodable(m), nil
	}
	if err = report.Send(m); err != nil && !errors.Is(err, io.EOF) {
		refused = encodable(m)
	}
	return refused, err
}

// refuse drops a batch that cannot be sent.
func (s *stream) refuse(b *flow.Batch, why error) {
	s.log.Error("a batch cannot be sent, its flows are lost", "batch", b.Key.String(), "flows", len(b.Flows), "error", why)
	s.queue.refuse(b.Key, why.Error())
}

func (s *stream) receive(report flowauditv1.Ingest_ReportClient) error {
	for {
		ack, err := report.Recv()
		if errors.Is(err, io.EOF) {
			if live, closed := s.queue.live(); live > 0 || !closed {
				return errors.New("the collector ended the stream")
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("receive acknowledgement: %w", err)
		}
		key := flowauditv1.ToBatchKey(ack.GetKey())
		if b := s.queue.get(key); b != nil {
			start, end := span(b)
			s.complain(ack, start, end, len(b.Flows))
		}
		s.queue.ack(key)
		s.note(ack)
	}
}

// note counts an acknowledgement.
func (s *stream) note(ack *flowauditv1.Ack) {
	s.acknowledged.Add(1)
	s.acknowledgedAt.Store(time.Now().UnixNano())
	s.rejected.Add(ack.GetRejected())
}

// complain tells of what the collector did not take of a batch.
func (s *stream) complain(ack *flowauditv1.Ack, start, end time.Time, flows int) {
	lost := ack.GetRejected()
	if ack.GetRefused() {
		lost = uint64(flows)
	} else if lost == 0 {
		return
	}
	s.log.Error("collector did not take all of a batch", "batch", flowauditv1.ToBatchKey(ack.GetKey()).String(), "refused", ack.GetRefused(),
		"flows", lost, "error", ack.GetError())
	if lost > 0 {
		s.queue.tell(refusal(start, end, lost, ack.GetError()))
	}
}

// maxBatchFlows keeps a message well below gRPC's limit.
const maxBatchFlows = 8192

// split divides flows among batches; the last one carries the coverage. With
// apart, refused flows have batches of their own, which can be kept for longer.
func split(b flow.Batch, apart bool) []*flow.Batch {
	var out []*flow.Batch
	part := func(flows []flow.Flow) {
		p := b
		p.Flows, p.Gaps = flows, nil
		p.Start = p.End // covers nothing by itself
		out = append(out, &p)
	}
	if apart {
		var passed []flow.Flow
		passed, b.Flows = refusedApart(b.Flows)
		for len(passed) > 0 {
			n := min(len(passed), maxBatchFlows)
			part(passed[:n])
			passed = passed[n:]
		}
	}
	for len(b.Flows) > maxBatchFlows {
		part(b.Flows[:maxBatchFlows])
		b.Flows = b.Flows[maxBatchFlows:]
	}
	return append(out, &b)
}

// refusedApart takes the flows that were not refused from those that were, if
// there are both.
func refusedApart(all []flow.Flow) (passed, rest []flow.Flow) {
	refused := func(f flow.Flow) bool { return f.Verdict == flow.VerdictDenied }
	if !slices.ContainsFunc(all, refused) {
		return nil, all
	}
	for _, f := range all {
		if refused(f) {
			rest = append(rest, f)
		} else {
			passed = append(passed, f)
		}
	}
	return passed, rest
}
