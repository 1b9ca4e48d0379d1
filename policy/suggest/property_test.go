package suggest_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy"
	"github.com/flowaudit/flowaudit/policy/history"
	ht "github.com/flowaudit/flowaudit/policy/history/historytest"
	"github.com/flowaudit/flowaudit/policy/lint"
	"github.com/flowaudit/flowaudit/policy/suggest"
)

// random fills a cluster with workloads whose labels overlap, and with traffic
// that nothing forbids yet.
func random(rnd *rand.Rand, c *ht.Cluster, workloads, edges int) []ht.Party {
	pick := func(list ...string) string { return list[rnd.IntN(len(list))] }
	var parties []ht.Party
	for n := range workloads {
		labels := fmt.Sprintf("app=%s,tier=%s,release=r%d", pick("web", "db", "api", "mq"), pick("a", "b"), n%5)
		if rnd.IntN(4) > 0 {
			labels += fmt.Sprintf(",name=w%d", n)
		}
		ports := pick("", "http=8080", "http=8080,dns=53/udp", "http=9090")
		parties = append(parties, c.Workload(fmt.Sprintf("%s ns%d/w%d", pick("Deployment", "StatefulSet"), n%3, n), labels, ports))
		if rnd.IntN(3) == 0 { // a release that changed a label
			parties = append(parties, c.Workload(fmt.Sprintf("Deployment ns%d/w%d", n%3, n), labels+",track=canary", ports))
		}
	}
	for n := range 6 {
		parties = append(parties, ht.Outside(fmt.Sprintf("198.51.100.%d", n+rnd.IntN(3))), ht.Outside(fmt.Sprintf("2001:db8::%x", n)), ht.Outside(fmt.Sprintf("10.20.0.%d", n)),
			ht.Node(fmt.Sprintf("n%d", n), fmt.Sprintf("192.168.1.%d", n+1)))
	}
	for range edges {
		from, to := parties[rnd.IntN(len(parties))], parties[rnd.IntN(len(parties))]
		_, podFrom := from.(*ht.Pods)
		_, podTo := to.(*ht.Pods)
		if !podFrom && !podTo {
			continue
		}
		e := c.Talk(from, to, pick("80", "8080", "53/udp", "9090", "3868/sctp", "30001", "30002", "30003"))
		begin := ht.Begin().Add(time.Duration(rnd.IntN(600)) * time.Hour)
		ht.Between(e, begin, begin.Add(time.Duration(rnd.IntN(100))*time.Hour))
		if rnd.IntN(8) == 0 && podTo {
			e.Seen = netip.AddrFrom4([4]byte{192, 168, 1, byte(1 + rnd.IntN(6))})
		}
	}
	return parties
}

// judged gives every edge the expectation that the policies of its time mean,
// and lets those that they deny fail, as a plugin would.
func judged(t *testing.T, c *ht.Cluster) {
	h := c.History(t)
	engine, err := policy.New(policy.Options{Classes: h.Classes()})
	if err != nil {
		t.Fatal(err)
	}
	next := 0
	for _, e := range h.Edges {
		for next < len(h.Revisions) && !h.Revisions[next].Time.After(e.First) {
			for _, p := range h.Revisions[next].Changes {
				if p.NetworkPolicy == nil {
					engine.DeletePolicy(p.Key())
				} else {
					engine.SetPolicy(p.NetworkPolicy)
				}
			}
			next++
		}
		if next < len(h.Revisions) && !h.Revisions[next].Time.After(e.Last) {
			e.Last = h.Revisions[next].Time.Add(-time.Minute) // an edge for each expectation
			if e.Last.Before(e.First) {
				e.Last = e.First
			}
		}
		connection := h.Connection(e)
		switch engine.Snapshot().Decide(&connection).Verdict {
		case flow.VerdictDenied:
			ht.Refuse(e.Edge)
		case flow.VerdictUnknown:
			e.Expected, e.Assessment = flow.VerdictUnknown, flow.AssessmentUnknown
		case flow.VerdictAllowed, flow.VerdictUnanswered:
		}
	}
}

// randomPolicy is broad or narrow, for pods of some labels.
func randomPolicy(rnd *rand.Rand, n int) *networkingv1.NetworkPolicy {
	some := func() metav1.LabelSelector {
		keys := []metav1.LabelSelector{
			{},
			{MatchLabels: map[string]string{"app": []string{"web", "db", "api"}[rnd.IntN(3)]}},
			{MatchLabels: map[string]string{"tier": "a"}},
			{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "name", Operator: metav1.LabelSelectorOpExists}}},
		}
		return keys[rnd.IntN(len(keys))]
	}
	peer := func() networkingv1.NetworkPolicyPeer {
		pods, namespaces := some(), metav1.LabelSelector{}
		switch rnd.IntN(3) {
		case 0:
			return networkingv1.NetworkPolicyPeer{PodSelector: &pods}
		case 1:
			return networkingv1.NetworkPolicyPeer{PodSelector: &pods, NamespaceSelector: &namespaces}
		}
		return networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: []string{"0.0.0.0/0", "198.51.100.0/29", "::/0"}[rnd.IntN(3)]}}
	}
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprintf("ns%d", rnd.IntN(3)), Name: fmt.Sprintf("p%d", n)}}
	p.Spec.PodSelector = some()
	p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	for range rnd.IntN(3) {
		p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: []networkingv1.NetworkPolicyPeer{peer(), peer()}})
	}
	if rnd.IntN(2) == 0 {
		p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		p.Spec.Egress = append(p.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: []networkingv1.NetworkPolicyPeer{peer(), peer()}})
	}
	return p
}

