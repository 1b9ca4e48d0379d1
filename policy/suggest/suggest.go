package suggest

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy"
	"github.com/flowaudit/flowaudit/policy/history"
	"github.com/flowaudit/flowaudit/policy/replay"
)

// Names of what is written.
const (
	namePrefix  = "flowaudit-"
	denyName    = namePrefix + "default-deny"
	coarseName  = namePrefix + "namespace"
	managedBy   = "app.kubernetes.io/managed-by"
	managedName = "flowaudit"
)

// maxName is how long a policy's name may be.
const maxName = 253

// Run suggests policies for a history.
func Run(h *history.History, o Options) (*Result, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	r := &run{h: h, o: o, out: &Result{Since: h.Since, Until: h.Until, Mode: o.Mode, Blind: h.Blind()}}
	if err := r.prepare(); err != nil {
		return nil, err
	}
	r.o.Progress("learning from traffic", 0.2)
	r.learn()
	r.o.Progress("writing policies", 0.4)
	switch {
	case o.Mode == Tighten:
		if err := r.tighten(); err != nil {
			return nil, err
		}
	case o.Isolation == PerNamespace:
		r.namespaces()
	default:
		r.workloads()
	}
	slices.SortFunc(r.out.Policies, func(a, b Policy) int {
		return cmp.Or(strings.Compare(a.Object.Namespace, b.Object.Namespace), strings.Compare(a.Object.Name, b.Object.Name))
	})
	r.deletions()
	r.o.Progress("proving them on recorded traffic", 0.6)
	if err := r.prove(); err != nil {
		return nil, err
	}
	r.readiness()
	r.finishNotices()
	r.o.Progress("done", 1)
	return r.out, nil
}

type run struct {
	h   *history.History
	o   Options
	out *Result

	grouping *grouping
	scope    map[*group]bool
	used     map[*group]bool // that appear in the result
	present  *policy.Snapshot
	learner  *learner
	caches   []netip.Addr

	egress, ingress map[*group]needs
	lessons         map[*group][]lesson // by the groups that they are about
	active          map[*group]bool     // that had any traffic that passed
	// own are the cluster's addresses, denied those that were refused: no CIDR
	// is widened over them.
	own    []netip.Prefix
	denied map[*group][]netip.Prefix
	// incomplete are groups in the scope that nothing can be suggested for.
	incomplete map[string][]*group // by namespace
	notices    []Notice
}

func (r *run) prepare() error {
	engine, err := policy.New(policy.Options{Classes: r.h.Classes(), Policies: (&replay.Change{}).After(r.h)})
	if err != nil {
		return fmt.Errorf("make policy engine: %w", err)
	}
	r.present = engine.Snapshot()
	r.grouping = groupWorkloads(r.h)
	r.scope, r.used = make(map[*group]bool), make(map[*group]bool)
	r.incomplete = make(map[string][]*group)
	for _, g := range r.grouping.groups {
		if !slices.ContainsFunc(g.workloads, r.o.wants) {
			continue
		}
		if n := r.h.Namespace(g.namespace); n != nil && !n.Deleted.IsZero() {
			continue
		}
		r.scope[g] = true
	}
	r.findCaches()
	return nil
}

// findCaches adds the node-local DNS caches that somebody was seen to use.
func (r *run) findCaches() {
	r.caches = slices.Clone(r.o.DNSCaches)
	for _, e := range r.h.Edges {
		addr := e.Destination.Prefix.Addr()
		local := e.Destination.Kind == flow.EndpointUnknown && history.HostLocal(addr) && !history.Metadata(addr)
		if e.Port == dnsPort && e.Verdict == flow.VerdictAllowed && (local || e.Destination.Kind == flow.EndpointService) && !slices.Contains(r.caches, addr) {
			r.caches = append(r.caches, addr)
		}
	}
	slices.SortFunc(r.caches, netip.Addr.Compare)
	r.caches = slices.Compact(r.caches)
}

