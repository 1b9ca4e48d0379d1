// Package storetest is the contract of a store in executable form.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
)

// Factory makes an empty store whose clock can be moved, and opens it again
// over the same files after it was closed.
type Factory func(t *testing.T) Fixture

// Fixture is a store under test.
type Fixture struct {
	store.Store
	// Advance moves the store's clock.
	Advance func(time.Duration)
	// Reopen closes the store and opens it again.
	Reopen func(t *testing.T) store.Store
	// Update writes the golden answers anew instead of comparing with them.
	Update bool
}

// T0 is when the fixture's clock begins.
var T0 = time.UnixMilli(1_700_000_000_000)

// Run runs the whole suite.
func Run(t *testing.T, factory Factory) {
	for name, test := range suite() {
		t.Run(name, func(t *testing.T) { test(t, factory(t)) })
	}
}

// RunSome runs a part of the suite, where the whole takes too long.
func RunSome(t *testing.T, factory Factory, names ...string) {
	for _, name := range names {
		test := suite()[name]
		if test == nil {
			t.Fatalf("the suite has no test %q", name)
		}
		t.Run(name, func(t *testing.T) { test(t, factory(t)) })
	}
}

func suite() map[string]func(*testing.T, Fixture) {
	return map[string]func(*testing.T, Fixture){
		"every field comes back":              everyField,
		"an empty store answers":              empty,
		"a batch is stored once":              once,
		"a resend after a restart is known":   onceAfterReopen,
		"filters say what flow.Filter says":   filters,
		"first and last":                      firstAndLast,
		"two nodes' reports are one flow":     merges,
		"coverage adds up":                    coverage,
		"retention gives disk back":           retention,
		"refused flows are kept longer":       deniedLonger,
		"retention by size":                   retentionBySize,
		"every question":                      questions,
		"every question, of nothing":          questionsOfNothing,
		"a question that cannot be asked":     badQuestions,
		"SQL reads":                           readsSQL,
		"SQL does nothing else":               onlyReads,
		"a context that ends":                 cancelled,
		"appending and asking at once":        concurrent,
		"odd values":                          oddValues,
		"the timeline says how it was":        timeline,
		"edges are what flows add up to":      edges,
		"edges outlive their flows":           edgesOutlive,
		"flows of which only names are known": namesOnly,
		"hours add up to edges":               edgeHours,
		"documents":                           documents,
		"what is withheld is told by nothing": sight,
		"what is stored can be proven":        proven,
	}
}

func batch(seq uint64, flows ...flow.Flow) flow.Batch {
	return flow.Batch{
		Key: flow.BatchKey{Cluster: "c", Instance: "n1", Epoch: 7, Sequence: seq}, Node: "n1",
		Start: T0.Add(time.Duration(seq-1) * 10 * time.Second), End: T0.Add(time.Duration(seq) * 10 * time.Second), Flows: flows,
	}
}

func must(t *testing.T, s store.Store, batches ...flow.Batch) []bool {
	t.Helper()
	dup, err := s.Append(t.Context(), batches)
	if err != nil {
		t.Fatal(err)
	}
	return dup
}

func all(t *testing.T, s store.Store, req store.FlowsRequest) []flow.Flow {
	t.Helper()
	var out []flow.Flow
	if err := s.Flows(t.Context(), req, func(f flow.Flow) bool { out = append(out, f); return true }); err != nil {
		t.Fatal(err)
	}
	return out
}

func diff(want, got []flow.Flow) string {
	return cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmpopts.EquateEmpty())
}

