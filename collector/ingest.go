package collector

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	limiter "golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// ingest is the service that agents report to.
type ingest struct {
	flowauditv1.UnimplementedIngestServer
	commit  *committer
	cluster string // whose addresses index and judge know
	index   index
	judge   *judge
	arrived *arrivals
	agents  *agents
	log     *slog.Logger

	// ready is closed when the cluster's objects are known, or will not be
	// soon: batches wait for it.
	ready  <-chan struct{}
	blind  *blind
	limits *limits
	skew   func() time.Duration // how far the API server's clock is ahead of this one

	committed, rejected, unnamed, ambiguous atomic.Uint64
}

// maxUnacknowledged bounds what one agent may have on its way into the store.
const maxUnacknowledged = 32

// Report implements the Ingest service.
func (s *ingest) Report(stream flowauditv1.Ingest_ReportServer) error {
	limit, leave, err := s.limits.enter(stream.Context())
	if err != nil {
		return err
	}
	defer leave()
	ctx, fail := context.WithCancelCause(stream.Context())
	defer fail(nil)
	group, ctx := errgroup.WithContext(ctx)
	r := &report{
		ingest: s, limit: limit, fail: fail, acks: make(chan *flowauditv1.Ack, maxUnacknowledged), slots: make(chan struct{}, maxUnacknowledged),
	}
	group.Go(func() error { return r.sendAcks(ctx, stream) })
	if err := r.take(ctx, stream); err != nil {
		fail(err)
	}
	return group.Wait()
}

// received is a batch's message, or why there is none.
type received struct {
	message []byte
	place   *place // nil until there is room for it
	err     error
}

// receive reads a message of the stream whenever next says so. Only leaving
// Report interrupts Recv, and Report must be able to leave while Recv waits: so
// this has a goroutine of its own, which nothing waits for.
func receive(stream flowauditv1.Ingest_ReportServer) (next chan<- struct{}, messages <-chan received) {
	wanted, out := make(chan struct{}, 1), make(chan received)
	go func() {
		for {
			select {
			case <-wanted:
			case <-stream.Context().Done():
				return
			}
			var r received
			r.err = stream.RecvMsg(&r.message)
			select {
			case out <- r:
			case <-stream.Context().Done():
				return
			}
		}
	}()
	return wanted, out
}

// report is one agent's stream.
type report struct {
	*ingest
	limit *limit
	fail  func(error)
	acks  chan *flowauditv1.Ack
	slots chan struct{} // one is held from a batch's arrival until its acknowledgement is sent
}

