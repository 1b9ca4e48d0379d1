package collector

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// TestAcknowledgedOnlyAfterTheCommit: an agent forgets what is acknowledged.
func TestAcknowledgedOnlyAfterTheCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := make(chan struct{})
		store := &memory{onAppend: func([]flow.Batch) error { <-disk; return nil }}
		c := serve(t, store)
		defer c.close(t)
		stream := c.report(t)
		acks := make(chan *flowauditv1.Ack, 1)
		go func() {
			ack, _ := stream.Recv()
			acks <- ack
		}()
		send(t, stream, batchOf(1, denied(2)...))
		synctest.Wait()
		select {
		case ack := <-acks:
			t.Fatalf("acknowledged before the commit: %v", ack)
		default:
		}
		close(disk)
		ack := <-acks
		if got := flowauditv1.ToBatchKey(ack.GetKey()); got != batchOf(1).Key || ack.GetRejected() != 0 || ack.GetError() != "" || ack.GetRefused() {
			t.Errorf("acknowledgement %v, want one of batch 1 without a fault", ack)
		}
		if got := store.stored(); !slices.Equal(got, []uint64{1}) {
			t.Errorf("stored %v, want batch 1", got)
		}
	})
}

func TestAResendIsAcknowledgedAndCountsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memory{}
		c := serve(t, store)
		defer c.close(t)
		b := batchOf(1, denied(2)...)
		b.Gaps = []flow.Gap{{Node: "node-1", Kind: flow.GapOverrun, Start: b.Start, End: b.Start}}
		b.Agent.Observations = 5
		c.keep(t, b)
		c.keep(t, b, b)
		if got := store.stored(); !slices.Equal(got, []uint64{1}) {
			t.Errorf("stored %v, want batch 1 once", got)
		}
		s, err := c.query().Status(t.Context(), &flowauditv1.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if s.GetCommitted() != 2 || s.GetUnnamed() != 2 || len(s.GetAgents()) != 1 || len(s.GetAgents()[0].GetGaps()) != 1 {
			t.Errorf("status counts what came again: %v", s)
		}
	})
}

// TestInvalidFlowsCostThemselvesOnly: the acknowledgement names the first.
func TestInvalidFlowsCostThemselvesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memory{}
		c := serve(t, store)
		defer c.close(t)
		stream := c.report(t)
		b := batchOf(1, denied(4)...)
		b.Gaps = []flow.Gap{{Node: "node-1", Start: b.Start, End: b.Start}}
		m := flowauditv1.FromBatch(&b)
		m.Flows.Port[1] = 70_000
		m.Flows.Verdict[3] = 17
		if err := stream.Send(m); err != nil {
			t.Fatal(err)
		}
		ack := receiveAck(t, stream)
		if ack.GetRejected() != 2 || ack.GetRefused() || ack.GetError() != "flow 1, field port: 70000 is no port" {
			t.Errorf("acknowledgement %v", ack)
		}
		send(t, stream, batchOf(2, denied(1)...))
		receiveAck(t, stream)
		if got := ports(store.batches[0].Flows); !slices.Equal(got, []uint16{1, 3}) || len(store.batches[0].Gaps) != 2 || store.batches[0].Gaps[1].Lost != 2 || len(store.batches) != 2 {
			t.Errorf("stored ports %v, %d gaps and %d batches; want the valid flows, the gap, one that tells of the others, and the batch after it", got, len(store.batches[0].Gaps), len(store.batches))
		}
		if n := c.collector.ingest.rejected.Load(); n != 2 {
			t.Errorf("%d flows counted as rejected, want 2", n)
		}
	})
}

