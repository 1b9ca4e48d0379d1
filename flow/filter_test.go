package flow

import (
	"net/netip"
	"testing"
	"time"
)

func TestFilterMatches(t *testing.T) {
	f := everything()
	prefix := netip.MustParsePrefix
	for _, c := range []struct {
		name   string
		filter Filter
		want   bool
	}{
		{"nothing is asked", Filter{}, true},
		{"ends before since", Filter{Since: at(10)}, false},
		{"goes on at since", Filter{Since: at(9)}, true},
		{"begins after until", Filter{Until: at(0).Add(-time.Millisecond)}, false},
		{"begins at until", Filter{Until: at(0)}, true},

		{"its namespace", Filter{Match: Selector{Either: Ends{Namespaces: []string{"shop"}}}}, true},
		{"another namespace", Filter{Match: Selector{Either: Ends{Namespaces: []string{"bank"}}}}, false},
		{"one of two namespaces", Filter{Match: Selector{Either: Ends{Namespaces: []string{"bank", "shop"}}}}, true},
		{"from the pod's prefix", Filter{Match: Selector{From: Ends{Pods: []PodPrefix{{Name: "web"}}}}}, true},
		{"to the source's pod", Filter{Match: Selector{To: Ends{Pods: []PodPrefix{{Name: "web"}}}}}, false},
		{"the pod in another namespace", Filter{Match: Selector{From: Ends{Pods: []PodPrefix{{Namespace: "bank", Name: "web"}}}}}, false},
		{"either end's pod", Filter{Match: Selector{Either: Ends{Pods: []PodPrefix{{Namespace: "shop", Name: "db-0"}}}}}, true},
		{"workload by name", Filter{Match: Selector{To: Ends{Workloads: []WorkloadName{{Name: "db"}}}}}, true},
		{"workload by kind in another case", Filter{Match: Selector{To: Ends{Workloads: []WorkloadName{{Kind: "statefulset", Name: "db"}}}}}, true},
		{"workload of another kind", Filter{Match: Selector{To: Ends{Workloads: []WorkloadName{{Kind: "Job", Name: "db"}}}}}, false},
		{"prefix of the source", Filter{Match: Selector{From: Ends{Prefixes: []netip.Prefix{prefix("10.1.0.0/30")}}}}, true},
		{"prefix of the Service counts as the destination's", Filter{Match: Selector{To: Ends{Prefixes: []netip.Prefix{prefix("10.96.0.0/16")}}}}, true},
		{"prefix of the Service is not the source's", Filter{Match: Selector{From: Ends{Prefixes: []netip.Prefix{prefix("10.96.0.0/16")}}}}, false},
		{"label", Filter{Match: Selector{From: Ends{Labels: []LabelTerm{{Key: "role", Op: LabelIn, Values: []string{"web", "api"}}}}}}, true},
		{"label is absent", Filter{Match: Selector{From: Ends{Labels: []LabelTerm{{Key: "role", Op: LabelNotExists}}}}}, false},
		{"all label terms must hold", Filter{Match: Selector{From: Ends{Labels: []LabelTerm{{Key: "role", Op: LabelExists}, {Key: "role", Op: LabelNotIn, Values: []string{"web"}}}}}}, false},
		{"an end that is no pod has no labels to lack", Filter{Match: Selector{To: Ends{Labels: []LabelTerm{{Key: "role", Op: LabelNotExists}}}}}, true},

		{"port", Filter{Match: Selector{Ports: []uint16{80, 3306}}}, true},
		{"another port", Filter{Match: Selector{Ports: []uint16{80}}}, false},
		{"protocol", Filter{Match: Selector{Protocols: []Protocol{TCP}}}, true},
		{"verdict", Filter{Match: Selector{Verdicts: []Verdict{VerdictAllowed}}}, false},
		{"direction", Filter{Match: Selector{Directions: []Direction{DirectionEgress}}}, true},
		{"assessment", Filter{Match: Selector{Assessments: []Assessment{AssessmentEnforced}}}, true},
		{"reason", Filter{Match: Selector{Reasons: []Reason{ReasonNoRoute, ReasonLogged}}}, true},
		{"another reason", Filter{Match: Selector{Reasons: []Reason{ReasonNoRoute}}}, false},
		{"caveat", Filter{Match: Selector{Caveats: []Caveat{CaveatRecent}}}, true},
		{"where it was refused", Filter{Match: Selector{RefusedAt: []Place{PlaceEgress}}}, true},
		{"where it was not", Filter{Match: Selector{RefusedAt: []Place{PlaceIngress, PlaceBetween}}}, false},
		{"node and cluster", Filter{Match: Selector{Nodes: []string{"node-1"}, Clusters: []string{"prod"}}}, true},
		{"fields of a selector must all hold", Filter{Match: Selector{Nodes: []string{"node-1"}, Ports: []uint16{80}}}, false},

		{"not this port", Filter{Not: Selector{Ports: []uint16{3306}}}, false},
		{"not another port", Filter{Not: Selector{Ports: []uint16{80}}}, true},
		{"one field of not is enough", Filter{Not: Selector{Ports: []uint16{80}, Verdicts: []Verdict{VerdictDenied}}}, false},
		{"not this namespace at either end", Filter{Not: Selector{Either: Ends{Namespaces: []string{"shop"}}}}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := c.filter.Matches(&f); got != c.want {
				t.Errorf("matches: %v, want %v", got, c.want)
			}
		})
	}
	t.Run("a Service's port is what people type", func(t *testing.T) {
		g := everything()
		g.Port, g.Service = 8080, &Service{Addr: g.Service.Addr, Port: 80}
		if asked := (Filter{Match: Selector{Ports: []uint16{80}}}); !asked.Matches(&g) {
			t.Error("port 80 does not find a flow through Service port 80")
		}
	})
	t.Run("ICMP has no ports", func(t *testing.T) {
		g := everything()
		g.Protocol, g.Port, g.Service = ICMP, ICMPPort(0, 80), nil
		if asked := (Filter{Match: Selector{Ports: []uint16{80}}}); asked.Matches(&g) {
			t.Error("an ICMP code is taken for port 80")
		}
	})
	t.Run("unnamed ends match no name", func(t *testing.T) {
		g := everything()
		g.Source, g.Destination = nil, nil
		if asked := (Filter{Match: Selector{Either: Ends{Pods: []PodPrefix{{Name: ""}}}}}); asked.Matches(&g) {
			t.Error("the empty prefix finds an end without a pod")
		}
	})
}