// take takes batches until the agent has sent its last. A batch that could not
// be stored fails the stream: the agent comes again and sends it again.
func (r *report) take(ctx context.Context, stream flowauditv1.Ingest_ReportServer) error {
	select {
	case <-r.ready:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	next, messages := receive(stream)
	for {
		next <- struct{}{} // has room: what came before is taken
		var m received
		select {
		case m = <-messages:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if errors.Is(m.err, io.EOF) {
			return r.close(ctx)
		}
		if m.err != nil {
			return m.err // already a status
		}
		select {
		case r.slots <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		// Only now: who does not read his acknowledgements holds no room.
		var err error
		if m.place, err = r.limit.room.take(ctx, m.message); err != nil {
			return err
		}
		submitted, err := r.store(ctx, &m)
		if !submitted {
			m.place.leave()
		}
		if err != nil {
			return err
		}
	}
}

// close ends the acknowledgements after the last one: when every slot can be
// taken, no commit is under way.
func (r *report) close(ctx context.Context) error {
	for range maxUnacknowledged {
		select {
		case r.slots <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	close(r.acks)
	return nil
}

// store hands a batch to the committer. If it was not submitted, its room is
// still taken.
func (r *report) store(ctx context.Context, m *received) (submitted bool, err error) {
	message, excess, err := read(m.message)
	if err != nil {
		return false, status.Error(codes.Internal, "decode message: "+err.Error()) // it may have been damaged on the way
	}
	m.message = nil
	ack := &flowauditv1.Ack{Key: message.GetKey()}
	batch, err := r.decode(message, excess, ack)
	if err != nil {
		r.acks <- ack // has room: a slot is held
		return false, nil
	}
	if agent, proven := agentOf(ctx); proven {
		if err := agent.Check(&batch); err != nil {
			r.log.Error("agent reports for somebody else", "error", err)
			return false, status.Error(codes.PermissionDenied, err.Error())
		}
	}
	if r.limit.flows.Limit() != limiter.Inf {
		if err := m.place.aside(ctx, func() error { return r.limit.wait(ctx, len(batch.Flows)) }); err != nil {
			return false, err
		}
	}
	var named naming
	if batch.Key.Cluster == r.cluster { // another cluster may use the same addresses
		n, err := r.name(ctx, &batch, m.place)
		if err != nil {
			return false, err
		}
		named = *n
		r.judge.flows(batch.Flows)
		r.arrived.judge(&batch, r.judge.settled)
	}
	r.agents.heard(&batch)
	undo := r.blind.add(&batch)
	err = r.commit.submit(ctx, submission{batch, func(duplicate bool, err error) {
		m.place.leave()
		if errors.Is(err, store.ErrBatch) {
			undo()
			r.log.Error("batch refused", "error", err)
			ack.Refused, ack.Error, ack.Rejected = true, err.Error(), uint64(len(batch.Flows))
			r.rejected.Add(max(1, ack.Rejected))
			r.acks <- ack
			return
		}
		if err != nil {
			r.log.Error("batch was not stored, its agent will send it again", "error", err)
			undo()
			r.fail(status.Error(codes.Unavailable, err.Error()))
			return
		}
		if !duplicate {
			r.committed.Add(uint64(len(batch.Flows)))
			r.rejected.Add(ack.GetRejected())
			r.unnamed.Add(named.unnamed)
			r.ambiguous.Add(named.ambiguous)
			r.agents.stored(&batch)
		}
		r.acks <- ack
	}})
	return err == nil, err
}

// maxNameWait bounds how long a batch waits for names, whatever the clocks say.
const (
	maxNameWait   = 10 * time.Second
	nameLookEvery = 500 * time.Millisecond // news may make further waiting needless
)

// name names a batch's flows. Where news of who had an address may still come,
// it waits for them a while: the batch is neither stored nor acknowledged before.
func (r *report) name(ctx context.Context, b *flow.Batch, at *place) (*naming, error) {
	n := newNaming(r.index, b.Node, b.Flows)
	n.ahead = r.skew() - b.Agent.Skew
	n.name(b.Flows)
	for last := time.Now().Add(maxNameWait); time.Now().Before(last); n.name(b.Flows) {
		wait := min(time.Until(n.due), time.Until(last), nameLookEvery)
		if wait <= 0 {
			break
		}
		err := at.aside(ctx, func() error {
			select {
			case <-time.After(wait):
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return n, nil
}

// decode reads a batch, unless excess says why it is refused. What cannot be used
// is named in ack.
func (s *ingest) decode(message *flowauditv1.Batch, excess error, ack *flowauditv1.Ack) (batch flow.Batch, err error) {
	var invalid int
	var first error
	if err = excess; err == nil {
		batch, invalid, first, err = message.ToBatch()
	}
	if err != nil {
		ack.Refused, ack.Error = true, err.Error()
		ack.Rejected = uint64(len(message.GetFlows().GetSrc()))
		s.rejected.Add(max(1, ack.Rejected))
		s.log.Error("batch refused", "node", message.GetNode(), "batch", flowauditv1.ToBatchKey(message.GetKey()).String(), "error", err)
		return batch, err
	}
	if invalid > 0 {
		ack.Rejected, ack.Error = uint64(invalid), first.Error()
		batch.Gaps = append(batch.Gaps, flow.Gap{
			Node: batch.Node, Source: "collector", Kind: flow.GapMalformed, Start: batch.Start, End: batch.End, Lost: uint64(invalid),
			Detail: "flows were left out of what the agent sent: " + first.Error(),
		})
		s.log.Error("flows left out of a batch", "node", batch.Node, "batch", batch.Key.String(), "flows", invalid, "error", first)
	}
	return batch, nil
}

func (r *report) sendAcks(ctx context.Context, stream flowauditv1.Ingest_ReportServer) error {
	for {
		select {
		case ack, ok := <-r.acks:
			if !ok {
				return nil
			}
			<-r.slots
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
