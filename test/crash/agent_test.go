package crash

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/proto/dial"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

const (
	batchFlows = 200
	inFlight   = 16 // batches that an agent sends before it waits for acknowledgements
	deniedOf   = 10 // every so many flows is refused
	keysOf     = 60 // pairs of pods that an agent reports
)

// totals are what may not be lost, and not count twice.
type totals struct{ Connections, Denied, Edges, Batches, Gaps int64 }

// agent does what flowaudit-agent does with its batches: it keeps each until it
// is acknowledged, and after every break sends them again, to another collector.
type agent struct {
	number     int
	collectors []string

	mu           sync.Mutex
	pending      []flow.Batch
	next         uint64
	sent, breaks int
	last         error // that broke a stream
	acknowledged totals
}

// stored is what was acknowledged so far.
func (a *agent) stored() totals {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.acknowledged
}

// has is an error until so many batches are acknowledged.
func (a *agent) has(batches int64) error {
	if n := a.stored().Batches; n < batches {
		return fmt.Errorf("%d batches are acknowledged, want %d; the last break: %s", n, batches, a.broke())
	}
	return nil
}

// broke is why the last stream broke.
func (a *agent) broke() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return fmt.Sprint(a.last)
}

// run sends batches until ctx ends, and returns when all are acknowledged.
func (a *agent) run(ctx context.Context, t *testing.T) {
	for at := a.number; ; at++ {
		err := a.session(ctx, t, a.collectors[at%len(a.collectors)])
		if err == nil {
			return
		}
		if t.Context().Err() != nil {
			t.Errorf("agent %d has %d batches left: %v", a.number, len(a.pending), err)
			return
		}
		a.mu.Lock()
		a.breaks++
		a.last = err
		a.mu.Unlock()
		select {
		case <-time.After(50 * time.Millisecond):
		case <-t.Context().Done():
		}
	}
}

// session sends through one collector, until a break or the end.
func (a *agent) session(ctx context.Context, t *testing.T, collector string) error {
	conn, err := dial.Options{Address: collector}.Conn()
	if err != nil {
		return err
	}
	defer conn.Close()
	streamCtx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := flowauditv1.NewIngestClient(conn).Report(streamCtx)
	if err != nil {
		return err
	}
	room := make(chan struct{}, inFlight)
	failed := make(chan error, 1)
	go func() { failed <- a.receive(stream, room) }()
	for i := 0; ; i++ {
		b, ok := a.batch(ctx, i)
		if !ok {
			return a.finish(stream, failed)
		}
		select {
		case room <- struct{}{}:
		case err := <-failed:
			return err
		}
		if err := stream.Send(flowauditv1.FromBatch(b)); err != nil {
			return errors.Join(err, <-failed)
		}
	}
}

// finish waits for the last acknowledgements.
func (a *agent) finish(stream flowauditv1.Ingest_ReportClient, failed <-chan error) error {
	if err := stream.CloseSend(); err != nil {
		return err
	}
	err := <-failed
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.pending) == 0 {
		return nil
	}
	return errors.Join(err, fmt.Errorf("%d batches are not acknowledged", len(a.pending)))
}

// receive takes acknowledgements until the stream ends. They come in order.
func (a *agent) receive(stream flowauditv1.Ingest_ReportClient, room <-chan struct{}) error {
	for {
		ack, err := stream.Recv()
		if err != nil {
			return err
		}
		if ack.GetRefused() || ack.GetRejected() > 0 {
			return errors.New(ack.GetError())
		}
		a.mu.Lock()
		for i := range a.pending {
			if b := &a.pending[i]; b.Key == flowauditv1.ToBatchKey(ack.GetKey()) {
				a.acknowledged.add(b)
				a.pending = append(a.pending[:i], a.pending[i+1:]...)
				a.sent--
				break
			}
		}
		a.mu.Unlock()
		<-room
	}
}

// batch gives the next batch of a session: first those that are pending, then
// new ones until ctx ends. i counts the batches of the session.
func (a *agent) batch(ctx context.Context, i int) (*flow.Batch, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if i == 0 {
		a.sent = 0
	}
	if a.sent == len(a.pending) {
		if ctx.Err() != nil {
			return nil, false
		}
		a.next++
		a.pending = append(a.pending, newBatch(a.number, a.next))
	}
	b := a.pending[a.sent]
	a.sent++
	return &b, true
}

func (s *totals) add(b *flow.Batch) {
	for _, f := range b.Flows {
		s.Connections += int64(f.Connections)
		s.Edges += int64(f.Connections)
		if f.Verdict == flow.VerdictDenied {
			s.Denied += int64(f.Connections)
		}
	}
	s.Batches++
	s.Gaps += int64(len(b.Gaps))
}

func (s *totals) plus(o totals) {
	s.Connections += o.Connections
	s.Denied += o.Denied
	s.Edges += o.Edges
	s.Batches += o.Batches
	s.Gaps += o.Gaps
}

// newBatch makes a batch of an agent: pods of its node talk to others.
func newBatch(agent int, sequence uint64) flow.Batch {
	node := fmt.Sprintf("node-%d", agent)
	now := time.Now().Truncate(time.Millisecond)
	b := flow.Batch{
		Key: flow.BatchKey{Cluster: "elsewhere", Instance: node, Epoch: 1, Sequence: sequence}, Node: node, Start: now.Add(-time.Second), End: now,
		Gaps: []flow.Gap{{Node: node, Kind: flow.GapOverrun, Start: now, End: now, Lost: sequence}},
	}
	for i := range batchFlows {
		n := i % keysOf
		f := flow.Flow{
			Key: flow.Key{
				Protocol: flow.TCP, Src: netip.AddrFrom4([4]byte{10, byte(agent), 1, byte(n)}), Dst: netip.AddrFrom4([4]byte{10, byte(agent), 2, byte(n)}), Port: 443,
				Verdict: flow.VerdictAllowed, Direction: flow.DirectionEgress,
			},
			Start: now.Add(-time.Duration(i) * time.Millisecond), End: now, Cluster: "elsewhere", Node: node, Connections: uint64(1 + i%3),
			Source:      &flow.Endpoint{Kind: flow.EndpointPod, Namespace: "shop", Pod: fmt.Sprintf("web-%d-%d", agent, n), Node: node, Identity: uint64(agent*keysOf + n + 1)},
			Destination: &flow.Endpoint{Kind: flow.EndpointPod, Namespace: "shop", Pod: fmt.Sprintf("db-%d-%d", agent, n), Identity: 1},
		}
		if n%deniedOf == 0 {
			f.Verdict, f.Reason = flow.VerdictDenied, flow.ReasonLogged
		}
		b.Flows = append(b.Flows, f)
	}
	return b
}

// askSQL asks one SELECT of one row through a collector.
func askSQL(ctx context.Context, collector, text string) ([]float64, error) {
	conn, err := dial.Options{Address: collector}.Conn()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stream, err := flowauditv1.NewQueryClient(conn).Select(ctx, &flowauditv1.SelectRequest{Query: text}, grpc.WaitForReady(true))
	if err != nil {
		return nil, err
	}
	answer, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	var out []float64
	for _, r := range answer.GetRows() {
		for _, v := range r.GetValues() {
			out = append(out, v.GetNumberValue())
		}
	}
	return out, nil
}
