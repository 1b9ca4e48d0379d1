package storetest

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
)

func allEdges(t *testing.T, s store.Store, since, until time.Time) map[flow.EdgeKey]flow.Edge {
	t.Helper()
	out := make(map[flow.EdgeKey]flow.Edge)
	err := s.Edges(t.Context(), store.EdgesRequest{Sight: flow.SeeAll(), Since: since, Until: until}, func(e *flow.Edge) bool {
		if _, twice := out[e.EdgeKey]; twice {
			t.Errorf("edge %+v is given twice", e.EdgeKey)
		}
		out[e.EdgeKey] = *e
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func edgeDiff(want, got any) string {
	return cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
		cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) }), cmpopts.EquateEmpty())
}

// pod is one of a few pods; two share each identity.
func pod(n int) (netip.Addr, *flow.Endpoint) {
	return Addr(n), &flow.Endpoint{
		Kind: flow.EndpointPod, Namespace: "shop", Pod: "p" + string(rune('0'+n)), Workload: flow.Workload{Kind: "Deployment", Name: "w"}, Identity: uint64(1 + n/2), Node: "n" + string(rune('1'+n%2)),
		Labels: map[string]string{"app": string(rune('a' + n/2))},
	}
}

// edges compares what a store sums up with what flow.EdgeBuilder makes of the
// same flows, over several hours, slices, files and a restart.
func edges(t *testing.T, s Fixture) {
	rnd := rand.New(rand.NewPCG(3, 4))
	hours := make(map[time.Time]map[flow.Pair][]flow.Flow)
	var seq uint64
	for range 12 {
		var flows []flow.Flow
		for range 60 {
			f := randomReport(rnd)
			flows = append(flows, f)
			hour := f.Start.Truncate(flow.EdgeHour)
			if hours[hour] == nil {
				hours[hour] = make(map[flow.Pair][]flow.Flow)
			}
			hours[hour][f.Pair()] = append(hours[hour][f.Pair()], f)
		}
		seq++
		must(t, s, batch(seq, flows...))
		s.Advance(30 * time.Minute)
	}
	want := make(map[flow.EdgeKey]flow.Edge)
	for _, pairs := range hours {
		b := flow.NewEdgeBuilder()
		for _, reports := range pairs {
			b.Add(reports)
		}
		for _, e := range b.Edges() {
			if known, ok := want[e.EdgeKey]; ok {
				known.Join(e)
				known.Hours++
				want[e.EdgeKey] = known
			} else {
				want[e.EdgeKey] = *e
			}
		}
	}
	if d := edgeDiff(want, allEdges(t, s, time.Time{}, T0.Add(1000*time.Hour))); d != "" {
		t.Error(d)
	}
	again := s.Reopen(t)
	if d := edgeDiff(want, allEdges(t, again, time.Time{}, T0.Add(1000*time.Hour))); d != "" {
		t.Error("after a restart: ", d)
	}
	n := 0
	if err := again.Edges(t.Context(), store.EdgesRequest{Sight: flow.SeeAll(), Until: T0.Add(1000 * time.Hour)}, func(*flow.Edge) bool { n++; return false }); err != nil || n != 1 {
		t.Errorf("%d edges were given after the first was enough, %v", n, err)
	}
	if got := allEdges(t, again, T0.Add(500*time.Hour), T0.Add(1000*time.Hour)); len(got) != 0 {
		t.Errorf("%d edges of a time without flows", len(got))
	}
}

// randomReport is a flow of one node whose hour holds all reports of its pair
// that are of one key, so that their order does not matter.
func randomReport(rnd *rand.Rand) flow.Flow {
	f := flow.Flow{
		Key:     flow.Key{Protocol: flow.TCP, Port: uint16(80 + rnd.IntN(2)), Verdict: flow.Verdict(1 + rnd.IntN(2)), Direction: flow.DirectionEgress},
		Cluster: "c", Node: "n1", Connections: uint64(rnd.IntN(5)), Sent: flow.Counters{Packets: 1, Bytes: uint64(rnd.IntN(100))}, Counted: true,
	}
	f.Expected = f.Verdict
	f.Assessment = flow.Assess(f.Verdict, f.Expected)
	f.Src, f.Source = pod(rnd.IntN(4))
	f.Dst, f.Destination = pod(4 + rnd.IntN(4))
	if rnd.IntN(4) == 0 {
		f.Dst, f.Destination = netip.AddrFrom4([4]byte{203, 0, 113, byte(rnd.IntN(3))}), &flow.Endpoint{Kind: flow.EndpointOutside}
	}
	if rnd.IntN(4) == 0 {
		f.Dst, f.Destination = netip.AddrFrom4([4]byte{192, 0, 2, 1}), &flow.Endpoint{Kind: flow.EndpointNode, Node: "n1"}
	}
	f.Start = T0.Add(time.Duration(rnd.IntN(3*3600)) * time.Second)
	f.End = f.Start.Add(time.Duration(rnd.IntN(10)) * time.Second)
	return f
}

func edgesOutlive(t *testing.T, s Fixture) {
	f := randomReport(rand.New(rand.NewPCG(1, 1)))
	f.Start, f.Connections = T0, 3
	f.End = f.Start
	must(t, s, batch(1, f))
	s.Advance(48 * time.Hour)
	must(t, s, batch(2))
	if _, err := s.Retain(t.Context(), store.Retention{Since: T0.Add(49 * time.Hour)}); err != nil {
		t.Fatal(err)
	}
	if n := len(all(t, s, store.FlowsRequest{Sight: flow.SeeAll()})); n != 0 {
		t.Errorf("%d flows are left", n)
	}
	got := allEdges(t, s, T0, T0)
	if len(got) != 1 {
		t.Fatalf("%d edges are left, want the flow's", len(got))
	}
	for _, e := range got {
		if e.Connections != 3 || e.Hours != 1 || e.SourceLabels["app"] == "" {
			t.Errorf("left is %+v", e)
		}
	}
	if _, err := s.RetainEdges(t.Context(), T0.Add(60*24*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if got := allEdges(t, s, T0, T0); len(got) != 0 {
		t.Errorf("%d edges are left after their time", len(got))
	}
}
