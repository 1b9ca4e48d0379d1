package storetest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/queries"
)

// own is the namespace that the reader of these tests may read, and foreign one
// that talks with it.
const (
	own     = "shop"
	foreign = "bank"
)

// The two clusters differ in nothing but what is withheld.
var twins = [...]string{"one", "other"}

// twin is a name that is withheld: each cluster has another.
func twin(cluster int, name string) string { return [...]string{"first.", "second."}[cluster] + name }

// twinEnd is one of a few ends, and its address.
func twinEnd(cluster, n int) (netip.Addr, *flow.Endpoint) {
	switch {
	case n < 3:
		return Addr(n), &flow.Endpoint{
			Kind: flow.EndpointPod, Namespace: own, Pod: fmt.Sprintf("web-%d", n), Workload: flow.Workload{Kind: "Deployment", Name: "web"}, Node: fmt.Sprintf("n%d", n%2),
			Identity: 7, Labels: map[string]string{"app": "web"},
		}
	case n < 7:
		return netip.AddrFrom4([4]byte{10, 9, byte(cluster), byte(n)}), &flow.Endpoint{
			Kind: flow.EndpointPod, Namespace: foreign, Pod: twin(cluster, fmt.Sprint("ledger-", n)), Node: twin(cluster, fmt.Sprint("f", n%2)),
			Workload: flow.Workload{Kind: "Deployment", Name: twin(cluster, fmt.Sprint("ledger-", n/2))}, Identity: uint64(100*(cluster+1) + n/2),
			Labels: map[string]string{"app": twin(cluster, fmt.Sprint("ledger-", n/2))},
		}
	case n == 7:
		return netip.MustParseAddr("203.0.113.7"), &flow.Endpoint{Kind: flow.EndpointOutside}
	case n == 8:
		return netip.MustParseAddr("172.18.0.9"), &flow.Endpoint{Kind: flow.EndpointNode, Node: "n9", Candidates: []string{foreign + "/" + twin(cluster, "host")}}
	case n == 9:
		return netip.AddrFrom4([4]byte{10, 9, byte(cluster), 99}), &flow.Endpoint{Kind: flow.EndpointAmbiguous, Candidates: []string{foreign + "/" + twin(cluster, "gone"), own + "/gone"}}
	}
	return netip.AddrFrom4([4]byte{10, 9, byte(cluster), 98}), nil
}

// twinReports are what nodes report of connection i, in each cluster.
func twinReports(cluster int, rnd *rand.Rand, i int) []flow.Flow {
	a, b := rnd.IntN(11), rnd.IntN(11)
	at := T0.Add(time.Duration(i) * 31 * time.Second)
	f := flow.Flow{
		Key: flow.Key{
			Protocol: flow.TCP, Port: []uint16{80, 443, 5432}[rnd.IntN(3)], Verdict: []flow.Verdict{flow.VerdictAllowed, flow.VerdictDenied, flow.VerdictUnanswered}[rnd.IntN(3)],
			Direction: flow.Direction(1 + rnd.IntN(2)),
		},
		Start: at, End: at.Add(time.Second), Cluster: twins[cluster], SourcePort: uint16(40_000 + rnd.IntN(4)), Connections: uint64(1 + rnd.IntN(5)), Sources: flow.SourceNFLOG,
		Assessment: flow.Assessment(rnd.IntN(6)), Expected: flow.Verdict(rnd.IntN(3)),
		Policies: []flow.PolicyRef{{Kind: "NetworkPolicy", Namespace: own, Name: "own", Rule: "ingress[0]", Side: "ingress"}, {Kind: "NetworkPolicy", Namespace: foreign, Name: twin(cluster, "deny"), Side: "egress"}},
	}
	f.Src, f.Source = twinEnd(cluster, a)
	f.Dst, f.Destination = twinEnd(cluster, b)
	service := rnd.IntN(4)
	if service == 0 && f.Destination != nil && f.Destination.Kind == flow.EndpointPod {
		f.Service = &flow.Service{Addr: netip.AddrFrom4([4]byte{10, 96, byte(cluster), byte(b)}), Port: 8080, Namespace: foreign, Name: twin(cluster, "service")}
		if f.Destination.Namespace == own {
			f.Service = &flow.Service{Addr: netip.AddrFrom4([4]byte{10, 96, 0, byte(b)}), Port: 8080, Namespace: own, Name: "web"}
		}
	}
	both := rnd.IntN(2) == 0
	var reports []flow.Flow
	for _, e := range []*flow.Endpoint{f.Source, f.Destination} {
		if e != nil && e.Node != "" && (both || len(reports) == 0) {
			r := f
			r.Node, r.Start = e.Node, f.Start.Add(time.Duration(len(reports))*time.Millisecond)
			reports = append(reports, r)
		}
	}
	if len(reports) == 0 {
		f.Node = foreign + "/" + twin(cluster, "pod-agent")
		reports = append(reports, f)
	}
	return reports
}