// sample has every field set.
func sample() flow.Flow {
	return flow.Flow{
		Key: flow.Key{
			Protocol: flow.TCP, Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"), Port: 3306,
			Verdict: flow.VerdictDenied, Direction: flow.DirectionIngress,
		},
		Start: T0.Add(1234 * time.Millisecond), End: T0.Add(5678 * time.Millisecond), Cluster: "c", Node: "n1",
		Source: &flow.Endpoint{
			Kind: flow.EndpointPod, Namespace: "shop", Pod: "web-1", Workload: flow.Workload{Kind: "Deployment", Name: "web"}, Node: "n1",
			Identity: 1<<63 + 5, Labels: map[string]string{"app": "web", "empty": ""},
		},
		Destination: &flow.Endpoint{Kind: flow.EndpointNode, Node: "n2", Candidates: []string{"kube-system/proxy-1", "shop/host-2"}},
		SourcePort:  40000, TranslatedSrc: netip.MustParseAddr("192.168.0.9"),
		Service: &flow.Service{Addr: netip.MustParseAddr("10.96.0.1"), Port: 80, Namespace: "shop", Name: "db"},
		Reason:  flow.ReasonLogged, Expected: flow.VerdictAllowed, Assessment: flow.AssessmentUnexplained, Caveat: flow.CaveatRecent,
		Policies: []flow.PolicyRef{{Kind: "NetworkPolicy", Namespace: "shop", Name: "db-policy", Rule: "0", Side: "ingress"}},
		Sources:  flow.SourceNFLOG | flow.SourceConntrack, Connections: 1 << 40, Counted: true,
		Sent: flow.Counters{Packets: 1 << 33, Bytes: 1 << 50}, Received: flow.Counters{Packets: 3, Bytes: 4}, TCPFlags: 0xff,
	}
}

func everyField(t *testing.T, s Fixture) {
	f := sample()
	// A field that is added to Flow must be added to sample, and so to stores.
	v := reflect.ValueOf(f)
	for i := range v.NumField() {
		// By when the ends were named is said on the way, and not kept.
		if name := v.Type().Field(i).Name; v.Field(i).IsZero() && name != "NamedFrom" && name != "NamedTo" {
			t.Errorf("the sample leaves %s empty", v.Type().Field(i).Name)
		}
	}
	bare := flow.Flow{
		Key:   flow.Key{Protocol: flow.ICMPv6, Src: netip.MustParseAddr("fd00::1"), Dst: netip.MustParseAddr("fd00::2"), Port: flow.ICMPPort(128, 1)},
		Start: T0.Add(2 * time.Second), End: T0.Add(2 * time.Second), Node: "n1",
	}
	must(t, s, batch(1, f, bare))
	if d := diff([]flow.Flow{f, bare}, all(t, s, store.FlowsRequest{Sight: flow.SeeAll()})); d != "" {
		t.Error(d)
	}
	if d := diff([]flow.Flow{f, bare}, all(t, s.Reopen(t), store.FlowsRequest{Sight: flow.SeeAll()})); d != "" {
		t.Error("after a restart: ", d)
	}
}

func empty(t *testing.T, s Fixture) {
	if got := all(t, s, store.FlowsRequest{Sight: flow.SeeAll(), Last: 5}); len(got) != 0 {
		t.Errorf("%d flows", len(got))
	}
	if c, err := s.Coverage(t.Context(), flow.SeeAll(), T0, T0.Add(time.Hour)); err != nil || len(c.Nodes) != 0 {
		t.Errorf("coverage %+v, %v", c, err)
	}
	if n, _, err := s.Count(t.Context(), flow.SeeAll(), flow.Filter{}); err != nil || n != 0 {
		t.Errorf("%d flows, %v", n, err)
	}
	if st, err := s.Stats(t.Context()); err != nil || st.Flows != 0 || !st.Oldest.IsZero() {
		t.Errorf("stats %+v, %v", st, err)
	}
	if dup, err := s.Append(t.Context(), nil); err != nil || len(dup) != 0 {
		t.Errorf("append nothing: %v, %v", dup, err)
	}
}

func once(t *testing.T, s Fixture) {
	b1, b2 := batch(1, sample()), batch(2, sample())
	if dup := must(t, s, b1, b1, b2); !slices.Equal(dup, []bool{false, true, false}) {
		t.Errorf("duplicates %v in one call", dup)
	}
	if dup := must(t, s, b2, batch(3)); !slices.Equal(dup, []bool{true, false}) {
		t.Errorf("duplicates %v later", dup)
	}
	s.Advance(2 * time.Hour)
	if dup := must(t, s, b1); !dup[0] {
		t.Error("a resend into another slice was stored again")
	}
	other := batch(1, sample())
	other.Key.Epoch++
	if dup := must(t, s, other); dup[0] {
		t.Error("another epoch was taken for a resend")
	}
	if st, err := s.Stats(t.Context()); err != nil || st.Flows != 3 {
		t.Errorf("%d flows stored, want 3 (%v)", st.Flows, err)
	}
}

