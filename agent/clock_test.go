package agent

import (
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// TestTheClockIsSet: batches keep times that can be, cover each second once,
// and what waits, waits as long as before.
func TestTheClockIsSet(t *testing.T) {
	for _, step := range []time.Duration{time.Hour, -time.Hour, 3 * time.Second, -3 * time.Second} {
		t.Run(step.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				var set atomic.Int64 // how far the clock is ahead
				wall := func() time.Time { return time.Now().Add(time.Duration(set.Load())) }
				tab := newTable(tableOptions{Names: names(), LocalNode: "n1", Unanswered: 10 * time.Second, MaxConns: 1000, MaxFlows: 1000, Conntrack: true})
				in := newInbox()
				var covered time.Duration
				verdicts := make(map[flow.Verdict]uint64)
				l := newLoop(loopOptions{
					Node: "n1", Window: 10 * time.Second, Log: slog.New(slog.DiscardHandler), Wall: wall,
					Status: func() flow.AgentStatus { return flow.AgentStatus{} }, Malformed: func() map[string]uint64 { return nil }, Full: func() int { return 0 },
				}, tab, in, func(b *flow.Batch) {
					if b.End.Before(b.Start) {
						t.Errorf("a batch covers %s to %s", b.Start, b.End)
					}
					covered += b.End.Sub(b.Start)
					for _, f := range b.Flows {
						verdicts[f.Verdict] += f.Connections
					}
				})
				done := make(chan struct{})
				go func() { l.run(); close(done) }()
				begin := func(port uint16) *flow.Observation {
					return &flow.Observation{
						Time: wall().UnixNano(), Source: flow.SourceConntrack, Event: flow.EventNew, Protocol: flow.TCP, ID: uint32(port), Status: flow.StatusConfirmed,
						Original: flow.Tuple{Src: web, Dst: far, SrcPort: port, DstPort: 80}, Reply: flow.Tuple{Src: far, Dst: web, SrcPort: 80, DstPort: port},
					}
				}
				time.Sleep(8 * time.Second)
				in.deliver([]flow.Observation{*begin(1)})
				time.Sleep(4 * time.Second)
				set.Store(int64(step))
				time.Sleep(4 * time.Second) // 8 s after it began, whatever the clock says
				answer := begin(1)
				answer.Event, answer.Status = flow.EventUpdate, flow.StatusConfirmed|flow.StatusSeenReply
				in.deliver([]flow.Observation{*answer, *begin(2)})
				time.Sleep(24 * time.Second)
				close(in.full)
				<-done
				if verdicts[flow.VerdictAllowed] != 1 || verdicts[flow.VerdictUnanswered] != 1 || len(verdicts) != 2 {
					t.Errorf("verdicts %v: want the answered connection allowed, and the other unanswered", verdicts)
				}
				if elapsed := time.Since(began); covered != elapsed {
					t.Errorf("batches cover %s of %s", covered, elapsed)
				}
			})
		})
	}
}

func TestASlowClockIsNotSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var drift time.Duration
		c := newClock(func() time.Time { return time.Now().Add(drift) })
		for range 1000 {
			time.Sleep(time.Second)
			drift += 500 * time.Microsecond
			if step := c.step(); step != 0 {
				t.Fatalf("a clock that is being corrected is taken for one that was set by %s", step)
			}
		}
		drift += time.Second
		if step := c.step(); step != time.Second {
			t.Errorf("set by %s, want 1s", step)
		}
	})
}

// TestAFullQueueMergesHarder: before anything is dropped.
func TestAFullQueueMergesHarder(t *testing.T) {
	for _, c := range []struct {
		window time.Duration
		full   int
		want   time.Duration
	}{
		{10 * time.Second, 0, 10 * time.Second},
		{10 * time.Second, 49, 10 * time.Second},
		{10 * time.Second, 50, time.Minute},
		{10 * time.Second, 75, 5 * time.Minute},
		{10 * time.Second, 100, 5 * time.Minute},
		{time.Second, 80, 30 * time.Second},
		{time.Hour, 80, time.Hour},
	} {
		if got := harder(c.window, c.full); got != c.want {
			t.Errorf("a window of %s at %d %% becomes %s, want %s", c.window, c.full, got, c.want)
		}
	}
}