// sight compares what two clusters show to one who may read a namespace: they
// differ only in what is withheld, so that every answer is the same, whatever
// is asked.
func sight(t *testing.T, s Fixture) {
	const connections = 250
	for cluster := range twins {
		rnd := rand.New(rand.NewPCG(5, 6))
		b := batch(1)
		b.Key.Cluster = twins[cluster]
		for i := range connections {
			b.Flows = append(b.Flows, twinReports(cluster, rnd, i)...)
		}
		must(t, s, b)
		recordTwin(t, s, cluster)
	}
	s.Advance(2 * time.Hour)
	differ := 0
	filters := twinFilters()
	limits := []store.FlowsRequest{{}, {First: 7}, {Last: 7}}
	for i, filter := range filters {
		one, other := twinFlows(t, s, 0, filter, limits[i%3]), twinFlows(t, s, 1, filter, limits[i%3])
		if d := diff(one, other); d != "" {
			t.Fatalf("filter %d %+v tells what is withheld: %s", i, filter, d)
		}
		flows, counted := countTwin(t, s, 0, filter)
		if a, b := countTwin(t, s, 1, filter); a != flows || b != counted || i%3 == 0 && uint64(len(one)) != flows {
			t.Errorf("filter %d %+v counts %d, %d and %d, %d of %d flows", i, filter, flows, counted, a, b, len(one))
		}
		if i%7 == 0 && twinsDiffer(t, s, filter) {
			differ++
		}
	}
	if differ < len(filters)/30 {
		t.Errorf("only %d of %d filters tell the clusters apart where nothing is withheld", differ, len(filters)/7)
	}
	twinQuestions(t, s)
	twinEdges(t, s)
	if got := all(t, s, store.FlowsRequest{}); len(got) > 0 {
		t.Errorf("who sees nothing gets %d flows", len(got))
	}
}

// twinID ends an identity; what of it shows is the same in both clusters.
func twinID(namespace string) string { return fmt.Sprintf("%02x", namespace[0]) }

// twinsDiffer reports whether who sees everything can tell the clusters apart.
func twinsDiffer(t *testing.T, s Fixture, filter flow.Filter) bool {
	t.Helper()
	var counts [len(twins)]int
	for cluster := range twins {
		filter.Match.Clusters = []string{twins[cluster]}
		counts[cluster] = len(all(t, s, store.FlowsRequest{Sight: flow.SeeAll(), Filter: filter}))
	}
	return counts[0] != counts[1]
}

func twinSight(cluster int) flow.Sight { return flow.SeeNamespaces(twins[cluster], own) }

// twinFlows are what shows of a cluster, without its name.
func twinFlows(t *testing.T, s Fixture, cluster int, filter flow.Filter, req store.FlowsRequest) []flow.Flow {
	t.Helper()
	req.Sight, req.Filter = twinSight(cluster), filter
	got := all(t, s, req)
	for i := range got {
		if got[i].Cluster != twins[cluster] {
			t.Fatalf("a flow of cluster %q shows", got[i].Cluster)
		}
		got[i].Cluster = ""
	}
	return got
}

func countTwin(t *testing.T, s Fixture, cluster int, filter flow.Filter) (flows, connections uint64) {
	t.Helper()
	flows, connections, err := s.Count(t.Context(), twinSight(cluster), filter)
	if err != nil {
		t.Fatal(err)
	}
	return flows, connections
}

// twinFilters ask for what is withheld, on either end, in the one cluster's
// words, and for what is not.
func twinFilters() []flow.Filter {
	var selectors []flow.Selector
	for _, n := range []int{1, 4, 7, 9} {
		addr, e := twinEnd(0, n)
		for _, ends := range []flow.Ends{
			{Namespaces: []string{e.Namespace}},
			{Pods: []flow.PodPrefix{{Name: e.Pod}}},
			{Workloads: []flow.WorkloadName{{Name: e.Workload.Name}}},
			{Prefixes: []netip.Prefix{netip.PrefixFrom(addr, 32)}},
			{Labels: []flow.LabelTerm{{Key: "app", Op: flow.LabelIn, Values: []string{e.Labels["app"]}}}},
			{Labels: []flow.LabelTerm{{Key: "app", Op: flow.LabelNotIn, Values: []string{e.Labels["app"]}}}},
		} {
			selectors = append(selectors, flow.Selector{From: ends}, flow.Selector{To: ends}, flow.Selector{Either: ends})
		}
		selectors = append(selectors, flow.Selector{Nodes: []string{e.Node}})
	}
	selectors = append(selectors,
		flow.Selector{}, flow.Selector{Nodes: []string{foreign + "/" + twin(0, "pod-agent")}}, flow.Selector{Ports: []uint16{8080}}, flow.Selector{Ports: []uint16{443}},
		flow.Selector{RefusedAt: []flow.Place{flow.PlaceEgress}}, flow.Selector{RefusedAt: []flow.Place{flow.PlaceIngress}}, flow.Selector{Verdicts: []flow.Verdict{flow.VerdictDenied}},
		flow.Selector{To: flow.Ends{Prefixes: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/24")}}}, flow.Selector{Either: flow.Ends{Prefixes: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24")}}})
	var out []flow.Filter
	for _, sel := range selectors {
		out = append(out, flow.Filter{Match: sel})
		if len(sel.From.Namespaces)+len(sel.From.Pods)+len(sel.From.Workloads)+len(sel.From.Prefixes)+len(sel.From.Labels) == 0 {
			out = append(out, flow.Filter{Not: sel})
		}
	}
	return out
}