// Whatever the cluster, the policies and the traffic are: what is suggested
// refuses nothing that was learnt, and permits nothing else.
func TestSuggestionsAreExact(t *testing.T) {
	for seed := range uint64(80) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		c := ht.New()
		random(rnd, c, 3+rnd.IntN(15), 20+rnd.IntN(100))
		for n := range rnd.IntN(6) {
			c.Policy(randomPolicy(rnd, n), ht.Begin().Add(time.Duration(rnd.IntN(800)-100)*time.Hour))
		}
		judged(t, c)
		for _, o := range []suggest.Options{
			{Mode: suggest.Add},
			{Mode: suggest.Replace},
			{Mode: suggest.Tighten},
			{Mode: suggest.Add, NoEgress: true},
			{Mode: suggest.Replace, Isolation: suggest.PerNamespace},
			{Mode: suggest.Replace, CIDRSlack: 8, PortSlack: 0.5, ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}},
			{Mode: suggest.Replace, Namespaces: []string{"ns1"}},
			{Mode: suggest.Replace, Workloads: []flow.WorkloadName{{Name: "w1"}}},
		} {
			r := proven(t, c, o)
			if t.Failed() {
				t.Fatalf("seed %d, mode %s, isolation %q", seed, o.Mode, o.Isolation)
			}
			if len(r.Proof.Allowed) > 0 && o.Mode == suggest.Tighten {
				t.Fatalf("seed %d: tightened, more is allowed: %+v", seed, r.Proof.Allowed)
			}
			noWider(t, c.History(t), r, o)
			if seed%8 == 0 {
				lints(t, r)
			}
		}
	}
}

// noWider checks with an engine of its own, and not by the proof, that what
// the suggestion permits of all that there could be was seen.
func noWider(t *testing.T, h *history.History, r *suggest.Result, o suggest.Options) {
	t.Helper()
	if o.Mode != suggest.Replace || o.Isolation != "" || o.PortSlack > 0 || len(o.Namespaces)+len(o.Workloads) > 0 {
		return
	}
	var policies []*networkingv1.NetworkPolicy
	for _, p := range r.Policies {
		policies = append(policies, p.Object)
	}
	engine, err := policy.New(policy.Options{Classes: h.Classes(), Policies: policies})
	if err != nil {
		t.Fatal(err)
	}
	decided := make(map[flow.EdgeKey]bool)
	for _, d := range r.Proof.Decided {
		if d.Reason != suggest.RefusedNow && d.Reason != suggest.NoSelector {
			t.Fatalf("%s -> %s %d is refused for the reason %q, of which there is none here", d.Source, d.Destination, d.Port, d.Reason)
		}
		for _, e := range d.Edges() {
			decided[e.EdgeKey] = true
		}
	}
	for _, e := range h.Edges {
		c := h.Connection(e)
		if d := engine.Snapshot().Decide(&c); e.Verdict == flow.VerdictAllowed && d.Verdict == flow.VerdictDenied && !decided[e.EdgeKey] {
			t.Fatalf("%+v would be refused, and the proof does not say so", e.EdgeKey)
		}
	}
	type use struct {
		from, to *history.Workload
		port     uint16
	}
	seen := make(map[use]bool)
	for _, e := range h.Edges {
		if e.Verdict == flow.VerdictAllowed {
			seen[use{e.From.Workload, e.To.Workload, e.Port}] = true
		}
	}
	alike := len(r.Proof.Loose.List) > 0 // labels that tell nothing are accounted for there
	for _, from := range h.Identities {
		for _, to := range h.Identities {
			if alike || len(from.Workloads) != 1 || len(to.Workloads) != 1 || from.Workloads[0].Egress == 0 || to.Workloads[0].Ingress == 0 {
				continue
			}
			for _, port := range []uint16{80, 8080, 9090, 4444, 30002} {
				d := engine.Snapshot().Decide(&policy.Connection{Src: from.End(h.Until, "a"), Dst: to.End(h.Until, "b"), Protocol: flow.TCP, Port: port})
				if d.Verdict == flow.VerdictAllowed && d.Ingress.Isolated && !seen[use{from.Workloads[0], to.Workloads[0], port}] {
					t.Fatalf("%s -> %s %d is permitted and was never seen", from.Workloads[0], to.Workloads[0], port)
				}
			}
		}
	}
}

// lints checks that the API server would take the policies: their YAML is read
// strictly, and no field is found wrong.
func lints(t *testing.T, r *suggest.Result) {
	t.Helper()
	o := &lint.Objects{}
	for i := range r.Policies {
		text, err := r.Policies[i].YAML(true)
		if err != nil {
			t.Fatal(err)
		}
		var p networkingv1.NetworkPolicy
		if err := yaml.UnmarshalStrict(text, &p); err != nil {
			t.Fatalf("%v:\n%s", err, text)
		}
		if d := cmp.Diff(r.Policies[i].Object, &p, cmpopts.EquateEmpty()); d != "" {
			t.Fatal(d)
		}
		o.Policies = append(o.Policies, &p)
	}
	for _, f := range lint.Check(o) {
		if f.Severity == lint.Error && r.Mode != suggest.Tighten {
			t.Fatalf("%s/%s %s: %s", f.Namespace, f.Name, f.Field, f.Message)
		}
	}
}
