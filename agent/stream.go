package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/flowaudit/flowaudit/flow"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
	"github.com/flowaudit/flowaudit/proto/zstd"
)

// stream sends what the queue holds to the collector, again and again until it
// is acknowledged.
type stream struct {
	queue  *queue
	client flowauditv1.IngestClient
	log    *slog.Logger

	connected              atomic.Bool // a stream is open
	acknowledged, rejected atomic.Uint64
	acknowledgedAt         atomic.Int64 // Unix nanoseconds; 0 before the first
}

const (
	minBackoff = 250 * time.Millisecond
	maxBackoff = 15 * time.Second
)

// run sends until the queue is closed and empty, or ctx ends.
func (s *stream) run(ctx context.Context) error {
	backoff, told := minBackoff, false
	for {
		began := time.Now()
		err := s.session(ctx)
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
			batches, flows := s.queue.waiting()
			s.log.Warn("collector is away, flows wait in the queue", "error", err, "batches", batches, "flows", flows)
		}
		select {
		case <-time.After(backoff):
		case <-ctx.Done():
			return ctx.Err()
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// session is one connection: it sends every unacknowledged batch once, and
// takes acknowledgements.
func (s *stream) session(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	report, err := s.client.Report(ctx, grpc.UseCompressor(zstd.Name))
	if err != nil {
		return fmt.Errorf("open stream: %w", err)
	}
	s.connected.Store(true)
	defer s.connected.Store(false)
	group.Go(func() error { return s.send(ctx, report) })
	group.Go(func() error { return s.receive(report) })
	return group.Wait()
}

func (s *stream) send(ctx context.Context, report flowauditv1.Ingest_ReportClient) error {
	var sent uint64
	for {
		b, err := s.queue.next(ctx, sent)
		if err != nil {
			return err
		}
		if b == nil {
			return report.CloseSend()
		}
		message := flowauditv1.FromBatch(b)
		if n := proto.Size(message); n > maxMessage {
			s.refuse(b, fmt.Sprintf("they take %d bytes, and a message has %d at most", n, maxMessage))
			continue
		}
		if err := report.Send(message); err != nil {
			if errors.Is(err, io.EOF) {
				return nil // the reason is what receive gets
			}
			if _, invalid := proto.Marshal(message); invalid != nil { // a name that is no UTF-8
				s.refuse(b, invalid.Error())
			}
			return fmt.Errorf("send batch %s: %w", b.Key, err)
		}
		sent = b.Key.Sequence
	}
}

// maxMessage is what a collector takes.
const maxMessage = 16 << 20

// refuse drops a batch that cannot be sent.
func (s *stream) refuse(b *flow.Batch, why string) {
	s.log.Error("a batch cannot be sent, its flows are lost", "batch", b.Key.String(), "flows", len(b.Flows), "error", why)
	s.queue.refuse(b.Key, why)
}

func (s *stream) receive(report flowauditv1.Ingest_ReportClient) error {
	for {
		ack, err := report.Recv()
		if errors.Is(err, io.EOF) {
			if batches, _ := s.queue.waiting(); batches > 0 {
				return errors.New("the collector ended the stream")
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("receive acknowledgement: %w", err)
		}
		key := flowauditv1.ToBatchKey(ack.GetKey())
		if ack.GetRefused() || ack.GetRejected() > 0 {
			s.log.Error("collector did not take all of a batch", "batch", key.String(), "refused", ack.GetRefused(),
				"flows", ack.GetRejected(), "error", ack.GetError())
		}
		if ack.GetRefused() {
			s.queue.refuse(key, ack.GetError())
		} else {
			s.queue.ack(key)
		}
		s.acknowledged.Add(1)
		s.acknowledgedAt.Store(time.Now().UnixNano())
		s.rejected.Add(ack.GetRejected())
	}
}

// maxBatchFlows keeps a message well below gRPC's limit.
const maxBatchFlows = 8192

// split divides flows among batches; the last one carries the coverage.
func split(b flow.Batch) []*flow.Batch {
	var out []*flow.Batch
	for len(b.Flows) > maxBatchFlows {
		part := b
		part.Flows, part.Gaps = b.Flows[:maxBatchFlows], nil
		part.Start = part.End // covers nothing by itself
		out = append(out, &part)
		b.Flows = b.Flows[maxBatchFlows:]
	}
	return append(out, &b)
}
