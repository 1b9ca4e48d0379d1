package flowauditv1

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/flowaudit/flowaudit/flow"
)

func someEdges() []*flow.Edge {
	pod := flow.EdgeEnd{Kind: flow.EndpointPod, Identity: 1 << 63, Namespace: "shop", Workload: flow.Workload{Kind: "Deployment", Name: "web"}}
	return []*flow.Edge{
		{
			EdgeKey: flow.EdgeKey{
				Cluster: "c", Source: flow.EdgeEnd{Kind: flow.EndpointNode, Node: "n1", Prefix: netip.MustParsePrefix("10.0.0.1/32")}, Destination: pod,
				Seen: netip.MustParseAddr("fd00::1"), Protocol: flow.SCTP, Port: 65535, Direction: flow.DirectionIngress, Verdict: flow.VerdictUnanswered,
				Expected: flow.VerdictDenied, Assessment: flow.AssessmentEnforced, Caveat: flow.CaveatSame, Exempt: flow.ExemptOwnNode,
			},
			First: time.UnixMilli(1_790_000_000_000), Last: time.UnixMilli(1_790_000_000_001), Hours: 3, Connections: 4, Sent: 5, Received: 6,
			DestinationLabels: map[string]string{"app": "web"},
		},
		{
			EdgeKey: flow.EdgeKey{Source: pod, Destination: flow.EdgeEnd{Kind: flow.EndpointOutside, Prefix: netip.MustParsePrefix("2001:db8::/64")}},
			First:   time.UnixMilli(1_790_000_000_000), Last: time.UnixMilli(1_790_000_000_000), SourceLabels: map[string]string{"app": "web"},
		},
	}
}

func TestEdgesRoundTrip(t *testing.T) {
	message := FromEdges(someEdges())
	if len(message.Ends) != 3 {
		t.Errorf("%d ends, want 3: the pods are one", len(message.Ends))
	}
	got, err := message.ToEdges()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(someEdges(), got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty()); d != "" {
		t.Error(d)
	}
}

func TestInvalidEdgesAreNamed(t *testing.T) {
	for _, c := range []struct {
		field  string
		change func(*EdgesResponse)
	}{
		{"source", func(x *EdgesResponse) { x.Edges[0].Source = 0 }},
		{"destination", func(x *EdgesResponse) { x.Edges[0].Destination = 9 }},
		{"protocol", func(x *EdgesResponse) { x.Edges[0].Protocol = 256 }},
		{"port", func(x *EdgesResponse) { x.Edges[0].Port = 65536 }},
		{"last", func(x *EdgesResponse) { x.Edges[0].Last = x.Edges[0].First - 1 }},
		{"seen", func(x *EdgesResponse) { x.Edges[0].Seen = []byte{1} }},
		{"direction", func(x *EdgesResponse) { x.Edges[0].Direction = 9 }},
		{"verdict", func(x *EdgesResponse) { x.Edges[0].Verdict = -1 }},
		{"expected", func(x *EdgesResponse) { x.Edges[0].Expected = 9 }},
		{"assessment", func(x *EdgesResponse) { x.Edges[0].Assessment = 99 }},
		{"caveat", func(x *EdgesResponse) { x.Edges[0].Caveat = 99 }},
		{"exempt", func(x *EdgesResponse) { x.Edges[0].Exempt = 9 }},
		{"address", func(x *EdgesResponse) { x.Ends[0].Bits = 33 }},
	} {
		message := FromEdges(someEdges())
		c.change(message)
		_, err := message.ToEdges()
		var field *FieldError
		if !errors.As(err, &field) || field.Field != c.field {
			t.Errorf("%s: the error is %v", c.field, err)
		}
	}
}

func TestChangesRoundTrip(t *testing.T) {
	want := flow.Change{
		Time: time.UnixMilli(1_790_000_000_000), Cluster: "c", Kind: flow.ChangeIdentity, Namespace: "shop", Name: "n", Author: "kubectl", Deleted: true, Object: []byte("{}"),
	}
	got, err := ToChange(FromChange(want))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if _, err := ToChange(&Change{Kind: 9}); err == nil {
		t.Error("an unknown kind is taken")
	}
}
