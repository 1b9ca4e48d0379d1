package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/flowaudit/flowaudit/flow"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// hostileNode is the node whose agent's certificate is in the wrong hands.
const hostileNode = "hostile"

// hostile is an agent that harms all it can, without a pause.
type hostile struct {
	*nodeAgent
	did []atomic.Uint64 // by attack
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
	return &hostile{nodeAgent: f.newAgent(len(f.agents), hostileNode), did: make([]atomic.Uint64, len(attacks()))}
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

func (h *hostile) huge(stream flowauditv1.Ingest_ReportClient) uint64 {
	b := h.own(1, 1)
	b.Agent.Version = strings.Repeat("x", 256<<20)
	_ = stream.Send(b) // Recv says why not
	_, _ = stream.Recv()
	return 1
}

// large sends as many flows as a message can hold.
func (h *hostile) large(stream flowauditv1.Ingest_ReportClient) (n uint64) {
	const flows = 400_000
	b := h.own(2, flows)
	for stream.Send(b) == nil {
		if _, err := stream.Recv(); err != nil {
			return n
		}
		n++
		b.Key.Sequence += 1 << 32
	}
	return n
}

// deaf never reads.
func (h *hostile) deaf(stream flowauditv1.Ingest_ReportClient) (n uint64) {
	b := h.own(3, 8192)
	for stream.Send(b) == nil {
		n++
		b.Key.Sequence += 1 << 32
	}
	return n
}

func (h *hostile) impostor(stream flowauditv1.Ingest_ReportClient) uint64 {
	b := h.own(4, windowFlows)
	b.Node, b.Key.Instance = "node-0", "node-0"
	_ = stream.Send(b)
	_, _ = stream.Recv()
	return 1
}

func (h *hostile) replay(stream flowauditv1.Ingest_ReportClient) (n uint64) {
	b := h.own(5, 8192)
	for stream.Send(b) == nil {
		if _, err := stream.Recv(); err != nil {
			return n
		}
		n++
	}
	return n
}

// crowd reports for its node as ever other instances.
func (h *hostile) crowd(stream flowauditv1.Ingest_ReportClient) (n uint64) {
	b := h.own(6, 1)
	for {
		b.Key.Instance = fmt.Sprint("crowd-", time.Now().UnixNano())
		b.Gaps = []*flowauditv1.Gap{flowauditv1.FromGap(flow.Gap{Node: hostileNode, Kind: flow.GapQueue, Start: time.Now(), End: time.Now(), Detail: b.Key.Instance})}
		if stream.Send(b) != nil {
			return n
		}
		if _, err := stream.Recv(); err != nil {
			return n
		}
		n++
	}
}

// idle opens streams beyond what it may, and leaves them.
func (h *hostile) idle(stream flowauditv1.Ingest_ReportClient) uint64 {
	select {
	case <-stream.Context().Done():
	case <-time.After(100 * time.Millisecond):
	}
	return 1
}
