package collector

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// lateIndex learns of every address's pod some time after the start.
type lateIndex struct {
	names
	began time.Time
	after time.Duration
	pod   *flow.Endpoint
}

func (x lateIndex) Holder(_ netip.Addr, _, to time.Time) (*flow.Endpoint, time.Duration) {
	if time.Since(x.began) < x.after {
		return &flow.Endpoint{}, 2 * time.Second
	}
	return x.pod, 0
}

func (lateIndex) Service(netip.Addr, uint16, flow.Protocol, time.Time) *flow.Service { return nil }

func TestABatchWaitsForLateNames(t *testing.T) {
	pod := &flow.Endpoint{Kind: flow.EndpointPod, Namespace: "shop", Pod: "late"}
	for _, c := range []struct {
		name    string
		after   time.Duration // when the pod is told
		seen    time.Duration // how long before the batch the flow was
		stored  time.Duration
		unnamed uint64
	}{
		{"the pod is told meanwhile", time.Second, 0, time.Second, 0},
		{"the pod is never told", time.Hour, 0, 2 * time.Second, 1},
		{"the time is over already", time.Hour, 5 * time.Second, 0, 1},
		{"the pod is known", 0, 0, 0, 0},
		{"a clock that is ahead does not hold it for long", time.Hour, -time.Hour, maxNameWait, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(time.Hour) // times before the bubble's first are refused
				store := &memory{}
				r := serve(t, store)
				defer r.close(t)
				r.collector.ingest.index = lateIndex{began: time.Now(), after: c.after, pod: pod}
				f := flowTo(3306, flow.VerdictAllowed)
				f.Start = time.Now().Add(-c.seen)
				f.End = f.Start
				stream := r.report(t)
				began := time.Now()
				send(t, stream, batchOf(1, f))
				if _, err := stream.Recv(); err != nil {
					t.Fatal(err)
				}
				if d := time.Since(began); d != c.stored {
					t.Errorf("acknowledged after %s, want %s", d, c.stored)
				}
				if got := r.collector.ingest.unnamed.Load(); got != c.unnamed {
					t.Errorf("%d flows without a name, want %d", got, c.unnamed)
				}
			})
		})
	}
}

// agreeing knows one pod, and completes others.
type agreeing struct {
	lateIndex
	completed *flow.Endpoint
}

func (x agreeing) Complete(*flow.Endpoint) *flow.Endpoint { return x.completed }

func TestTheIndexKnowsMoreOfAPodThatTheAgentNamed(t *testing.T) {
	known := &flow.Endpoint{Kind: flow.EndpointPod, Namespace: "shop", Pod: "web-0", Identity: 7}
	completed := &flow.Endpoint{Kind: flow.EndpointPod, Namespace: "shop", Pod: "gone", Identity: 8}
	node := &flow.Endpoint{Kind: flow.EndpointNode, Node: "n1"}
	x := agreeing{lateIndex{pod: known}, completed}
	for _, c := range []struct {
		name       string
		said, want *flow.Endpoint
	}{
		{"the same pod", &flow.Endpoint{Kind: flow.EndpointPod, Namespace: "shop", Pod: "web-0"}, known},
		{"a pod that held it at the time", &flow.Endpoint{Kind: flow.EndpointPod, Namespace: "shop", Pod: "gone"}, completed},
		{"a node", node, node},
		{"nobody", nil, known},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := flowTo(80, flow.VerdictAllowed)
			f.Source = c.said
			flows := []flow.Flow{f}
			nameFlows(x, "n1", flows)
			if flows[0].Source != c.want {
				t.Errorf("%+v, want %+v", flows[0].Source, c.want)
			}
		})
	}
}

func TestTheTimeWithoutTheAPIServerIsAGapOfEveryNode(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(1_700_000_000+int64(s), 0) }
	b := newBlind()
	batch := func(node string, from, to int) *flow.Batch {
		return &flow.Batch{Node: node, Start: at(from), End: at(to)}
	}
	told := func(x *flow.Batch) (out []int64) {
		for _, g := range x.Gaps {
			if g.Kind != flow.GapNames || g.Node != x.Node {
				t.Errorf("%+v", g)
			}
			out = append(out, g.Start.Unix()-1_700_000_000, g.End.Unix()-1_700_000_000)
		}
		return out
	}
	want := func(x *flow.Batch, want ...int64) (undo func()) {
		t.Helper()
		undo = b.add(x)
		if got := told(x); !slices.Equal(got, want) {
			t.Errorf("told %v, want %v", got, want)
		}
		return undo
	}
	want(batch("n1", 0, 10))
	b.lost(flow.Gap{Start: at(5), End: at(15)})
	want(batch("n1", 15, 15)) // covers no time
	want(batch("n1", 10, 20), 5, 15)
	b.lost(flow.Gap{Start: at(15), End: at(25)})
	undo := want(batch("n1", 20, 30), 15, 25)
	undo() // it was not stored
	want(batch("n1", 20, 30), 15, 25)
	want(batch("n1", 30, 40))
	want(batch("n2", 30, 40), 5, 25)
	b.lost(flow.Gap{Start: at(50), End: at(60)})
	want(batch("n2", 50, 60), 50, 60)
}
