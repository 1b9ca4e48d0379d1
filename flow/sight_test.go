package flow

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var sightIP = netip.MustParseAddr

func sightPod(namespace, name string) *Endpoint {
	return &Endpoint{
		Kind: EndpointPod, Namespace: namespace, Pod: name + "-1", Workload: Workload{Kind: "Deployment", Name: name}, Node: "node-of-" + name, Identity: 9,
		Labels: map[string]string{"app": name},
	}
}

func sightFlow(source, destination *Endpoint) Flow {
	return Flow{
		Key:     Key{Protocol: TCP, Src: sightIP("10.0.0.1"), Dst: sightIP("10.0.0.2"), Port: 80, Verdict: VerdictDenied, Direction: DirectionIngress},
		Cluster: "c", Source: source, Destination: destination, TranslatedSrc: sightIP("172.18.0.2"), Connections: 3, SourcePort: 4000,
		Reason: ReasonLogged, Expected: VerdictDenied, Assessment: AssessmentEnforced,
	}
}

// TestSightOfAFlow: the reader may read shop.
func TestSightOfAFlow(t *testing.T) {
	s := SeeNamespaces("c", "shop")
	web, db, ledger := sightPod("shop", "web"), sightPod("shop", "db"), sightPod("bank", "ledger")
	outside, node := &Endpoint{Kind: EndpointOutside}, &Endpoint{Kind: EndpointNode, Node: "n9", Candidates: []string{"bank/host", "shop/host"}}
	bank := &Endpoint{Namespace: "bank"}
	none := netip.Addr{}
	for name, c := range map[string]struct {
		flow   Flow
		change func(*Flow) // of what shows
	}{
		"both ends": {sightFlow(web, db), func(*Flow) {}},
		"its source": {sightFlow(web, ledger), func(f *Flow) {
			f.Destination, f.Dst = bank, none
		}},
		"its destination": {sightFlow(ledger, db), func(f *Flow) {
			f.Source, f.Src, f.TranslatedSrc = bank, none, none
		}},
		"outside":    {sightFlow(web, outside), func(*Flow) {}},
		"a node":     {sightFlow(node, db), func(f *Flow) { f.Source = &Endpoint{Kind: EndpointNode, Node: "n9", Candidates: []string{"shop/host"}} }},
		"who was it": {sightFlow(web, &Endpoint{Kind: EndpointAmbiguous, Candidates: []string{"bank/a"}}), func(f *Flow) { f.Destination, f.Dst = nil, none }},
		"nobody":     {sightFlow(nil, db), func(f *Flow) { f.Src, f.TranslatedSrc = none, none }},
	} {
		want := c.flow
		c.change(&want)
		got, ok := s.Flow(c.flow)
		if d := sightDiff(want, got); d != "" || !ok {
			t.Errorf("%s: %t %s", name, ok, d)
		}
		if whole, ok := SeeAll().Flow(c.flow); !ok || sightDiff(c.flow, whole) != "" {
			t.Errorf("%s: who sees everything does not see it whole", name)
		}
	}
	other := sightFlow(web, db)
	other.Cluster = "d"
	for name, f := range map[string]Flow{"another namespace's": sightFlow(ledger, ledger), "in no namespace": sightFlow(outside, node), "of another cluster": other, "unknown": sightFlow(nil, nil)} {
		if got, ok := s.Flow(f); ok {
			t.Errorf("a flow %s shows: %+v", name, got)
		}
		if _, ok := (Sight{}).Flow(f); ok {
			t.Errorf("who sees nothing sees a flow %s", name)
		}
	}
	if _, ok := (Sight{}).Flow(sightFlow(web, db)); ok {
		t.Error("who sees nothing sees a flow")
	}
}

func sightDiff(a, b any) string {
	return cmp.Diff(a, b, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmpopts.EquateEmpty())
}

func TestSightOfWhatDecidedAndWhoReports(t *testing.T) {
	s := SeeNamespaces("c", "shop")
	f := sightFlow(sightPod("shop", "web"), sightPod("bank", "ledger"))
	f.Policies = []PolicyRef{{Namespace: "bank", Name: "deny"}, {Namespace: "shop", Name: "own"}, {Name: "cluster-wide"}, {Kind: KindNetfilter, Namespace: "shop", Name: "chain"}}
	for reporter, want := range map[string]string{"node-of-web": "node-of-web", "node-of-ledger": "", "bank/ledger-1": "", "shop/web-1": "shop/web-1", "other": ""} {
		f.Node = reporter
		got, _ := s.Flow(f)
		if got.Node != want {
			t.Errorf("reporter %q shows as %q, want %q", reporter, got.Node, want)
		}
		if len(got.Policies) != 1 || got.Policies[0].Name != "own" || len(f.Policies) != 4 {
			t.Errorf("policies %+v", got.Policies)
		}
	}
	for namespace, shows := range map[string]bool{"shop": true, "bank": false, "": false} {
		f.Service = &Service{Addr: sightIP("10.96.0.1"), Port: 80, Namespace: namespace, Name: "x"}
		if got, _ := s.Flow(f); (got.Service != nil) != shows {
			t.Errorf("Service of %q: %v", namespace, got.Service)
		}
	}
}

