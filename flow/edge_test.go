package flow

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func edgeLines(edges []*Edge) []string {
	var out []string
	for _, e := range edges {
		out = append(out, fmt.Sprintf("%s ×%d %d", e.Verdict, e.Connections, e.Sent))
	}
	slices.Sort(out)
	return out
}

func TestEdgesOfTwoNodes(t *testing.T) {
	for _, c := range []struct {
		name    string
		reports []Flow
		want    []string
	}{
		{"one node", []Flow{told(0, "a", VerdictAllowed, 3, 10), told(1, "a", VerdictDenied, 2, 5)}, []string{"allowed ×3 10", "denied ×2 5"}},
		{"both nodes saw the same", []Flow{told(0, "a", VerdictAllowed, 3, 10), told(0, "b", VerdictAllowed, 2, 12)}, []string{"allowed ×3 12"}},
		{"refused there, unanswered here", []Flow{told(0, "a", VerdictUnanswered, 3, 0), told(0, "b", VerdictDenied, 3, 0)}, []string{"denied ×3 0"}},
		{
			"some refused there, others lost between",
			[]Flow{told(0, "a", VerdictUnanswered, 5, 0), told(0, "b", VerdictDenied, 3, 0)},
			[]string{"denied ×3 0", "unanswered ×2 0"},
		},
		{
			"some answered, some refused there",
			[]Flow{told(0, "a", VerdictAllowed, 4, 9), told(0, "a", VerdictUnanswered, 1, 0), told(0, "b", VerdictAllowed, 4, 8), told(0, "b", VerdictDenied, 1, 0)},
			[]string{"allowed ×4 9", "denied ×1 0"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := NewEdgeBuilder()
			b.Add(c.reports)
			if d := cmp.Diff(c.want, edgeLines(b.Edges())); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestEdgesKeepClustersApart(t *testing.T) {
	a, b := told(0, "a", VerdictAllowed, 1, 1), told(0, "b", VerdictAllowed, 1, 1)
	b.Cluster = "other"
	builder := NewEdgeBuilder()
	builder.Add([]Flow{a, b})
	if got := builder.Edges(); len(got) != 2 {
		t.Errorf("%d edges, want one a cluster", len(got))
	}
}

// outsideEdges are n connections of one workload to addresses of one /16.
func outsideEdges(n int, port uint16) []*Edge {
	b := NewEdgeBuilder()
	for i := range n {
		f := told(0, "a", VerdictAllowed, 1, 1)
		f.Port = port
		f.Source = &Endpoint{Kind: EndpointPod, Identity: 7, Namespace: "shop", Workload: Workload{"Deployment", "web"}}
		f.Destination = &Endpoint{Kind: EndpointOutside}
		f.Dst = netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
		b.Add([]Flow{f})
	}
	return b.Edges()
}

func TestEdgesKeepOutsideAddressesUpToABound(t *testing.T) {
	exact := outsideEdges(maxOutside, 443)
	if len(exact) != maxOutside || exact[0].Destination.Aggregated() {
		t.Errorf("%d edges, aggregated: %v; want %d exact ones", len(exact), exact[0].Destination.Aggregated(), maxOutside)
	}
	wide := outsideEdges(maxOutside+1, 443)
	var connections uint64
	for _, e := range wide {
		if !e.Destination.Aggregated() || e.Destination.Prefix.Bits() != 24 {
			t.Fatalf("%s is no network of many", e.Destination.Prefix)
		}
		connections += e.Connections
	}
	if len(wide) != 17 || connections != maxOutside+1 {
		t.Errorf("%d networks with %d connections, want 17 with %d", len(wide), connections, maxOutside+1)
	}
}

func TestEdgesSayWhatNoPolicyCanRefuse(t *testing.T) {
	pod := func(name, node string) *Endpoint {
		return &Endpoint{Kind: EndpointPod, Namespace: "shop", Pod: name, Identity: 1, Node: node}
	}
	node := func(name string) *Endpoint { return &Endpoint{Kind: EndpointNode, Node: name} }
	for _, c := range []struct {
		name     string
		src, dst *Endpoint
		want     Exemption
	}{
		{"a pod and itself", pod("a", "n1"), pod("a", "n1"), ExemptSamePod},
		{"two pods of one node", pod("a", "n1"), pod("b", "n1"), ExemptNone},
		{"a probe by the own node", node("n1"), pod("a", "n1"), ExemptOwnNode},
		{"a pod and its node", pod("a", "n1"), node("n1"), ExemptOwnNode},
		{"another node", node("n2"), pod("a", "n1"), ExemptNone},
		{"nodes without names", node(""), pod("a", ""), ExemptNone},
		{"two nodes", node("n1"), node("n1"), ExemptNone},
		{"an end that is not known", nil, pod("a", "n1"), ExemptNone},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := told(0, "n1", VerdictAllowed, 1, 1)
			f.Source, f.Destination = c.src, c.dst
			b := NewEdgeBuilder()
			b.Add([]Flow{f})
			if got := b.Edges()[0].Exempt; got != c.want {
				t.Errorf("exempt is %q, want %q", got, c.want)
			}
		})
	}
}