// twinQuestions asks every question that may be asked, also for what is withheld.
func twinQuestions(t *testing.T, s Fixture) {
	addr, _ := twinEnd(0, 4)
	ownAddr, _ := twinEnd(0, 1)
	for _, q := range queries.All() {
		variants := []map[string]string{{}}
		for _, a := range q.Args {
			switch a.Name {
			case "workload":
				variants = []map[string]string{{"namespace": own, "workload": "web", "hops": "3"}, {"namespace": foreign, "workload": twin(0, "ledger-2"), "hops": "3"}}
			case "address":
				variants = []map[string]string{{"address": addr.String()}, {"address": ownAddr.String()}}
			case "hosts", "ports":
				variants = []map[string]string{{a.Name: "2"}}
			}
		}
		for _, args := range variants {
			for _, a := range q.Args {
				if a.Name == "since" {
					args["since"] = instant(T0.Add(-time.Hour))
				}
			}
			one, err := s.Query(t.Context(), twinSight(0), q.Name, args)
			other, err2 := s.Query(t.Context(), twinSight(1), q.Name, args)
			if q.Whole != "" {
				if !errors.Is(err, store.ErrSight) || !errors.Is(err2, store.ErrSight) {
					t.Errorf("%s: %v, %v, want that it needs everything", q.Name, err, err2)
				}
				continue
			}
			if err != nil || err2 != nil {
				t.Errorf("%s: %v, %v", q.Name, err, err2)
				continue
			}
			a, b := table(one), table(other)
			if d := cmp.Diff(a, b); d != "" {
				t.Errorf("%s %v tells what is withheld: %s", q.Name, args, d)
			}
			for _, secret := range []string{"ledger", "10.9.", "first.", "second."} {
				if strings.Contains(a, secret) {
					t.Errorf("%s %v tells %q:\n%s", q.Name, args, secret, a)
				}
			}
		}
		if _, err := s.Query(t.Context(), flow.Sight{}, q.Name, arguments(&q)); !errors.Is(err, store.ErrSight) {
			t.Errorf("%s of who sees nothing: %v", q.Name, err)
		}
	}
	if _, err := s.SQL(t.Context(), twinSight(0), "SELECT 1", 10); !errors.Is(err, store.ErrSight) {
		t.Errorf("SQL of who sees a namespace: %v", err)
	}
}

func twinEdges(t *testing.T, s Fixture) {
	var answers [len(twins)][]flow.Edge
	for cluster := range twins {
		req := store.EdgesRequest{Sight: twinSight(cluster), Until: T0.Add(100 * time.Hour)}
		err := s.Edges(t.Context(), req, func(e *flow.Edge) bool {
			shown := *e
			shown.Cluster = ""
			answers[cluster] = append(answers[cluster], shown)
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.EdgeHours(t.Context(), req, nil, nil); !errors.Is(err, store.ErrSight) {
			t.Errorf("hours of edges for who sees a namespace: %v", err)
		}
	}
	if d := edgeDiff(answers[0], answers[1]); d != "" || len(answers[0]) == 0 {
		t.Errorf("edges tell what is withheld: %s", d)
	}
	if !slices.ContainsFunc(answers[0], func(e flow.Edge) bool { return e.Destination == flow.EdgeEnd{Namespace: foreign} }) {
		t.Error("no edge shows the other namespace")
	}
}

// recordTwin tells of the two namespaces, and looks at what shows of it.
func recordTwin(t *testing.T, s Fixture, cluster int) {
	t.Helper()
	policy := []byte(`{"spec":{"podSelector":{}}}`)
	var changes []flow.Change
	for _, ns := range []string{own, foreign} {
		name := "own"
		if ns == foreign {
			name = twin(cluster, "deny")
		}
		changes = append(changes,
			flow.Change{Time: T0, Cluster: twins[cluster], Kind: flow.ChangeNamespace, Name: ns, Object: []byte(`{"team":"` + name + `"}`)},
			flow.Change{Time: T0, Cluster: twins[cluster], Kind: flow.ChangePolicy, Namespace: ns, Name: name, Object: policy},
			flow.Change{Time: T0, Cluster: twins[cluster], Kind: flow.ChangeIdentity, Namespace: ns, Name: "00000000000000" + twinID(ns), Object: []byte(`{"namespace":"` + ns + `"}`)})
	}
	if err := s.Record(t.Context(), changes); err != nil {
		t.Fatal(err)
	}
	seen := 0
	err := s.Timeline(t.Context(), twinSight(cluster), time.Time{}, T0.Add(time.Hour), func(c flow.Change) bool {
		seen++
		if c.Cluster != twins[cluster] || c.Namespace == foreign || c.Name == foreign {
			t.Errorf("shows %+v", c)
		}
		return true
	})
	if err != nil || seen != 3 {
		t.Errorf("%d changes, %v", seen, err)
	}
}
