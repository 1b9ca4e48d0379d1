package agent

import (
	"context"
	"errors"
	"testing"

	"github.com/flowaudit/flowaudit/flow"
)

func batchOf(allowed, denied int) *flow.Batch {
	b := &flow.Batch{Node: "n1"}
	for i := range allowed + denied {
		f := flow.Flow{Key: flow.Key{Verdict: flow.VerdictAllowed}}
		if i >= allowed {
			f.Verdict = flow.VerdictDenied
		}
		b.Flows = append(b.Flows, f)
	}
	return b
}

func TestQueueKeepsUntilAcknowledged(t *testing.T) {
	q := newQueue("c", "n1", 7, 100)
	for range 3 {
		q.put(batchOf(1, 0))
	}
	first, err := q.next(t.Context(), 0)
	if err != nil || first.batch.Key.Sequence != 1 || first.batch.Key.Instance != "n1" || first.batch.Key.Epoch == 0 {
		t.Fatalf("first batch %+v, %v", first, err)
	}
	if again, _ := q.next(t.Context(), 0); again != first {
		t.Error("a batch that is not acknowledged is not given again")
	}
	second, err := q.next(t.Context(), 1)
	if err != nil || second.batch.Key.Sequence != 2 {
		t.Fatalf("second batch %+v, %v", second, err)
	}
	q.ack(second.batch.Key) // in any order
	q.ack(first.batch.Key)
	q.ack(first.batch.Key) // twice does no harm
	foreign := first.batch.Key
	foreign.Epoch++
	foreign.Sequence = 3
	q.ack(foreign) // of another life
	if batches, flows, _ := q.waiting(); batches != 1 || flows != 1 {
		t.Errorf("%d batches, %d flows wait; want 1 and 1", batches, flows)
	}
	q.close()
	third, err := q.next(t.Context(), 2)
	if err != nil || third == nil || third.batch.Key.Sequence != 3 {
		t.Fatalf("a closed queue gives %+v, %v; want the batch that waits", third, err)
	}
	q.ack(third.batch.Key)
	if end, err := q.next(t.Context(), 3); end != nil || err != nil {
		t.Errorf("%+v, %v; want the end", end, err)
	}
}

func TestQueueEnds(t *testing.T) {
	q := newQueue("c", "n1", 7, 100)
	q.close()
	if b, err := q.next(t.Context(), 0); b != nil || err != nil {
		t.Errorf("%+v, %v; want the end", b, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	open := newQueue("c", "n1", 7, 100)
	if _, err := open.next(ctx, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled wait says %v", err)
	}
}

// TestQueueShedsAllowedFlowsFirst: and it tells, for each batch, what it lost.
func TestQueueShedsAllowedFlowsFirst(t *testing.T) {
	q := newQueue("c", "n1", 7, 10)
	q.put(batchOf(4, 2))
	q.put(batchOf(3, 1))
	q.put(batchOf(4, 0)) // 14 flows: 4 allowed ones must go
	check := func(i, flows int, lost uint64) {
		t.Helper()
		b := q.entries[i].batch
		var told uint64
		for _, g := range b.Gaps {
			if g.Kind != flow.GapQueue || g.Node != "n1" {
				t.Errorf("gap %+v", g)
			}
			told += g.Lost
		}
		if len(b.Flows) != flows || told != lost {
			t.Errorf("batch %d has %d flows and lost %d, want %d and %d", i+1, len(b.Flows), told, flows, lost)
		}
	}
	check(0, 2, 4)
	check(1, 4, 0)
	q.put(batchOf(0, 9)) // now only denials can make room, and the oldest go
	check(0, 0, 6)
	check(1, 1, 3)
	check(2, 0, 4)
	check(3, 9, 0)
	if _, flows, _ := q.waiting(); flows != 10 {
		t.Errorf("%d flows wait, want 10", flows)
	}
}

func TestSplit(t *testing.T) {
	b := flow.Batch{Start: clock(0), End: clock(10), Flows: make([]flow.Flow, 2*maxBatchFlows+1), Gaps: []flow.Gap{{Lost: 1}}}
	parts := split(b, false)
	if len(parts) != 3 {
		t.Fatalf("%d parts, want 3", len(parts))
	}
	for i, p := range parts {
		last := i == len(parts)-1
		if covers := p.Start.Before(p.End); covers != last || (len(p.Gaps) > 0) != last {
			t.Errorf("part %d covers %v and has %d gaps: only the last one may", i, covers, len(p.Gaps))
		}
	}
}
