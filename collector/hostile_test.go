package collector

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/proto/dial"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
	"github.com/flowaudit/flowaudit/proto/zstd"
)

// TestMoreThanAnAgentSays is refused, and the stream goes on.
func TestMoreThanAnAgentSays(t *testing.T) {
	s := &memory{}
	r := serve(t, s)
	defer r.close(t)
	stream := r.report(t)
	remarks := batchOf(2, denied(1)...)
	remarks.Gaps = []flow.Gap{{Node: "node-1", Start: time.Now(), End: time.Now(), Detail: strings.Repeat("x", maxRemarks)}}
	for i, c := range []struct {
		batch flow.Batch
		err   string
	}{
		{batchOf(1, denied(maxFlows+1)...), fmt.Sprint(maxFlows+1, " flows")},
		{remarks, "beside its flows"},
		{batchOf(3, denied(maxFlows)...), ""},
	} {
		send(t, stream, c.batch)
		if ack := receiveAck(t, stream); ack.GetRefused() != (c.err != "") || !strings.Contains(ack.GetError(), c.err) {
			t.Errorf("%d: refused %t, %q", i+1, ack.GetRefused(), ack.GetError())
		}
	}
	if got := s.stored(); len(got) != 1 || got[0] != 3 {
		t.Errorf("batches %v are stored, want 3", got)
	}
}

// TestRoomOfOneAgent: the large messages of one take turns, and others' do not wait for them.
func TestRoomOfOneAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimits(0)
		hostile, other := l.room(), l.room()
		large := make([]byte, 2*agentBytes)
		first, err := hostile.take(t.Context(), large)
		if err != nil {
			t.Fatal(err)
		}
		second := make(chan *place, 1)
		go func() {
			p, err := hostile.take(t.Context(), large)
			if err != nil {
				t.Error(err)
			}
			second <- p
		}()
		synctest.Wait()
		if len(second) > 0 {
			t.Error("two large messages of one agent have room at once")
		}
		p, err := other.take(t.Context(), large)
		if err != nil {
			t.Fatal(err)
		}
		p.leave()
		first.leave()
		(<-second).leave()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		all, err := other.take(t.Context(), large)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := other.take(ctx, large); err == nil {
			t.Error("who has gone gets room")
		}
		all.leave()
	})
}

// TestWhoWaitsForHisRateIsAside: what an agent sends beyond its rate keeps no room from others.
func TestWhoWaitsForHisRateIsAside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimits(0)
		one := make([]byte, agentBytes)
		for range allBytes / agentBytes {
			p, err := l.room().take(t.Context(), one)
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				defer p.leave()
				_ = p.aside(t.Context(), func() error { time.Sleep(time.Minute); return nil })
			}()
		}
		synctest.Wait()
		began := time.Now()
		p, err := l.room().take(t.Context(), one)
		if err != nil || time.Since(began) != 0 {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		p.leave()
		time.Sleep(2 * time.Minute)
	})
}

// TestInstancesOfANode are bounded: the one that was silent for the longest time is forgotten.
func TestInstancesOfANode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgents()
		hear := func(node, instance string) {
			b := batchFrom(node, 1)
			b.Key.Instance = instance
			a.heard(&b)
			time.Sleep(time.Second)
		}
		hear("quiet", "q")
		for i := range 3 * maxInstances {
			hear("hostile", fmt.Sprint(i))
			hear("hostile", "steady")
		}
		var known []string
		for _, r := range a.list() {
			known = append(known, r.instance)
		}
		all := strings.Join(known, " ")
		if len(known) != maxInstances+1 || !strings.Contains(all, "steady") || !strings.HasSuffix(all, "q") {
			t.Errorf("%d known: %s", len(known), all)
		}
		time.Sleep(2 * agentMemory)
		if a.list(); len(a.known)+len(a.of) > 0 {
			t.Errorf("after %s %d are known still", 2*agentMemory, len(a.known))
		}
	})
}

