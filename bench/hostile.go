package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// hostileNode is the node whose agent's certificate is in the wrong hands.
const hostileNode = "hostile"

// hostile is an agent that harms all it can.
type hostile struct {
	*nodeAgent
	did []atomic.Uint64 // by attack

	// Made once: its own costs are not what is measured.
	tooLarge, largest, usual, foreign *flowauditv1.Batch
}

// attack is one of its ways. It gives how often it got through with it until
// its stream ended.
type attack struct {
	name string
	run  func(*hostile, flowauditv1.Ingest_ReportClient) uint64
}

func attacks() []attack {
	return []attack{
		{"messages too large, which are small on the way", (*hostile).huge},
		{"messages as large as they may be", (*hostile).large},
		{"batches whose acknowledgements it does not read", (*hostile).deaf},
		{"batches of another node", (*hostile).impostor},
		{"batches that it has sent before", (*hostile).replay},
		{"agents that do not exist", (*hostile).crowd},
		{"streams that say nothing", (*hostile).idle},
	}
}

func (f *fleet) hostile() *hostile {
	h := &hostile{nodeAgent: f.newAgent(len(f.agents), hostileNode), did: make([]atomic.Uint64, len(attacks()))}
	h.tooLarge, h.largest, h.usual, h.foreign = h.own(1, 1), h.own(2, 400_000), h.own(3, 8192), h.own(4, windowFlows)
	h.tooLarge.Agent.Version = strings.Repeat("x", 20<<20)
	h.foreign.Node, h.foreign.Key.Instance = "node-0", "node-0"
	return h
}

// run attacks in all ways at once until ctx ends.
func (h *hostile) run(ctx context.Context) {
	var group sync.WaitGroup
	for i := range attacks() {
		group.Go(func() {
			for ctx.Err() == nil {
				h.attack(ctx, i)
			}
		})
	}
	group.Wait()
}

// attack attacks over a connection of its own.
func (h *hostile) attack(ctx context.Context, way int) {
	conn, err := h.dial(hostileNode)
	if err != nil {
		return
	}
	defer conn.Close()
	for ctx.Err() == nil {
		stream, err := flowauditv1.NewIngestClient(conn).Report(ctx, grpc.WaitForReady(true))
		if err != nil {
			return
		}
		h.did[way].Add(attacks()[way].run(h, stream))
	}
}

func (h *hostile) figures() (out []string) {
	for i, a := range attacks() {
		out = append(out, fmt.Sprintf("%d %s", h.did[i].Load(), a.name))
	}
	return out
}

// own makes a batch of so many flows.
func (h *hostile) own(sequence uint64, flows int) *flowauditv1.Batch {
	a := h.newAgent(h.number, hostileNode)
	a.sequence = sequence
	b := a.batch(time.Now())
	for len(b.Flows) < flows {
		b.Flows = append(b.Flows, b.Flows[:min(windowFlows, flows-len(b.Flows))]...)
	}
	return flowauditv1.FromBatch(&b)
}

// numbered gives a message another number: it is then no copy of one that came before.
func numbered(b *flowauditv1.Batch) *flowauditv1.Batch {
	n := &flowauditv1.Batch{Node: b.Node, Scope: b.Scope, Start: b.Start, End: b.End, Flows: b.Flows, Agent: b.Agent}
	n.Key = &flowauditv1.BatchKey{Cluster: benchCluster, Instance: b.Key.Instance, Epoch: b.Key.Epoch, Sequence: rand.Uint64()}
	return n
}

// pause is between its messages: what it costs itself would be taken from the
// collector's processors here.
const pause = 20 * time.Millisecond

// until sends batches, and reads what is said of them, until the stream ends.
func until(stream flowauditv1.Ingest_ReportClient, next func() *flowauditv1.Batch) (n uint64) {
	for {
		_ = stream.Send(next()) // Recv says why not
		if _, err := stream.Recv(); err != nil {
			time.Sleep(pause)
			return n
		}
		n++
		time.Sleep(pause)
	}
}

func (h *hostile) huge(stream flowauditv1.Ingest_ReportClient) uint64 {
	return 1 + until(stream, func() *flowauditv1.Batch { return h.tooLarge })
}

// large sends as many flows as a message can hold.
func (h *hostile) large(stream flowauditv1.Ingest_ReportClient) uint64 {
	return until(stream, func() *flowauditv1.Batch { return numbered(h.largest) })
}

// deaf never reads.
func (h *hostile) deaf(stream flowauditv1.Ingest_ReportClient) (n uint64) {
	for stream.Send(numbered(h.usual)) == nil {
		n++
		time.Sleep(pause)
	}
	return n
}

func (h *hostile) impostor(stream flowauditv1.Ingest_ReportClient) uint64 {
	return 1 + until(stream, func() *flowauditv1.Batch { return h.foreign })
}

func (h *hostile) replay(stream flowauditv1.Ingest_ReportClient) uint64 {
	return until(stream, func() *flowauditv1.Batch { return h.usual })
}

// crowd reports for its node as ever other instances.
func (h *hostile) crowd(stream flowauditv1.Ingest_ReportClient) uint64 {
	return until(stream, func() *flowauditv1.Batch {
		b := numbered(h.foreign)
		b.Node, b.Key.Instance, b.Flows = hostileNode, fmt.Sprint("crowd-", b.Key.Sequence), nil
		return b
	})
}

// idle opens streams beyond what it may, and leaves them.
func (h *hostile) idle(stream flowauditv1.Ingest_ReportClient) uint64 {
	select {
	case <-stream.Context().Done():
	case <-time.After(100 * time.Millisecond):
	}
	return 1
}