func onceAfterReopen(t *testing.T, s Fixture) {
	must(t, s, batch(1, sample()), batch(2), batch(5, sample()))
	re := s.Reopen(t)
	if dup := must(t, re, batch(1, sample()), batch(3, sample()), batch(5, sample())); !slices.Equal(dup, []bool{true, false, true}) {
		t.Errorf("duplicates %v", dup)
	}
	if st, err := re.Stats(t.Context()); err != nil || st.Flows != 3 {
		t.Errorf("%d flows stored, want 3 (%v)", st.Flows, err)
	}
}

// filters compares the store with flow.Filter on random flows and filters.
func filters(t *testing.T, s Fixture) {
	rnd := rand.New(rand.NewPCG(1, 2))
	flows := randomFlows(rnd, 400)
	must(t, s, batch(1, flows...))
	for i := range 300 {
		f := randomFilter(rnd)
		var want []flow.Flow
		for j := range flows {
			if f.Matches(&flows[j]) {
				want = append(want, flows[j])
			}
		}
		got := all(t, s, store.FlowsRequest{Sight: flow.SeeAll(), Filter: f})
		if d := diff(ordered(want), ordered(got)); d != "" {
			t.Fatalf("filter %d %+v:\n%s", i, f, d)
		}
		if n, _, err := s.Count(t.Context(), flow.SeeAll(), f); err != nil || int(n) != len(want) {
			t.Fatalf("filter %d: count %d, %v; want %d", i, n, err, len(want))
		}
	}
}

// ordered sorts by what makes random flows distinct.
func ordered(flows []flow.Flow) []flow.Flow {
	slices.SortFunc(flows, func(a, b flow.Flow) int { return int(a.Connections) - int(b.Connections) })
	return flows
}

func randomFlows(rnd *rand.Rand, n int) []flow.Flow {
	addr := func() netip.Addr {
		if rnd.IntN(4) == 0 {
			return netip.MustParseAddr(fmt.Sprintf("fd00:%d::%d", rnd.IntN(2), rnd.IntN(6)))
		}
		return netip.AddrFrom4([4]byte{10, 0, byte(rnd.IntN(2)), byte(rnd.IntN(6))})
	}
	end := func() *flow.Endpoint {
		if rnd.IntN(5) == 0 {
			return nil
		}
		e := &flow.Endpoint{
			Kind: flow.EndpointPod, Namespace: pick(rnd, "shop", "bank"), Pod: pick(rnd, "web-1", "web-2", "db-0"),
			Workload: flow.Workload{Kind: pick(rnd, "Deployment", "StatefulSet"), Name: pick(rnd, "web", "db")}, Node: pick(rnd, "n1", "n2", ""),
			Labels: map[string]string{"app": pick(rnd, "web", "db"), "x/a": "c"},
		}
		if rnd.IntN(4) == 0 {
			e.Kind = flow.EndpointKind(1 + rnd.IntN(6))
		}
		if rnd.IntN(2) == 0 {
			e.Labels["tier"] = pick(rnd, "1", "2")
		}
		return e
	}
	out := make([]flow.Flow, n)
	for i := range out {
		f := &out[i]
		f.Key = flow.Key{Protocol: pick(rnd, flow.TCP, flow.UDP, flow.ICMP), Src: addr(), Dst: addr(), Port: pick[uint16](rnd, 80, 443, 2048)}
		f.Verdict = flow.Verdict(rnd.IntN(4))
		f.Direction = flow.Direction(rnd.IntN(3))
		f.Assessment = flow.Assessment(rnd.IntN(6))
		f.Reason, f.Caveat = pick(rnd, flow.ReasonNone, flow.ReasonLogged, flow.ReasonNoRoute, flow.ReasonLostBetween), pick(rnd, flow.CaveatNone, flow.CaveatOtherCause)
		f.Node, f.Cluster = "n1", pick(rnd, "c1", "c2")
		f.Source, f.Destination = end(), end()
		if rnd.IntN(3) == 0 {
			f.Service = &flow.Service{Addr: netip.AddrFrom4([4]byte{10, 96, 0, byte(rnd.IntN(3))}), Port: pick[uint16](rnd, 80, 8080)}
		}
		f.Start = T0.Add(time.Duration(rnd.IntN(60_000)) * time.Millisecond)
		f.End = f.Start.Add(time.Duration(rnd.IntN(10_000)) * time.Millisecond)
		f.Connections = uint64(i + 1)
	}
	return out
}

