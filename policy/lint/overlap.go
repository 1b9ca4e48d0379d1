package lint

import (
	"fmt"
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func shadowed(v *view) {
	v.eachPair(func(p, q *policy) bool {
		if !v.covers(q, p) || v.covers(p, q) {
			return false
		}
		v.in("NetworkPolicy", p.Namespace, p.Name)("", fmt.Sprintf("all that it says, policy %s says too: without it nothing would change", q.Name),
			fmt.Sprintf("remove it, or narrow %s", q.Name))
		return true
	})
}

func duplicates(v *view) {
	v.eachPair(func(p, q *policy) bool {
		if q.Name > p.Name || !v.covers(q, p) || !v.covers(p, q) {
			return false
		}
		v.in("NetworkPolicy", p.Namespace, p.Name)("", fmt.Sprintf("it says the same as policy %s", q.Name), "remove one of them, or correct the copy")
		return true
	})
}

// eachPair calls f for each policy p with every other q of its namespace, until
// f has found something for p.
func (v *view) eachPair(f func(p, q *policy) bool) {
	in := make(map[string][]*policy)
	for _, p := range v.policies {
		if p.valid() {
			in[p.Namespace] = append(in[p.Namespace], p)
		}
	}
	for _, p := range v.policies {
		for _, q := range in[p.Namespace] {
			if p != q && p.valid() && f(p, q) {
				break
			}
		}
	}
}

func (p *policy) valid() bool {
	if p.selector == nil {
		return false
	}
	for _, r := range p.rules {
		if slices.ContainsFunc(r.peers, func(q peer) bool { return !q.valid }) {
			return false
		}
	}
	return true
}

// covers reports whether a isolates and allows all that b does. It compares
// what is written, so it holds for every pod to come; it may miss some.
func (v *view) covers(a, b *policy) bool {
	if !selectorCovers(&a.Spec.PodSelector, &b.Spec.PodSelector) {
		return false
	}
	for _, s := range []side{ingress, egress} {
		if !isolates(b.NetworkPolicy, s) {
			continue
		}
		if !isolates(a.NetworkPolicy, s) {
			return false
		}
		for _, r := range b.allowing(s) {
			if !slices.ContainsFunc(a.allowing(s), func(wide policyRule) bool { return ruleCovers(wide, r) }) {
				return false
			}
		}
	}
	return true
}

// ruleCovers reports whether a allows all that b allows.
func ruleCovers(a, b policyRule) bool {
	return listCovers(a.peers, b.peers, peerCovers) && listCovers(a.ports, b.ports, portCovers)
}

// listCovers holds that an empty list means all.
func listCovers[T any](a, b []T, covers func(a, b T) bool) bool {
	if len(a) == 0 {
		return true
	}
	if len(b) == 0 {
		return false
	}
	for _, narrow := range b {
		if !slices.ContainsFunc(a, func(wide T) bool { return covers(wide, narrow) }) {
			return false
		}
	}
	return true
}

func peerCovers(a, b peer) bool {
	if a.IPBlock != nil || b.IPBlock != nil {
		return a.IPBlock != nil && b.IPBlock != nil && blockCovers(a.IPBlock, b.IPBlock)
	}
	switch {
	case a.namespaces == nil && b.namespaces != nil:
		return false
	case a.namespaces != nil && b.namespaces == nil && !a.namespaces.Empty():
		return false // the own namespace's labels may change
	case a.namespaces != nil && b.namespaces != nil && !selectorCovers(a.NamespaceSelector, b.NamespaceSelector):
		return false
	}
	every := &metav1.LabelSelector{}
	narrow := b.PodSelector
	if narrow == nil {
		narrow = every
	}
	return a.PodSelector == nil || selectorCovers(a.PodSelector, narrow)
}

func blockCovers(given, other *networkingv1.IPBlock) bool {
	a, okA := readBlock(given)
	b, okB := readBlock(other)
	if !okA || !okB || a.cidr.Bits() > b.cidr.Bits() || !a.cidr.Contains(b.cidr.Addr()) {
		return false
	}
	for _, hole := range a.except {
		if hole.Overlaps(b.cidr) && !slices.ContainsFunc(b.except, func(e netip.Prefix) bool { return e.Bits() <= hole.Bits() && e.Contains(hole.Addr()) }) {
			return false
		}
	}
	return true
}

func portCovers(a, b networkingv1.NetworkPolicyPort) bool {
	if protocolOf(&a) != protocolOf(&b) {
		return false
	}
	switch {
	case a.Port == nil:
		return true
	case b.Port == nil || a.Port.Type != b.Port.Type:
		return false
	case a.Port.Type == intstr.String:
		return a.Port.StrVal == b.Port.StrVal
	}
	return a.Port.IntVal <= b.Port.IntVal && lastPort(b) <= lastPort(a)
}

func lastPort(p networkingv1.NetworkPolicyPort) int32 {
	if p.EndPort != nil {
		return *p.EndPort
	}
	return p.Port.IntVal
}

// selectorCovers reports whether whatever b matches, a matches: each thing
// that a asks follows from one that b asks.
func selectorCovers(a, b *metav1.LabelSelector) bool {
	asked := requirements(b)
	for _, r := range requirements(a) {
		if !slices.ContainsFunc(asked, func(given requirement) bool { return given.key == r.key && given.implies(r) }) {
			return false
		}
	}
	return true
}

func (r requirement) implies(other requirement) bool {
	within := func(few, many []string) bool {
		return !slices.ContainsFunc(few, func(v string) bool { return !slices.Contains(many, v) })
	}
	switch other.op {
	case metav1.LabelSelectorOpIn:
		return r.op == metav1.LabelSelectorOpIn && within(r.values, other.values)
	case metav1.LabelSelectorOpExists:
		return r.op == metav1.LabelSelectorOpIn || r.op == metav1.LabelSelectorOpExists
	case metav1.LabelSelectorOpDoesNotExist:
		return r.op == metav1.LabelSelectorOpDoesNotExist
	case metav1.LabelSelectorOpNotIn:
		switch r.op {
		case metav1.LabelSelectorOpNotIn:
			return within(other.values, r.values)
		case metav1.LabelSelectorOpIn:
			return !slices.ContainsFunc(r.values, func(v string) bool { return slices.Contains(other.values, v) })
		}
		return r.op == metav1.LabelSelectorOpDoesNotExist
	}
	return false
}