// TestEdgesThatLookAlikeAreOne: how many there are tells of what is withheld.
func TestEdgesThatLookAlikeAreOne(t *testing.T) {
	at := time.Unix(1_700_000_000, 0)
	edge := func(source, destination string, identity uint64, connections uint64) *Edge {
		return &Edge{
			EdgeKey: EdgeKey{
				Cluster: "c", Source: EdgeEnd{Kind: EndpointPod, Namespace: source, Identity: 1, Workload: Workload{Name: "w"}},
				Destination: EdgeEnd{Kind: EndpointPod, Namespace: destination, Identity: identity, Workload: Workload{Name: "x"}}, Port: 80,
			},
			First: at, Last: at, Hours: 1, Connections: connections, DestinationLabels: map[string]string{"a": "b"},
		}
	}
	var got []*Edge
	seen := NewSeenEdges(SeeNamespaces("c", "shop"), func(e *Edge) bool { got = append(got, e); return true })
	for _, e := range []*Edge{edge("shop", "bank", 2, 1), edge("shop", "bank", 3, 4), edge("shop", "shop", 1, 9), edge("bank", "bank", 2, 100), edge("bank", "shop", 5, 7)} {
		if !seen.Add(e) {
			t.Fatal("no more wanted")
		}
	}
	seen.Close()
	counts := make(map[string]uint64)
	for _, e := range got {
		counts[e.Source.Namespace+">"+e.Destination.Namespace] += e.Connections
		if e.Destination.Namespace == "bank" && (e.Destination != EdgeEnd{Namespace: "bank"} || e.DestinationLabels != nil) {
			t.Errorf("shows %+v", e)
		}
	}
	if d := cmp.Diff(map[string]uint64{"shop>bank": 5, "shop>shop": 9, "bank>shop": 7}, counts); d != "" || len(got) != 3 {
		t.Errorf("%d edges: %s", len(got), d)
	}
}

func TestSightOfCoverage(t *testing.T) {
	c := Coverage{Nodes: []NodeCoverage{{Node: "n1", Gaps: []Gap{{Node: "n1", Lost: 3, Detail: "of bank/ledger"}}}, {Node: "bank/ledger-1", Scope: ScopePod}, {Node: "shop/web-1", Scope: ScopePod}}}
	got := SeeNamespaces("c", "shop").Coverage(c)
	want := Coverage{Nodes: []NodeCoverage{{Node: "n1", Gaps: []Gap{{Node: "n1", Lost: 3}}}, {Node: "shop/web-1", Scope: ScopePod}}}
	if d := sightDiff(want, got); d != "" {
		t.Error(d)
	}
	if n := len((Sight{}).Coverage(c).Nodes); n > 0 {
		t.Errorf("who sees nothing sees %d nodes", n)
	}
}

func TestSightOfNamespaces(t *testing.T) {
	s := SeeNamespaces("c", "shop", "", "shop", "bank")
	for namespace, sees := range map[string]bool{"shop": true, "bank": true, "": false, "shop2": false, "sho": false} {
		if s.Namespace(namespace) != sees {
			t.Errorf("%q: %t", namespace, !sees)
		}
	}
	if !SeeAll().Namespace("") || !SeeAll().Namespace("x") || (Sight{}).Namespace("x") {
		t.Error("everything and nothing")
	}
	if !s.Equal(SeeNamespaces("c", "bank", "shop")) || s.Equal(SeeNamespaces("d", "bank", "shop")) || s.Equal(SeeAll()) || !SeeNamespaces("c").Nothing() {
		t.Error("what is equal")
	}
	for name, c := range map[string]struct {
		change Change
		want   bool
	}{
		"a policy":                    {Change{Cluster: "c", Kind: ChangePolicy, Namespace: "shop"}, true},
		"a namespace":                 {Change{Cluster: "c", Kind: ChangeNamespace, Name: "shop"}, true},
		"another namespace":           {Change{Cluster: "c", Kind: ChangeNamespace, Name: "x"}, false},
		"a policy named as it":        {Change{Cluster: "c", Kind: ChangePolicy, Namespace: "x", Name: "shop"}, false},
		"a policy in no namespace":    {Change{Cluster: "c", Kind: ChangePolicy, Name: "shop"}, false},
		"a policy of another cluster": {Change{Cluster: "d", Kind: ChangePolicy, Namespace: "shop"}, false},
	} {
		if s.Change(&c.change) != c.want {
			t.Errorf("%s: %t", name, !c.want)
		}
	}
}
