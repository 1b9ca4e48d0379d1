package history_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy/history"
	ht "github.com/flowaudit/flowaudit/policy/history/historytest"
)

func TestWhoWasThereWhen(t *testing.T) {
	c := ht.New()
	moved := ht.Begin().Add(100 * time.Hour)
	old := c.Workload("Deployment shop/web", "app=web,v=1", "http=80").Gone(moved)
	c.WorkloadAt("Deployment shop/web", "app=web,v=2", "http=8080", moved)
	c.Workload("Deployment shop/silent", "app=silent", "")
	ht.Between(c.Talk(old, ht.Outside("198.51.100.1"), "443"), ht.Begin(), moved)
	h := c.History(t)
	web := h.Workload("shop", flow.Workload{Kind: "Deployment", Name: "web"})
	if len(web.Identities) != 2 || len(web.Present()) != 1 || web.Present()[0].Labels["v"] != "2" || web.Egress != 1 || !web.Running() {
		t.Errorf("%+v", web)
	}
	if ports, known := web.Identities[0].PortsAt(moved); !known || len(ports) != 1 || ports[0].Port != 80 {
		t.Errorf("ports of then: %v, %v", ports, known)
	}
	silent := h.Workload("shop", flow.Workload{Kind: "Deployment", Name: "silent"})
	if silent == nil || silent.Egress+silent.Ingress != 0 {
		t.Errorf("a workload that never talked: %+v", silent)
	}
	if h.Workload("shop", flow.Workload{Kind: "Deployment", Name: "none"}) != nil || h.Namespace("none") != nil {
		t.Error("what was never there is found")
	}
}

func TestPoliciesOfEachTime(t *testing.T) {
	c := ht.New()
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p"}}
	c.Policy(p, ht.Begin().Add(-time.Hour))
	c.Policy(p, ht.Begin().Add(5*time.Hour))
	c.DeletePolicy("shop", "p", ht.Begin().Add(9*time.Hour))
	c.Policy(p, ht.End().Add(time.Hour)) // after the end
	h := c.History(t)
	var got []string
	for _, r := range h.Revisions {
		for _, x := range r.Changes {
			namespace, name := x.Key()
			what := "set"
			if x.NetworkPolicy == nil {
				what = "gone"
			}
			got = append(got, strings.Join([]string{r.Time.Sub(ht.Begin()).String(), namespace, name, what}, " "))
		}
	}
	if d := cmp.Diff([]string{"0s shop p set", "5h0m0s shop p set", "9h0m0s shop p gone"}, got); d != "" || len(h.Policies) != 0 {
		t.Errorf("%d policies at the end: %s", len(h.Policies), d)
	}
}

func TestEndsOfConnections(t *testing.T) {
	c := ht.New()
	web, db := c.Workload("Deployment shop/web", "app=web", ""), c.Workload("Deployment shop/db", "app=db", "")
	node := ht.Node("n1", "192.168.1.1")
	c.Talk(node, web, "80")
	for _, x := range []struct {
		name string
		edge *flow.Edge
		want func(h *history.History, e *history.Edge) bool
	}{
		{"two pods are two", c.Talk(web, web, "81"), func(h *history.History, e *history.Edge) bool {
			x := h.Connection(e)
			return x.Src.Pod != x.Dst.Pod
		}},
		{"a source that was translated to a node's address", func() *flow.Edge {
			e := c.Talk(ht.Outside("198.51.100.1"), db, "82")
			e.Seen = netip.MustParseAddr("192.168.1.1")
			return e
		}(), func(h *history.History, e *history.Edge) bool {
			x := h.Connection(e)
			return x.Seen.Kind == flow.EndpointNode && x.Seen.Node == "n1"
		}},
		{"the metadata service is outside", c.Talk(web, ht.Address{Prefix: "169.254.169.254"}, "83"), func(h *history.History, e *history.Edge) bool {
			return h.Connection(e).Dst.Kind == flow.EndpointOutside
		}},
		{"what is not known stays so", c.Talk(web, ht.Address{Prefix: "10.9.9.9"}, "84"), func(h *history.History, e *history.Edge) bool {
			return h.Connection(e).Dst.Kind == flow.EndpointUnknown
		}},
		{"another node is not the pod's", c.Talk(node, db, "85"), func(h *history.History, e *history.Edge) bool {
			x := h.Connection(e)
			return x.Src.Node != x.Dst.Node && x.Dst.Node != ""
		}},
		{"the own node", func() *flow.Edge {
			e := c.Talk(node, db, "86")
			e.Exempt = flow.ExemptOwnNode
			return e
		}(), func(h *history.History, e *history.Edge) bool {
			x := h.Connection(e)
			return x.Src.Node == x.Dst.Node
		}},
	} {
		t.Run(x.name, func(t *testing.T) {
			h := c.History(t)
			for _, e := range h.Edges {
				if e.Edge == x.edge && !x.want(h, e) {
					t.Errorf("%+v", h.Connection(e))
				}
			}
		})
	}
}

func TestHistoriesThatCannotBe(t *testing.T) {
	if _, err := history.New(history.Input{Since: ht.End(), Until: ht.Begin()}); err == nil {
		t.Error("an end before the beginning is taken")
	}
	in := ht.New()
	a, b := in.Talk(ht.Outside("198.51.100.1"), ht.Outside("198.51.100.2"), "1"), in.Talk(ht.Outside("198.51.100.1"), ht.Outside("198.51.100.2"), "2")
	a.Cluster, b.Cluster = "a", "b"
	if _, err := history.New(in.Input); err == nil {
		t.Error("two clusters are taken")
	}
}

func TestBlindTime(t *testing.T) {
	c := ht.New()
	if got := c.History(t).Blind(); got != 0 {
		t.Errorf("%g blind, want 0", got)
	}
	c.Input.Coverage.Nodes = append(c.Input.Coverage.Nodes, flow.NodeCoverage{Node: "n2"})
	if got := c.History(t).Blind(); got != 0.5 {
		t.Errorf("%g blind, want 0.5", got)
	}
	c.Input.Coverage.Nodes = nil
	if got := c.History(t).Blind(); got != 1 {
		t.Errorf("%g blind, want 1", got)
	}
}

// Entries of the timeline that cannot be read are problems, and nothing else.
func FuzzTimeline(f *testing.F) {
	f.Add(uint8(1), "shop", "p", []byte(`{"spec":{"podSelector":{}}}`))
	f.Add(uint8(2), "", "shop", []byte(`{"team":"a"}`))
	f.Add(uint8(3), "shop", "00000000000000ff", []byte(`{"namespace":"shop","labels":{"a":"b"},"ports":[{"name":"http","protocol":6,"port":80}]}`))
	f.Fuzz(func(t *testing.T, kind uint8, namespace, name string, object []byte) {
		in := history.Input{Since: ht.Begin(), Until: ht.End()}
		c := flow.Change{Time: ht.Begin(), Kind: flow.ChangeKind(kind), Namespace: namespace, Name: name, Object: object}
		gone := c
		gone.Deleted = true
		in.Changes = []flow.Change{c, gone, c}
		h, err := history.New(in)
		if err != nil {
			t.Fatal(err)
		}
		if kind >= 1 && kind <= 3 && len(h.Problems) == 0 && len(h.Policies)+len(h.Namespaces)+len(h.Identities) == 0 {
			t.Error("an entry is lost")
		}
	})
}
