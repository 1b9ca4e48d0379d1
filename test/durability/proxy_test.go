package durability

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
	"github.com/flowaudit/flowaudit/proto/zstd"
)

// bytesProxy passes connections on, and cuts, delays and corrupts them.
type bytesProxy struct {
	to     string
	faults atomic.Bool
}

func newBytesProxy(t *testing.T, from, to string) *bytesProxy {
	t.Helper()
	l, err := net.Listen("unix", from)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() }) // ends Accept
	p := &bytesProxy{to: to}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.pass(c)
		}
	}()
	return p
}

func (p *bytesProxy) pass(near net.Conn) {
	defer near.Close()
	far, err := net.Dial("unix", p.to)
	if err != nil {
		return
	}
	defer far.Close()
	if p.faults.Load() {
		cut := time.AfterFunc(time.Duration(200+rand.IntN(3000))*time.Millisecond, func() { _ = near.Close() })
		defer cut.Stop()
	}
	done := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
		go func() { p.copy(way[1], way[0]); done <- struct{}{} }()
	}
	<-done // the other way ends when both are closed
}

func (p *bytesProxy) copy(to, from net.Conn) {
	b := make([]byte, 16<<10)
	for {
		n, err := from.Read(b)
		if n > 0 && p.faults.Load() {
			switch rand.IntN(40) {
			case 0:
				b[rand.IntN(n)] ^= byte(1 + rand.IntN(255))
			case 1, 2:
				time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond)
			}
		}
		if _, werr := to.Write(b[:n]); err != nil || werr != nil {
			return
		}
	}
}

// batchProxy passes batches on, duplicates and reorders them, and knows which
// the agent has sent, and which it was told are committed.
type batchProxy struct {
	flowauditv1.UnimplementedIngestServer
	client flowauditv1.IngestClient
	faults atomic.Bool

	mu                 sync.Mutex
	sent               map[string][]uint32 // by key: the ports of its flows
	epochs             map[string]uint64   // of the batches
	last               uint64              // epoch of the last one: of the agent that was stopped, not killed
	acked              map[string]bool
	doubled, reordered int
}

func newBatchProxy(t *testing.T, from string, conn *grpc.ClientConn) *batchProxy {
	t.Helper()
	l, err := net.Listen("unix", from)
	if err != nil {
		t.Fatal(err)
	}
	p := &batchProxy{client: flowauditv1.NewIngestClient(conn), sent: make(map[string][]uint32), epochs: make(map[string]uint64), acked: make(map[string]bool)}
	server := grpc.NewServer(grpc.MaxRecvMsgSize(64 << 20))
	flowauditv1.RegisterIngestServer(server, p)
	go func() { _ = server.Serve(l) }() // ends with Stop
	t.Cleanup(server.Stop)
	return p
}

func (p *batchProxy) Report(near flowauditv1.Ingest_ReportServer) error {
	group, ctx := errgroup.WithContext(near.Context())
	far, err := p.client.Report(ctx, grpc.UseCompressor(zstd.Name))
	if err != nil {
		return err
	}
	batches := make(chan *flowauditv1.Batch)
	go func() { // ends with the stream
		defer close(batches)
		for {
			b, err := near.Recv()
			if err != nil {
				return
			}
			select {
			case batches <- b:
			case <-ctx.Done():
				return
			}
		}
	}()
	group.Go(func() error { return p.forth(ctx, batches, far) })
	group.Go(func() error { return p.back(far, near) })
	return group.Wait()
}

// forth sends batches on. One may be held back until the next has gone.
func (p *batchProxy) forth(ctx context.Context, batches <-chan *flowauditv1.Batch, far flowauditv1.Ingest_ReportClient) error {
	var held *flowauditv1.Batch
	for {
		var late <-chan time.Time
		if held != nil {
			late = time.After(100 * time.Millisecond)
		}
		var out []*flowauditv1.Batch
		select {
		case b, ok := <-batches:
			if !ok {
				if held != nil {
					_ = far.Send(held) // what fails here the agent sends again
				}
				return far.CloseSend()
			}
			p.note(b)
			if held == nil && p.fault(8) {
				held = b
				continue
			}
			out = append(out, b)
			if p.fault(6) {
				out = append(out, b)
				p.count(&p.doubled)
			}
			if held != nil {
				p.count(&p.reordered)
			}
		case <-late:
		case <-ctx.Done():
			return ctx.Err()
		}
		if held != nil {
			out, held = append(out, held), nil
		}
		for _, b := range out {
			if err := far.Send(b); err != nil {
				if errors.Is(err, io.EOF) {
					return nil // the reason is what back gets
				}
				return err
			}
		}
	}
}

func (p *batchProxy) back(far flowauditv1.Ingest_ReportClient, near flowauditv1.Ingest_ReportServer) error {
	for {
		ack, err := far.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		p.mu.Lock()
		p.acked[flowauditv1.ToBatchKey(ack.GetKey()).String()] = true
		p.mu.Unlock()
		if err := near.Send(ack); err != nil {
			return err
		}
	}
}

func (p *batchProxy) fault(one int) bool { return p.faults.Load() && rand.IntN(one) == 0 }

func (p *batchProxy) count(n *int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	*n++
}

func (p *batchProxy) note(b *flowauditv1.Batch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := flowauditv1.ToBatchKey(b.GetKey())
	p.sent[key.String()], p.epochs[key.String()], p.last = b.GetFlows().GetPort(), key.Epoch, key.Epoch
}

// verify compares with the store, for which stored counts the datagrams by
// number: all that was acknowledged is there. What an agent had sent and not yet
// on disk when it was killed, nobody sends again: the ledger finds it in a gap.
func (p *batchProxy) verify(t *testing.T, stored []int) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	lost, gone := 0, 0
	for key, ports := range p.sent {
		if !p.acked[key] {
			if gone++; p.epochs[key] == p.last {
				t.Errorf("batch %s was sent, and never acknowledged, though its agent was not killed", key)
			}
			continue
		}
		for _, port := range ports {
			there := 0
			for n := int(port) - 1000; n < len(stored); n += portsEach {
				there += stored[n]
			}
			if there == 0 {
				lost++
			}
		}
	}
	if lost > 0 {
		t.Errorf("%d flows of acknowledged batches are not stored", lost)
	}
	t.Logf("%d batches were sent, %d of them twice and %d out of order by the proxy; %d were gone with the agent", len(p.sent), p.doubled, p.reordered, gone)
	if gone > len(p.sent)/20 {
		t.Errorf("%d of %d batches were sent, and never acknowledged", gone, len(p.sent))
	}
}