func pick[T any](rnd *rand.Rand, values ...T) T { return values[rnd.IntN(len(values))] }

func randomFilter(rnd *rand.Rand) flow.Filter {
	var f flow.Filter
	if rnd.IntN(4) == 0 {
		f.Since = T0.Add(time.Duration(rnd.IntN(60_000)) * time.Millisecond)
	}
	if rnd.IntN(4) == 0 {
		f.Until = T0.Add(time.Duration(rnd.IntN(60_000)) * time.Millisecond)
	}
	for range 1 + rnd.IntN(3) {
		sel := &f.Match
		if rnd.IntN(4) == 0 {
			sel = &f.Not
		}
		ends := pick(rnd, &sel.Either, &sel.From, &sel.To)
		switch rnd.IntN(14) {
		case 0:
			ends.Namespaces = []string{pick(rnd, "shop", "bank", "none")}
		case 1:
			ends.Pods = []flow.PodPrefix{{Namespace: pick(rnd, "", "shop"), Name: pick(rnd, "web", "web-1", "")}, {Name: "db"}}
		case 2:
			ends.Workloads = []flow.WorkloadName{{Namespace: pick(rnd, "", "bank"), Kind: pick(rnd, "", "deployment"), Name: "web"}}
		case 3:
			ends.Prefixes = []netip.Prefix{netip.MustParsePrefix(pick(rnd, "10.0.0.0/24", "10.0.1.3/32", "10.96.0.1/32", "fd00:1::/32", "::/0", "0.0.0.0/0"))}
		case 4:
			ends.Labels = []flow.LabelTerm{{Key: pick(rnd, "app", "tier", "x/a"), Op: flow.LabelOp(rnd.IntN(4)), Values: []string{pick(rnd, "web", "1", "c")}}}
		case 5:
			sel.Ports = []uint16{pick[uint16](rnd, 80, 443, 2048, 8080)}
		case 6:
			sel.Protocols = []flow.Protocol{pick(rnd, flow.TCP, flow.ICMP)}
		case 7:
			sel.Verdicts = []flow.Verdict{flow.Verdict(rnd.IntN(4)), flow.VerdictDenied}
		case 8:
			sel.Directions = []flow.Direction{flow.Direction(rnd.IntN(3))}
		case 9:
			sel.Assessments = []flow.Assessment{flow.Assessment(rnd.IntN(6))}
		case 10:
			sel.Clusters = []string{pick(rnd, "c1", "c3")}
		case 11:
			sel.Reasons = []flow.Reason{pick(rnd, flow.ReasonNone, flow.ReasonNoRoute), flow.ReasonLogged}
		case 12:
			sel.Caveats = []flow.Caveat{pick(rnd, flow.CaveatNone, flow.CaveatOtherCause)}
		case 13:
			sel.RefusedAt = []flow.Place{pick(rnd, flow.PlaceEgress, flow.PlaceIngress, flow.PlaceBetween)}
		}
	}
	return f
}

func firstAndLast(t *testing.T, s Fixture) {
	for seq := range uint64(5) {
		var flows []flow.Flow
		for i := range 100 {
			f := sample()
			f.Start = T0.Add(time.Duration(seq)*time.Hour + time.Duration(i)*20*time.Second)
			f.End = f.Start
			flows = append(flows, f)
		}
		must(t, s, batch(seq+1, flows...))
		s.Advance(time.Hour) // the answer crosses slices
	}
	whole := all(t, s, store.FlowsRequest{Sight: flow.SeeAll()})
	if len(whole) != 500 || !slices.IsSortedFunc(whole, func(a, b flow.Flow) int { return a.Start.Compare(b.Start) }) {
		t.Fatalf("%d flows, or not in order of their start", len(whole))
	}
	if d := diff(whole[:3], all(t, s, store.FlowsRequest{Sight: flow.SeeAll(), First: 3})); d != "" {
		t.Error("first: ", d)
	}
	if d := diff(whole[350:], all(t, s, store.FlowsRequest{Sight: flow.SeeAll(), Last: 150})); d != "" {
		t.Error("last: ", d)
	}
	n := 0
	if err := s.Flows(t.Context(), store.FlowsRequest{Sight: flow.SeeAll()}, func(flow.Flow) bool { n++; return n < 7 }); err != nil || n != 7 {
		t.Errorf("%d flows after the reader had enough at 7 (%v)", n, err)
	}
}