func TestARefusedBatchIsNotStored(t *testing.T) {
	for _, test := range []struct {
		name     string
		spoil    func(*flowauditv1.Batch)
		rejected uint64
		want     string
	}{
		{"columns of different lengths", func(b *flowauditv1.Batch) { b.Flows.Dst = b.Flows.Dst[1:] }, 3, "field dst: the column has 2 values, src has 3"},
		{"an address of no length", func(b *flowauditv1.Batch) { b.Flows.Addresses[0] = []byte{1, 2} }, 3, "field addresses[0]: 2 bytes are no address"},
		{"no key", func(b *flowauditv1.Batch) { b.Key = nil }, 3, "field key: "},
		{"no time", func(b *flowauditv1.Batch) { b.Start, b.End = 0, 0 }, 3, "field end: "},
		{"nothing at all", func(b *flowauditv1.Batch) { b.Reset() }, 0, "field key: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := &memory{}
				c := serve(t, store)
				defer c.close(t)
				stream := c.report(t)
				b := batchOf(1, denied(3)...)
				m := flowauditv1.FromBatch(&b)
				test.spoil(m)
				if err := stream.Send(m); err != nil {
					t.Fatal(err)
				}
				ack := receiveAck(t, stream)
				if !ack.GetRefused() || ack.GetRejected() != test.rejected || !strings.HasPrefix(ack.GetError(), test.want) {
					t.Errorf("acknowledgement %v, want a refusal of %d flows that says %q", ack, test.rejected, test.want)
				}
				send(t, stream, batchOf(2, denied(1)...))
				receiveAck(t, stream)
				if got := store.stored(); !slices.Equal(got, []uint64{2}) {
					t.Errorf("stored %v, want only the batch that came after it", got)
				}
				if n := c.collector.ingest.rejected.Load(); n == 0 {
					t.Error("the refusal is not counted")
				}
			})
		})
	}
}

// What a store can never hold is not asked for again.
func TestABatchThatCannotBeStoredIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &memory{onAppend: func(batches []flow.Batch) error {
			if batches[0].Key.Sequence == 1 {
				return fmt.Errorf("%w: a value is too large", store.ErrBatch)
			}
			return nil
		}}
		c := serve(t, s)
		defer c.close(t)
		stream := c.report(t)
		send(t, stream, batchOf(1, denied(3)...))
		if ack := receiveAck(t, stream); !ack.GetRefused() || ack.GetRejected() != 3 || !strings.Contains(ack.GetError(), "a value is too large") {
			t.Errorf("acknowledgement %v, want a refusal of 3 flows that says why", ack)
		}
		send(t, stream, batchOf(2, denied(1)...))
		if ack := receiveAck(t, stream); ack.GetRefused() {
			t.Errorf("acknowledgement %v of a batch that can be stored", ack)
		}
		if got := s.stored(); !slices.Equal(got, []uint64{2}) {
			t.Errorf("stored %v, want only the batch that came after it", got)
		}
	})
}

// TestAStoreErrorEndsTheStream: the agent then comes again, and sends again.
func TestAStoreErrorEndsTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		full := true
		store := &memory{onAppend: func([]flow.Batch) error {
			if full {
				return errDisk
			}
			return nil
		}}
		c := serve(t, store)
		defer c.close(t)
		stream := c.report(t)
		send(t, stream, batchOf(1, denied(1)...))
		ack, err := stream.Recv()
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "store batch c/node-1/1/1: "+errDisk.Error()) {
			t.Fatalf("the stream gave %v, %v; want the store's error and the batch's name", ack, err)
		}
		if s, err := c.query().Status(t.Context(), &flowauditv1.StatusRequest{}); err != nil || !strings.Contains(strings.Join(s.GetProblems(), "\n"), errDisk.Error()) {
			t.Errorf("status tells of problems %v, %v; want the store's", s.GetProblems(), err)
		}
		full = false
		c.keep(t, batchOf(1, denied(1)...))
		if got := store.stored(); !slices.Equal(got, []uint64{1}) {
			t.Errorf("stored %v", got)
		}
	})
}

// TestTheLastBatchesAreAcknowledged: an agent that has sent its last half-closes
// the stream, and waits for what is still being committed.
func TestTheLastBatchesAreAcknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := make(chan struct{})
		store := &memory{onAppend: func([]flow.Batch) error { <-disk; return nil }}
		c := serve(t, store)
		defer c.close(t)
		stream := c.report(t)
		const n = 2*maxUnacknowledged + 5
		for i := range uint64(n) {
			send(t, stream, batchOf(i+1, denied(1)...))
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		close(disk)
		var got []uint64
		for {
			ack, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, ack.GetKey().GetSequence())
		}
		slices.Sort(got)
		if got = slices.Compact(got); len(got) != n || got[n-1] != n {
			t.Errorf("%d batches acknowledged, want %d", len(got), n)
		}
	})
}

