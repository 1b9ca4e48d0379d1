package collector

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flowaudit/flowaudit/flow"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// ingest is the service that agents report to.
type ingest struct {
	flowauditv1.UnimplementedIngestServer
	commit *committer
	index  index
	agents *agents
	log    *slog.Logger

	committed, rejected, unnamed atomic.Uint64
}

// maxUnacknowledged bounds what one agent may have on its way into the store.
const maxUnacknowledged = 32

// Report implements the Ingest service.
func (s *ingest) Report(stream flowauditv1.Ingest_ReportServer) error {
	acks := make(chan *flowauditv1.Ack, maxUnacknowledged)
	slots := make(chan struct{}, maxUnacknowledged)
	ctx, fail := context.WithCancelCause(stream.Context())
	defer fail(nil)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return sendAcks(ctx, stream, acks, slots) })
	group.Go(func() error {
		err := s.receive(ctx, stream, acks, slots, fail)
		// Every slot taken here means that no commit is under way: acks can close.
		for range maxUnacknowledged {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return err
			}
		}
		close(acks)
		return err
	})
	return group.Wait()
}

// receive reads batches until the agent has sent its last. A batch that could
// not be stored fails the stream: the agent comes again and sends it again.
func (s *ingest) receive(ctx context.Context, stream flowauditv1.Ingest_ReportServer, acks chan<- *flowauditv1.Ack, slots chan struct{}, fail func(error)) error {
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err // already a status
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		ack := &flowauditv1.Ack{Key: message.GetKey()}
		batch, err := s.decode(message, ack)
		if err != nil {
			acks <- ack // has room: a slot is held
			continue
		}
		if err := s.commit.submit(ctx, submission{batch, func(err error) {
			if err == nil {
				s.committed.Add(uint64(len(batch.Flows)))
				acks <- ack
				return
			}
			s.log.Error("batch was not stored, its agent will send it again", "error", err)
			<-slots
			fail(status.Error(codes.Unavailable, err.Error()))
		}}); err != nil {
			return err
		}
	}
}

// decode reads and names a batch. What cannot be used is counted and named in ack.
func (s *ingest) decode(message *flowauditv1.Batch, ack *flowauditv1.Ack) (flow.Batch, error) {
	batch, invalid, first, err := message.ToBatch()
	if err != nil {
		ack.Refused, ack.Error = true, err.Error()
		ack.Rejected = uint64(len(message.GetFlows().GetSrc()))
		s.rejected.Add(max(1, ack.Rejected))
		s.log.Error("batch refused", "node", message.GetNode(), "batch", flowauditv1.ToBatchKey(message.GetKey()).String(), "error", err)
		return batch, err
	}
	if invalid > 0 {
		ack.Rejected, ack.Error = uint64(invalid), first.Error()
		s.rejected.Add(uint64(invalid))
		s.log.Error("flows left out of a batch", "node", batch.Node, "batch", batch.Key.String(), "flows", invalid, "error", first)
	}
	s.unnamed.Add(nameFlows(s.index, batch.Node, batch.Flows))
	s.agents.saw(&batch)
	return batch, nil
}

func sendAcks(ctx context.Context, stream flowauditv1.Ingest_ReportServer, acks <-chan *flowauditv1.Ack, slots <-chan struct{}) error {
	for {
		select {
		case ack, ok := <-acks:
			if !ok {
				return nil
			}
			<-slots
			if err := stream.Send(ack); err != nil {
				return fmt.Errorf("send acknowledgement: %w", err)
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// invalidArgument tells the asker what is wrong with the question.
func invalidArgument(err error) error { return status.Error(codes.InvalidArgument, err.Error()) }