func merges(t *testing.T, s Fixture) {
	client, server := sample(), sample()
	client.Verdict, client.Node, client.Start, client.Connections = flow.VerdictUnanswered, "n1", T0, 5
	server.Verdict, server.Node, server.Start, server.Connections = flow.VerdictDenied, "n2", T0.Add(time.Second), 3
	server.Src, server.TranslatedSrc = client.TranslatedSrc, netip.Addr{}
	server.Source, server.Service = &flow.Endpoint{Kind: flow.EndpointNode, Node: "n1"}, nil
	must(t, s, batch(1, client), batch(2, server))
	want := flow.Merge([]flow.Flow{client, server}, 15*time.Second)
	for name, f := range map[string]flow.Filter{
		"everything":  {},
		"the verdict": {Match: flow.Selector{Verdicts: []flow.Verdict{flow.VerdictDenied}}},
		"the client":  {Match: flow.Selector{From: flow.Ends{Pods: []flow.PodPrefix{{Name: "web"}}}}},
	} {
		for _, last := range []int{0, 10} {
			if d := diff(want, all(t, s, store.FlowsRequest{Sight: flow.SeeAll(), Filter: f, Last: last})); d != "" || len(want) != 1 {
				t.Errorf("by %s, last %d: %s", name, last, d)
			}
		}
	}
	if got := all(t, s, store.FlowsRequest{Sight: flow.SeeAll(), Filter: flow.Filter{Match: flow.Selector{Verdicts: []flow.Verdict{flow.VerdictUnanswered}}}}); len(got) != 0 {
		t.Errorf("%d unanswered flows, though they were refused", len(got))
	}
}

// namesOnly: a plugin that aggregates tells no addresses. Reports of the same
// names by two nodes are of different connections.
func namesOnly(t *testing.T, s Fixture) {
	here := sample()
	here.Src, here.Dst, here.TranslatedSrc, here.Service.Addr = netip.Addr{}, netip.Addr{}, netip.Addr{}, netip.Addr{}
	here.Node, here.Start = "n1", T0
	there, other := here, here
	there.Node, there.Start = "n2", T0.Add(time.Second)
	other.Source, other.Start = &flow.Endpoint{Kind: flow.EndpointPod, Namespace: "other"}, T0.Add(2*time.Second)
	must(t, s, batch(1, here, there, other))
	want := []flow.Flow{here, there, other}
	if d := diff(want, all(t, s, store.FlowsRequest{Sight: flow.SeeAll()})); d != "" {
		t.Error(d)
	}
	re := s.Reopen(t)
	must(t, re, batch(2, here))
	if d := diff([]flow.Flow{here, here, there, other}, all(t, re, store.FlowsRequest{Sight: flow.SeeAll()})); d != "" {
		t.Error("after a restart: ", d)
	}
}