// TestABusyStoreHoldsAgentsBack: what waits in memory is bounded for each.
func TestABusyStoreHoldsAgentsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := make(chan struct{})
		var appending, stored int
		store := &memory{onAppend: func(b []flow.Batch) error {
			appending = len(b)
			<-disk
			stored += len(b)
			return nil
		}}
		c := serve(t, store)
		defer c.close(t)
		stream := c.report(t)
		const n = 2 * maxUnacknowledged
		for i := range uint64(n) {
			send(t, stream, batchOf(i+1, denied(1)...))
		}
		synctest.Wait()
		if held := appending + len(c.committer.waiting); held != maxUnacknowledged {
			t.Errorf("%d batches are on their way into the store, want %d", held, maxUnacknowledged)
		}
		close(disk)
		synctest.Wait()
		if stored != n {
			t.Errorf("%d batches stored in the end, want %d", stored, n)
		}
	})
}

func TestAnAgentThatBreaksOffLosesNothingThatIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := make(chan struct{})
		store := &memory{onAppend: func([]flow.Batch) error { <-disk; return nil }}
		c := serve(t, store)
		defer c.close(t)
		stream := c.report(t)
		send(t, stream, batchOf(1, denied(1)...), batchOf(2, denied(1)...))
		synctest.Wait()
		_ = c.conn.Close()
		synctest.Wait()
		close(disk)
		synctest.Wait()
		if got := store.stored(); !slices.Equal(got, []uint64{1, 2}) {
			t.Errorf("stored %v, want both", got)
		}
	})
}

func TestFlowsAreNamedBeforeTheyAreStored(t *testing.T) {
	pod := &flow.Endpoint{Kind: flow.EndpointPod, Namespace: "shop", Pod: "web-0", Node: "node-1"}
	db := &flow.Endpoint{Kind: flow.EndpointPod, Namespace: "shop", Pod: "db-0", Node: "node-2"}
	said := &flow.Endpoint{Kind: flow.EndpointPod, Namespace: "shop", Pod: "said-by-the-agent", Node: "node-2"}
	outside := &flow.Endpoint{Kind: flow.EndpointOutside}
	service := &flow.Service{Namespace: "shop", Name: "db", Port: 3306}
	at := time.UnixMilli(1_700_000_000_000)
	known := names{"10.0.0.1": pod, "10.0.0.2": db}
	for _, test := range []struct {
		name          string
		index         names
		source, dest  *flow.Endpoint
		node          string
		wantSource    *flow.Endpoint
		wantDest      *flow.Endpoint
		wantDirection flow.Direction
		unnamed       uint64
	}{
		{"both by the index, of the source's node", known, nil, nil, "node-1", pod, db, flow.DirectionEgress, 0},
		{"of the destination's node", known, nil, nil, "node-2", pod, db, flow.DirectionIngress, 0},
		{"of a third node", known, nil, nil, "node-3", pod, db, flow.DirectionUnknown, 0},
		{"the agent knew better", known, nil, said, "node-1", pod, said, flow.DirectionEgress, 0},
		{"outside is what the agent could not know", known, outside, nil, "node-1", pod, db, flow.DirectionEgress, 0},
		{"outside stays where the index does not know", names{}, outside, nil, "node-1", outside, nil, flow.DirectionUnknown, 1},
		{"nobody knows", names{}, nil, nil, "node-1", nil, nil, flow.DirectionUnknown, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := flowTo(3306, flow.VerdictDenied)
			f.Direction, f.Start = flow.DirectionUnknown, at
			f.Source, f.Destination, f.Service = test.source, test.dest, &flow.Service{Port: 3306}
			flows := []flow.Flow{f}
			if n := nameFlows(serviceOf{test.index, service}, test.node, flows); n.unnamed != test.unnamed {
				t.Errorf("%d flows without a name, want %d", n.unnamed, test.unnamed)
			}
			if f = flows[0]; f.Source != test.wantSource || f.Destination != test.wantDest || f.Direction != test.wantDirection || f.Service != service {
				t.Errorf("named %+v -> %+v %s via %+v", f.Source, f.Destination, f.Direction, f.Service)
			}
		})
	}
}