func (r *run) learn() {
	o := r.o
	o.DNSCaches = r.caches
	r.learner = &learner{o: &o, h: r.h, grouping: r.grouping, scope: r.scope, present: r.present, scans: findScans(r.h, o.AcceptScans)}
	r.learner.learn()
	r.egress, r.ingress, r.lessons = make(map[*group]needs), make(map[*group]needs), make(map[*group][]lesson)
	for _, l := range r.learner.lessons {
		s := service{l.edge.Protocol, l.edge.Port}
		if g := l.from.group; r.scope[g] && !o.NoEgress {
			add(r.egress, g, l.to, s, l.edge)
			r.lessons[g] = append(r.lessons[g], l)
		}
		if g := l.to.group; r.scope[g] && !o.NoIngress {
			add(r.ingress, g, l.seen, s, l.edge)
			if g != l.from.group {
				r.lessons[g] = append(r.lessons[g], l)
			}
		}
	}
	r.active = make(map[*group]bool)
	for _, e := range r.h.Edges {
		if e.Verdict == flow.VerdictAllowed {
			r.active[r.learner.group(e.From)], r.active[r.learner.group(e.To)] = true, true
		}
	}
	r.refusedAddresses()
	r.findIncomplete()
	r.out.SetAside = setAside(r.learner.aside)
}

func add(to map[*group]needs, g *group, p party, s service, e *history.Edge) {
	if to[g] == nil {
		to[g] = make(needs)
	}
	to[g].add(p, s, e)
}

func (r *run) refusedAddresses() {
	r.denied = make(map[*group][]netip.Prefix)
	r.own = slices.Clone(r.o.ClusterCIDRs)
	for _, c := range r.caches {
		r.own = append(r.own, netip.PrefixFrom(c, c.BitLen()))
	}
	for _, e := range r.h.Edges {
		for _, end := range []*flow.EdgeEnd{&e.Source, &e.Destination} {
			if end.Kind != flow.EndpointOutside && end.Prefix.IsValid() {
				r.own = append(r.own, end.Prefix)
			}
		}
		if e.Verdict != flow.VerdictDenied {
			continue
		}
		if g := r.learner.group(e.From); g != nil && e.To.Identity == nil && e.Destination.Prefix.IsValid() {
			r.denied[g] = append(r.denied[g], e.Destination.Prefix)
		}
		if g := r.learner.group(e.To); g != nil && e.From.Identity == nil && e.Source.Prefix.IsValid() {
			r.denied[g] = append(r.denied[g], e.Source.Prefix)
		}
	}
	r.own = disjoint(r.own)
}

// findIncomplete finds workloads that talk and cannot be selected: denying all
// in their namespace would cut them off.
func (r *run) findIncomplete() {
	talks := make(map[*group]bool)
	for e, reason := range r.learner.aside {
		if reason == NoSelector {
			talks[r.learner.group(e.From)] = true
			talks[r.learner.group(e.To)] = true
		}
	}
	for _, g := range r.grouping.groups {
		if r.scope[g] && g.selector == nil && talks[g] {
			r.incomplete[g.namespace] = append(r.incomplete[g.namespace], g)
		}
	}
}

// assembly makes rules for a group's direction, or a namespace's.
func (r *run) assembly(namespace string, g *group, egress bool) *assembly {
	a := &assembly{namespace: namespace, egress: egress, portSlack: r.o.PortSlack, coarse: g == nil}
	if g != nil && !egress {
		a.pods = g.present
	}
	narrow := disjoint(append(slices.Clone(r.own), r.denied[g]...))
	slack := r.o.CIDRSlack
	if r.o.Mode == Tighten {
		slack = 0 // what is wider than the rule was would be no tightening
	}
	a.addresses = func(service) *aggregation {
		return &aggregation{slack: slack, narrow: narrow, cluster: len(r.o.ClusterCIDRs) > 0}
	}
	return a
}

// object begins a policy.
func (r *run) object(namespace, name string, selector metav1.LabelSelector) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{managedBy: managedName}},
		Spec:       networkingv1.NetworkPolicySpec{PodSelector: selector},
	}
}

// fill gives a policy the rules of a direction.
func (p *Policy) fill(egress bool, rules []built) {
	spec := &p.Object.Spec
	direction, kind := "ingress", networkingv1.PolicyTypeIngress
	if egress {
		direction, kind = "egress", networkingv1.PolicyTypeEgress
	}
	if !slices.Contains(spec.PolicyTypes, kind) {
		spec.PolicyTypes = append(spec.PolicyTypes, kind)
	}
	for i, b := range rules {
		if egress {
			spec.Egress = append(spec.Egress, networkingv1.NetworkPolicyEgressRule{To: b.peers, Ports: b.ports})
		} else {
			spec.Ingress = append(spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: b.peers, Ports: b.ports})
		}
		p.Rules = append(p.Rules, Rule{Direction: direction, Index: i, Reasons: b.reasons, Evidence: evidence(b.edges)})
	}
}

func (r *run) notice(code, namespace, workload, text, fix string) {
	r.notices = append(r.notices, Notice{Code: code, Namespace: namespace, Workload: workload, Text: text, Fix: fix})
}