func coverage(t *testing.T, s Fixture) {
	other := batch(1)
	other.Node, other.Key.Instance, other.Agent.Limits = "n2", "n2", []string{"sees little"}
	gap := flow.Gap{Node: "n1", Source: "nflog:100", Kind: flow.GapSequence, Start: T0.Add(12 * time.Second), End: T0.Add(13 * time.Second), Lost: 9, Detail: "why"}
	lossy := batch(2)
	lossy.Gaps = []flow.Gap{gap}
	overlap := batch(3)
	overlap.Start = overlap.Start.Add(-5 * time.Second)
	early := batch(9)
	early.End = early.Start // covers nothing
	must(t, s, batch(1), lossy, overlap, early, other)
	c, err := s.Coverage(t.Context(), flow.SeeAll(), T0.Add(5*time.Second), T0.Add(60*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	want := []flow.NodeCoverage{
		{Node: "n1", Covered: 25 * time.Second, Gaps: []flow.Gap{gap}},
		{Node: "n2", Covered: 5 * time.Second, Limits: []string{"sees little"}},
	}
	if d := cmp.Diff(want, c.Nodes, cmpopts.EquateEmpty()); d != "" {
		t.Error(d)
	}
	c, err = s.Coverage(t.Context(), flow.SeeAll(), T0.Add(time.Hour), T0.Add(2*time.Hour))
	if err != nil || len(c.Nodes) != 2 || c.Nodes[0].Covered != 0 || len(c.Nodes[0].Gaps) != 0 {
		t.Errorf("an hour without reports: %+v, %v", c.Nodes, err)
	}
}

func retention(t *testing.T, s Fixture) {
	g := NewGenerator(1)
	must(t, s, batch(1, g.Flows(50_000, T0, time.Hour)...))
	s.Advance(time.Hour)
	must(t, s, batch(2, sample()))
	s.Advance(time.Hour)
	if freed, err := s.Retain(t.Context(), store.Retention{Since: T0.Add(-time.Hour)}); err != nil || freed != 0 {
		t.Errorf("freed %d, %v: nothing is old enough", freed, err)
	}
	before, _ := s.Stats(t.Context())
	freed, err := s.Retain(t.Context(), store.Retention{Since: T0.Add(90 * time.Minute)})
	if err != nil || freed < 500_000 {
		t.Errorf("freed %d bytes, %v", freed, err)
	}
	after, _ := s.Stats(t.Context())
	if after.Flows != 1 || after.Bytes >= before.Bytes {
		t.Errorf("%d flows and %d bytes left of %d", after.Flows, after.Bytes, before.Bytes)
	}
	if got := all(t, s, store.FlowsRequest{Sight: flow.SeeAll()}); len(got) != 1 {
		t.Errorf("%d flows left, want 1", len(got))
	}
	must(t, s, batch(3, sample()))
}

// deniedLonger: refused flows stay when others of their time go, as they
// were, until their own time is over.
func deniedLonger(t *testing.T, s Fixture) {
	flows := NewGenerator(5).Flows(2000, T0, time.Hour)
	var want []flow.Flow
	for _, f := range flows {
		if f.Verdict == flow.VerdictDenied {
			want = append(want, f)
		}
	}
	half := len(flows) / 2
	must(t, s, batch(1, flows[:half]...))
	s.Advance(2 * time.Hour)
	must(t, s, batch(2, flows[half:]...))
	s.Advance(2 * time.Hour)
	must(t, s, batch(3))
	denied := store.FlowsRequest{Sight: flow.SeeAll(), Filter: flow.Filter{Match: flow.Selector{Verdicts: []flow.Verdict{flow.VerdictDenied}}}}
	before := all(t, s, denied)
	if len(want) == 0 || len(before) != len(want) {
		t.Fatalf("%d refused flows, want %d", len(before), len(want))
	}
	for range 2 {
		if _, err := s.Retain(t.Context(), store.Retention{Since: T0.Add(4 * time.Hour), Denied: T0.Add(-time.Hour)}); err != nil {
			t.Fatal(err)
		}
		if d := diff(before, all(t, s, store.FlowsRequest{Sight: flow.SeeAll()})); d != "" {
			t.Fatal("what is left is not what was refused: ", d)
		}
	}
	again := s.Reopen(t)
	if d := diff(before, all(t, again, denied)); d != "" {
		t.Error("after a restart: ", d)
	}
	rows, err := again.SQL(t.Context(), flow.SeeAll(), "SELECT count(*) AS n FROM flows WHERE source_namespace <> '' AND verdict = 'denied'", 1)
	if err != nil || rows.Rows[0][0] != int64(len(want)) {
		t.Errorf("SQL sees %v, %v", rows.Rows, err)
	}
	if dup := must(t, again, batch(3)); !dup[0] {
		t.Error("a batch is forgotten")
	}
	if _, err := again.Retain(t.Context(), store.Retention{Since: T0.Add(100 * 24 * time.Hour), Denied: T0.Add(60 * 24 * time.Hour)}); err != nil {
		t.Fatal(err)
	}
	if got := all(t, again, store.FlowsRequest{Sight: flow.SeeAll()}); len(got) != 0 {
		t.Errorf("%d flows are left after their time", len(got))
	}
}

func retentionBySize(t *testing.T, s Fixture) {
	g := NewGenerator(6)
	for seq := range uint64(3) {
		must(t, s, batch(seq+1, g.Flows(20_000, T0.Add(time.Duration(seq)*2*time.Hour), time.Hour)...))
		s.Advance(2 * time.Hour)
	}
	must(t, s, batch(4, sample()))
	before, err := s.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if freed, err := s.Retain(t.Context(), store.Retention{Bytes: 1 << 40}); err != nil || freed != 0 {
		t.Errorf("freed %d, %v, though all fits", freed, err)
	}
	if freed, err := s.Retain(t.Context(), store.Retention{Bytes: 1}); err != nil || freed <= 0 {
		t.Errorf("freed %d, %v", freed, err)
	}
	after, err := s.Stats(t.Context())
	if err != nil || after.Flows != 1 || after.Bytes >= before.Bytes {
		t.Errorf("%d flows and %d bytes are left of %d and %d, %v; want the newest slice", after.Flows, after.Bytes, before.Flows, before.Bytes, err)
	}
}

func badQuestions(t *testing.T, s Fixture) {
	for name, args := range map[string]map[string]string{
		"nothing-of-the-kind": nil,
		"flows-of-address":    nil,
		"top-talkers":         {"limit": "many"},
		"nodes":               {"shoe": "size"},
		"denied-over-time":    {"since": "yesterday-ish"},
	} {
		if _, err := s.Query(t.Context(), flow.SeeAll(), name, args); !errors.Is(err, store.ErrArgument) {
			t.Errorf("%s %v: error %v, want ErrArgument", name, args, err)
		}
	}
}

func cancelled(t *testing.T, s Fixture) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Append(ctx, []flow.Batch{batch(1, sample())}); err == nil {
		t.Error("append into an ended context succeeded")
	}
	if dup := must(t, s, batch(1, sample())); dup[0] {
		t.Error("the batch that was not stored is taken for a duplicate")
	}
	if got := all(t, s, store.FlowsRequest{Sight: flow.SeeAll()}); len(got) != 1 {
		t.Errorf("%d flows, want 1", len(got))
	}
}

func concurrent(t *testing.T, s Fixture) {
	g := NewGenerator(3)
	var wg sync.WaitGroup
	done := make(chan struct{})
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				err := s.Flows(context.Background(), store.FlowsRequest{Sight: flow.SeeAll(), Last: 5}, func(flow.Flow) bool { return true })
				if err == nil {
					_, err = s.Coverage(context.Background(), flow.SeeAll(), T0, T0.Add(time.Hour))
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for seq := range uint64(20) {
		b := batch(seq+1, g.Flows(1000, T0, time.Minute)...)
		b.Node = fmt.Sprint("n", seq) // one that a reader may not have listed yet
		if _, err := s.Append(t.Context(), []flow.Batch{b}); err != nil {
			t.Error(err)
		}
		s.Advance(10 * time.Minute)
	}
	close(done)
	wg.Wait()
	if st, err := s.Stats(t.Context()); err != nil || st.Flows != 20_000 {
		t.Errorf("%d flows, want 20000 (%v)", st.Flows, err)
	}
}

func oddValues(t *testing.T, s Fixture) {
	f := sample()
	f.Source = &flow.Endpoint{
		Kind: flow.EndpointPod, Namespace: "żółć'; DROP TABLE flow; --", Pod: "🦆", Labels: map[string]string{"k": "v=1", "x/y.z": "\t"},
	}
	f.Service = &flow.Service{Addr: netip.MustParseAddr("::1"), Port: 0}
	f.Policies = []flow.PolicyRef{{Name: `"quoted"`}}
	must(t, s, batch(1, f))
	filter := flow.Filter{Match: flow.Selector{From: flow.Ends{Namespaces: []string{f.Source.Namespace}, Pods: []flow.PodPrefix{{Name: "🦆"}}}}}
	if d := diff([]flow.Flow{f}, all(t, s, store.FlowsRequest{Sight: flow.SeeAll(), Filter: filter})); d != "" {
		t.Error(d)
	}
}