// TestOneHostileAgentHarmsNobody: while it does all it can, two hundred others
// report, over connections of their own, and all of theirs is stored once.
func TestOneHostileAgentHarmsNobody(t *testing.T) {
	const others, batches = 200, 5
	a := newAuthority(t, "ours")
	cert, key := a.server(t)
	s := &memory{}
	address := run(t, Options{Store: s, Cluster: "c", Listen: ListenOptions{Address: "127.0.0.1:0", Cert: cert, Key: key, ClientCA: a.ca}}).String()
	connect := func(node string) *grpc.ClientConn {
		cert, key := a.agent(t, "flowaudit://c/node/"+node)
		conn, err := dial.Options{Address: address, CA: a.ca, Cert: cert, Key: key}.Conn()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() }) // nothing is sent on it any more
		return conn
	}
	attacking, peace := context.WithCancel(t.Context())
	var hostile, rest sync.WaitGroup
	conn := connect("hostile")
	for _, attack := range attacks() {
		hostile.Go(func() {
			for attacking.Err() == nil {
				ctx, cancel := context.WithCancel(attacking)
				if stream, err := flowauditv1.NewIngestClient(conn).Report(ctx, grpc.UseCompressor(zstd.Name)); err == nil {
					attack(t, stream)
				}
				cancel()
			}
		})
	}
	for n := range others {
		node := fmt.Sprintf("node-%d", n)
		conn := connect(node)
		rest.Go(func() {
			stream, err := flowauditv1.NewIngestClient(conn).Report(t.Context(), grpc.UseCompressor(zstd.Name))
			if err != nil {
				t.Errorf("%s: %v", node, err)
				return
			}
			for i := range batches {
				b := batchFrom(node, uint64(i+1), denied(100)...)
				if err := stream.Send(flowauditv1.FromBatch(&b)); err != nil {
					_, err = stream.Recv()
					t.Errorf("%s: %v", node, err)
					return
				}
				if ack, err := stream.Recv(); err != nil || ack.GetRefused() || ack.GetRejected() > 0 {
					t.Errorf("%s: %v, %v", node, ack, err)
					return
				}
			}
		})
	}
	rest.Wait()
	peace()
	hostile.Wait()
	stored := make(map[string]int)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.batches {
		if stored[b.Node]++; b.Node != "hostile" && b.Key.Epoch != 1 {
			t.Errorf("%s has a batch %s that is not its own", b.Node, b.Key)
		}
	}
	delete(stored, "hostile")
	if len(stored) != others {
		t.Errorf("batches of %d nodes are stored, want %d", len(stored), others)
	}
	for node, n := range stored {
		if n != batches {
			t.Errorf("%d batches of %s are stored, want %d", n, node, batches)
		}
	}
}

// attacks are what a hostile agent does with a stream.
func attacks() []func(*testing.T, flowauditv1.Ingest_ReportClient) {
	repeat := func(b flow.Batch, code codes.Code) func(*testing.T, flowauditv1.Ingest_ReportClient) {
		message := flowauditv1.FromBatch(&b)
		return func(t *testing.T, stream flowauditv1.Ingest_ReportClient) {
			_ = stream.Send(message) // Recv says why not
			if _, err := stream.Recv(); status.Code(err) != code && stream.Context().Err() == nil && status.Code(err) != codes.ResourceExhausted {
				t.Errorf("batch of %s: %v, want %s", b.Node, err, code)
			}
		}
	}
	foreign := batchFrom("node-0", 1, denied(100)...)
	foreign.Key.Epoch = 666
	huge := batchFrom("hostile", 2, denied(1)...)
	huge.Agent.Version = strings.Repeat("x", 4*maxMessage)
	deaf := batchFrom("hostile", 3, denied(8192)...)
	return []func(*testing.T, flowauditv1.Ingest_ReportClient){
		repeat(foreign, codes.PermissionDenied),
		repeat(huge, codes.ResourceExhausted),
		repeat(batchFrom("hostile", 4, denied(8192)...), codes.OK), // again and again
		repeat(batchFrom("hostile", 5, denied(maxFlows)...), codes.OK),
		func(_ *testing.T, stream flowauditv1.Ingest_ReportClient) { // never reads
			for message := flowauditv1.FromBatch(&deaf); stream.Send(message) == nil; {
				message.Key.Instance = "again"
			}
		},
		func(_ *testing.T, stream flowauditv1.Ingest_ReportClient) { // says nothing
			select {
			case <-stream.Context().Done():
			case <-time.After(10 * time.Millisecond):
			}
		},
	}
}

// TestCountFlows agrees with the decoder, and takes whatever comes.
func TestCountFlows(t *testing.T) {
	for _, n := range []int{0, 1, 300} {
		b := batchOf(1, denied(n)...)
		message, err := proto.Marshal(flowauditv1.FromBatch(&b))
		if err != nil {
			t.Fatal(err)
		}
		if got := countFlows(message); got != n {
			t.Errorf("%d flows, want %d", got, n)
		}
		for i := range message {
			_ = countFlows(message[:i])
		}
	}
	many := batchOf(7, denied(maxFlows+1)...)
	message, err := proto.Marshal(flowauditv1.FromBatch(&many))
	if err != nil {
		t.Fatal(err)
	}
	if b, excess, err := read(message); err != nil || excess == nil || b.GetKey().GetSequence() != 7 || b.Flows != nil {
		t.Errorf("%v, %v: want the key only, and why", excess, err)
	}
}

// FuzzMessage: no message makes more flows than are counted as too many.
func FuzzMessage(f *testing.F) {
	for _, n := range []int{0, 3} {
		b := batchOf(1, denied(n)...)
		message, err := proto.Marshal(flowauditv1.FromBatch(&b))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(message)
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		b, excess, err := read(message)
		if err == nil && excess == nil && len(b.GetFlows().GetSrc()) > maxFlows {
			t.Errorf("%d flows are let through", len(b.GetFlows().GetSrc()))
		}
	})
}
