package lint

import (
	"net/netip"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// view is the objects as the rules look at them.
type view struct {
	*Objects
	policies []*policy
	pods     map[string][]*corev1.Pod // that run or will, by namespace
	labels   map[string]labels.Set    // of namespaces
	podCount int

	rule     Rule // that is being applied
	findings []Finding
}

// side is ingress or egress.
type side = networkingv1.PolicyType

// policy is a NetworkPolicy with its selectors made usable.
type policy struct {
	*networkingv1.NetworkPolicy
	selector labels.Selector // nil if it is invalid
	selected []*corev1.Pod
	rules    []policyRule
}

// policyRule is one item of ingress or egress.
type policyRule struct {
	side  side
	field string // spec.ingress[0]
	peers []peer
	ports []networkingv1.NetworkPolicyPort
}

// peer is one item of from or to.
type peer struct {
	networkingv1.NetworkPolicyPeer
	field      string          // spec.ingress[0].from[1]
	namespaces labels.Selector // nil if not given, or invalid
	pods       labels.Selector // nil if not given, or invalid
	valid      bool
}

func newView(o *Objects) *view {
	v := &view{Objects: o, pods: make(map[string][]*corev1.Pod), labels: make(map[string]labels.Set)}
	for _, n := range o.Namespaces {
		v.labels[n.Name] = n.Labels
	}
	for _, p := range o.Pods {
		if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue
		}
		v.pods[p.Namespace] = append(v.pods[p.Namespace], p)
		v.podCount++
	}
	for _, p := range o.Policies {
		v.policies = append(v.policies, v.policy(p))
	}
	return v
}

func (v *view) policy(np *networkingv1.NetworkPolicy) *policy {
	p := &policy{NetworkPolicy: np, selector: usable(&np.Spec.PodSelector)}
	if p.selector != nil {
		p.selected = matching(v.pods[np.Namespace], p.selector)
	}
	for i, r := range np.Spec.Ingress {
		p.add(networkingv1.PolicyTypeIngress, "spec.ingress["+strconv.Itoa(i)+"]", ".from[", r.From, r.Ports)
	}
	for i, r := range np.Spec.Egress {
		p.add(networkingv1.PolicyTypeEgress, "spec.egress["+strconv.Itoa(i)+"]", ".to[", r.To, r.Ports)
	}
	return p
}

func (p *policy) add(s side, field, list string, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) {
	r := policyRule{side: s, field: field, ports: ports}
	for i, given := range peers {
		q := peer{
			NetworkPolicyPeer: given, field: field + list + strconv.Itoa(i) + "]",
			namespaces: usable(given.NamespaceSelector), pods: usable(given.PodSelector),
		}
		q.valid = (q.namespaces != nil) == (given.NamespaceSelector != nil) && (q.pods != nil) == (given.PodSelector != nil) &&
			(given.IPBlock != nil) != (q.namespaces != nil || q.pods != nil)
		r.peers = append(r.peers, q)
	}
	p.rules = append(p.rules, r)
}

// usable returns nil for a selector that is not given, or is invalid.
func usable(s *metav1.LabelSelector) labels.Selector {
	if s == nil {
		return nil
	}
	out, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return nil
	}
	return out
}

func matching(pods []*corev1.Pod, s labels.Selector) []*corev1.Pod {
	var out []*corev1.Pod
	for _, p := range pods {
		if s.Matches(labels.Set(p.Labels)) {
			out = append(out, p)
		}
	}
	return out
}

// namespacesOf names the namespaces in which a peer's pods are.
func (v *view) namespacesOf(p *policy, q *peer) []string {
	if q.namespaces == nil {
		return []string{p.Namespace}
	}
	return v.namespacesMatching(q.namespaces)
}

func (v *view) namespacesMatching(s labels.Selector) []string {
	var out []string
	for name, l := range v.labels {
		if s.Matches(l) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// podsOf lists the pods that a peer of selectors means now.
func (v *view) podsOf(p *policy, q *peer) []*corev1.Pod {
	s := q.pods
	if s == nil {
		s = labels.Everything()
	}
	var out []*corev1.Pod
	for _, ns := range v.namespacesOf(p, q) {
		out = append(out, matching(v.pods[ns], s)...)
	}
	return out
}

// isolates reports whether a policy isolates its pods on a side.
func isolates(np *networkingv1.NetworkPolicy, s side) bool {
	if len(np.Spec.PolicyTypes) > 0 {
		return slices.Contains(np.Spec.PolicyTypes, s)
	}
	return s == networkingv1.PolicyTypeIngress || len(np.Spec.Egress) > 0
}

// allowing yields the rules of a side that is isolated: others do nothing.
func (p *policy) allowing(s side) []policyRule {
	if !isolates(p.NetworkPolicy, s) {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(p.rules), func(r policyRule) bool { return r.side != s })
}

// in returns what takes the findings of an object.
func (v *view) in(kind, namespace, name string) report {
	return func(field, message, fix string) {
		v.findings = append(v.findings, Finding{
			Code: v.rule.Code, Severity: v.rule.Severity, Kind: kind, Namespace: namespace, Name: name,
			Field: field, Message: message, Fix: fix,
		})
	}
}

// addresses are a pod's own: of a hostNetwork pod there are none.
func addresses(p *corev1.Pod) []netip.Addr {
	if p.Spec.HostNetwork {
		return nil
	}
	var out []netip.Addr
	add := func(text string) {
		if a, err := netip.ParseAddr(text); err == nil && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	for _, ip := range p.Status.PodIPs {
		add(ip.IP)
	}
	add(p.Status.PodIP)
	return out
}
