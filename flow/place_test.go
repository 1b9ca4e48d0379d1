package flow

import "testing"

func TestRefusedAt(t *testing.T) {
	pod := func(node string) *Endpoint { return &Endpoint{Kind: EndpointPod, Pod: "p", Node: node} }
	end := func(kind EndpointKind) *Endpoint { return &Endpoint{Kind: kind} }
	for _, c := range []struct {
		name     string
		node     string // that reports
		src, dst *Endpoint
		verdict  Verdict
		reason   Reason
		want     Place
	}{
		{"by the source's node", "a", pod("a"), pod("b"), VerdictDenied, ReasonLogged, PlaceEgress},
		{"by the destination's node", "b", pod("a"), pod("b"), VerdictDenied, ReasonNeverConfirmed, PlaceIngress},
		{"between pods of one node", "a", pod("a"), pod("a"), VerdictDenied, ReasonLogged, PlaceUnknown},
		{"by a node that is neither's", "c", pod("a"), pod("b"), VerdictDenied, ReasonLogged, PlaceUnknown},
		{"from outside", "b", end(EndpointOutside), pod("b"), VerdictDenied, ReasonLogged, PlaceIngress},
		{"to outside", "a", pod("a"), end(EndpointOutside), VerdictDenied, ReasonLogged, PlaceEgress},
		{"to a Service that leads nowhere", "a", pod("a"), end(EndpointService), VerdictDenied, ReasonNoEndpoint, PlaceEgress},
		{"to the API server", "a", pod("a"), end(EndpointAPIServer), VerdictDenied, ReasonLogged, PlaceEgress},
		{"from a node to a pod of another", "b", &Endpoint{Kind: EndpointNode, Node: "a"}, pod("b"), VerdictDenied, ReasonLogged, PlaceIngress},
		{"to an address of nobody knows whom", "a", pod("a"), nil, VerdictDenied, ReasonLogged, PlaceUnknown},
		{"to an end of unknown kind", "a", pod("a"), end(EndpointUnknown), VerdictDenied, ReasonLogged, PlaceUnknown},
		{"to an ambiguous address", "a", pod("a"), end(EndpointAmbiguous), VerdictDenied, ReasonLogged, PlaceUnknown},
		{"to a pod of an unknown node", "a", pod("a"), pod(""), VerdictDenied, ReasonLogged, PlaceUnknown},
		{"by an unknown node", "", pod("a"), pod("b"), VerdictDenied, ReasonLogged, PlaceUnknown},
		{"on the way", "a", pod("a"), pod("b"), VerdictUnanswered, ReasonLostBetween, PlaceBetween},
		{"no answer, and no more is known", "a", pod("a"), pod("b"), VerdictUnanswered, ReasonNoReply, PlaceUnknown},
		{"not at all", "b", pod("a"), pod("b"), VerdictAllowed, ReasonReply, PlaceUnknown},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := Flow{Key: Key{Verdict: c.verdict, Direction: DirectionEgress}, Node: c.node, Source: c.src, Destination: c.dst, Reason: c.reason}
			if got := f.RefusedAt(); got != c.want {
				t.Errorf("refused at %s, want %s", got, c.want)
			}
		})
	}
}

func TestMergeSaysWhereItWasRefusedOnlyIfThatIsSure(t *testing.T) {
	ends := func(f Flow, direction Direction) Flow {
		f.Source, f.Destination = &Endpoint{Kind: EndpointPod, Pod: "s", Node: "a"}, &Endpoint{Kind: EndpointPod, Pod: "d", Node: "b"}
		f.Direction = direction
		return f
	}
	lost := ends(told(0, "a", VerdictUnanswered, 1, 60), DirectionEgress)
	lost.Reason = ReasonLostBetween
	for _, c := range []struct {
		name    string
		reports []Flow
		want    Place
	}{
		{
			"the destination's refusal explains the source's silence",
			[]Flow{ends(told(0, "a", VerdictUnanswered, 1, 60), DirectionEgress), ends(told(0, "b", VerdictDenied, 1, 60), DirectionIngress)},
			PlaceIngress,
		},
		{
			"each refused connections of its own",
			[]Flow{ends(told(0, "a", VerdictDenied, 1, 60), DirectionEgress), ends(told(0, "b", VerdictDenied, 1, 60), DirectionIngress)},
			PlaceUnknown,
		},
		{"nobody else saw it", []Flow{lost}, PlaceBetween},
		{"it came late", []Flow{lost, ends(told(9, "b", VerdictUnanswered, 1, 60), DirectionIngress)}, PlaceUnknown},
		{"it came late, and was refused", []Flow{lost, ends(told(9, "b", VerdictDenied, 1, 60), DirectionIngress)}, PlaceIngress},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := Merge(c.reports, slack)
			if len(got) != 1 || got[0].RefusedAt() != c.want {
				t.Errorf("%d flows, refused at %s, want 1 at %s", len(got), got[0].RefusedAt(), c.want)
			}
		})
	}
}

func TestCodesAreReadAsTheyAreWritten(t *testing.T) {
	for _, r := range Reasons() {
		if got, err := ParseReason(r.String()); err != nil || got != r {
			t.Errorf("reason %q is read as %v: %v", r, got, err)
		}
	}
	for _, c := range Caveats() {
		if got, err := ParseCaveat(c.String()); err != nil || got != c {
			t.Errorf("caveat %q is read as %v: %v", c, got, err)
		}
	}
	for p := PlaceEgress; p <= PlaceBetween; p++ {
		if got, err := ParsePlace(p.String()); err != nil || got != p {
			t.Errorf("place %q is read as %v: %v", p, got, err)
		}
	}
	for _, text := range []string{"", "unknown", "nowhere"} {
		if _, err := ParsePlace(text); err == nil {
			t.Errorf("%q is read as a place", text)
		}
		if _, err := ParseReason(text); err == nil {
			t.Errorf("%q is read as a reason", text)
		}
	}
}
