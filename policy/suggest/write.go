package suggest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy/history"
	"github.com/flowaudit/flowaudit/policy/replay"
)

// workloads writes one policy for each workload that talked, and a default
// deny for each namespace in which one did.
func (r *run) workloads() {
	var namespaces []string
	for _, g := range r.grouping.groups {
		if !r.scope[g] || !r.active[g] {
			continue
		}
		if !slices.Contains(namespaces, g.namespace) {
			namespaces = append(namespaces, g.namespace)
		}
		if g.selector == nil {
			continue
		}
		r.used[g] = true
		p := Policy{Object: r.object(g.namespace, policyName(g), *g.selector.DeepCopy()), Workloads: g.names()}
		for _, d := range r.directions() {
			if r.covered(g, d) {
				continue
			}
			r.write(&p, g, d)
		}
		if len(p.Object.Spec.PolicyTypes) > 0 {
			r.keepOthers(&p)
			r.out.Policies = append(r.out.Policies, p)
		}
	}
	for _, name := range namespaces {
		r.defaultDeny(name)
	}
}

func (r *run) directions() []flow.Direction {
	var out []flow.Direction
	if !r.o.NoIngress {
		out = append(out, flow.DirectionIngress)
	}
	if !r.o.NoEgress {
		out = append(out, flow.DirectionEgress)
	}
	return out
}

// write gives a policy its rules of one direction.
func (r *run) write(p *Policy, g *group, d flow.Direction) {
	egress := d == flow.DirectionEgress
	n := r.ingress[g]
	if egress {
		n = r.withCaches(r.egress[g])
	}
	r.markPeers(n)
	rules := r.assembly(g.namespace, g, egress).rules(n)
	p.fill(egress, rules)
	if len(rules) == 0 {
		r.notice("nothing-seen", g.namespace, g.name(), fmt.Sprintf("%s: no %s was seen, and all of it is denied", g.name(), d), "")
	}
}

func (r *run) markPeers(n needs) {
	for p := range n {
		if p.group != nil {
			r.used[p.group] = true
		}
	}
}

// withCaches adds the node-local DNS caches, of which nobody is seen to use them.
func (r *run) withCaches(n needs) needs {
	if len(r.caches) == 0 {
		return n
	}
	out := make(needs, len(n)+1)
	for p, services := range n {
		for s, edges := range services {
			out.add(p, s, edges...)
		}
	}
	for _, c := range r.caches {
		out.add(party{prefix: netip.PrefixFrom(c, c.BitLen()), kind: dnsCacheAddr}, service{flow.UDP, dnsPort})
	}
	return out
}

// covered reports whether the present policies isolate a group already: what
// they do not allow is not missing, it is forbidden.
func (r *run) covered(g *group, d flow.Direction) bool {
	if r.o.Mode != Add {
		return false
	}
	return !slices.ContainsFunc(g.present, func(i *history.Identity) bool { return len(r.present.Isolating(i.Class(), d)) == 0 })
}

// keepOthers keeps, of a policy of the same name that is there, the direction
// that is not written anew.
func (r *run) keepOthers(p *Policy) {
	if r.o.Mode != Add {
		return
	}
	known := r.existing(p.Object.Namespace, p.Object.Name)
	if known == nil {
		return
	}
	spec := &p.Object.Spec
	for _, t := range policyTypes(known) {
		if slices.Contains(spec.PolicyTypes, t) {
			continue
		}
		spec.PolicyTypes = append(spec.PolicyTypes, t)
		if t == networkingv1.PolicyTypeEgress {
			spec.Egress = known.DeepCopy().Spec.Egress
		} else {
			spec.Ingress = known.DeepCopy().Spec.Ingress
		}
	}
	slices.SortFunc(spec.PolicyTypes, func(a, b networkingv1.PolicyType) int { return strings.Compare(string(b), string(a)) })
}

func (r *run) existing(namespace, name string) *networkingv1.NetworkPolicy {
	for _, p := range r.h.Policies {
		if p.Namespace == namespace && p.Name == name {
			return p.NetworkPolicy
		}
	}
	return nil
}

// policyTypes are the directions that a policy isolates.
func policyTypes(p *networkingv1.NetworkPolicy) []networkingv1.PolicyType {
	if len(p.Spec.PolicyTypes) > 0 {
		return p.Spec.PolicyTypes
	}
	if len(p.Spec.Egress) > 0 {
		return []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
	}
	return []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
}

// defaultDeny writes the policy that isolates what no other one selects.
func (r *run) defaultDeny(namespace string) {
	if len(r.o.Workloads) > 0 {
		return // the others of the namespace were not looked at
	}
	if cut := r.incomplete[namespace]; len(cut) > 0 {
		var names []string
		for _, g := range cut {
			names = append(names, g.name())
		}
		r.notice("no-default-deny", namespace, "", fmt.Sprintf("%s gets no default deny: it would cut off %s, which cannot be selected", namespace, strings.Join(names, " and ")), "give their pods labels")
		return
	}
	p := Policy{Object: r.object(namespace, denyName, metav1.LabelSelector{})}
	for _, d := range r.directions() {
		if !r.deniedAlready(namespace, d) {
			p.fill(d == flow.DirectionEgress, nil)
		}
	}
	if len(p.Object.Spec.PolicyTypes) > 0 {
		r.keepOthers(&p)
		r.out.Policies = append(r.out.Policies, p)
	}
}

// deniedAlready reports whether a policy that stays isolates all pods of a
// namespace.
func (r *run) deniedAlready(namespace string, d flow.Direction) bool {
	if r.o.Mode != Add {
		return false
	}
	kind := networkingv1.PolicyTypeIngress
	if d == flow.DirectionEgress {
		kind = networkingv1.PolicyTypeEgress
	}
	for _, p := range r.h.Policies {
		s := &p.Spec.PodSelector
		if p.Namespace == namespace && len(s.MatchLabels)+len(s.MatchExpressions) == 0 && slices.Contains(policyTypes(p.NetworkPolicy), kind) {
			return true
		}
	}
	return false
}

// policyName is the same for the same workload, whatever it talked.
func policyName(g *group) string {
	name := namePrefix + strings.ToLower(g.workloads[0].Kind) + "-" + g.workloads[0].Name
	if len(name) <= maxName {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return strings.TrimRight(name[:maxName-9], "-.") + "-" + hex.EncodeToString(sum[:4])
}

// deletions lists the policies that mode replace removes: those of the
// namespaces, or those that select nothing but the workloads.
func (r *run) deletions() {
	if r.o.Mode != Replace {
		return
	}
	selection := history.NewSelection(r.h.Identities)
	for _, p := range r.h.Policies {
		if !r.replaces(p, selection) {
			continue
		}
		n := replay.Name{Namespace: p.Namespace, Name: p.Name}
		if !slices.ContainsFunc(r.out.Policies, func(s Policy) bool { return s.Object.Namespace == n.Namespace && s.Object.Name == n.Name }) {
			r.out.Delete = append(r.out.Delete, n)
		}
	}
}

func (r *run) replaces(p *history.Policy, selection *history.Selection) bool {
	written := slices.ContainsFunc(r.out.Policies, func(s Policy) bool { return s.Object.Namespace == p.Namespace })
	if !written || !r.o.wantsNamespace(p.Namespace) {
		return false
	}
	for _, t := range policyTypes(p.NetworkPolicy) { // a direction that is left alone keeps its rules
		if t == networkingv1.PolicyTypeEgress && r.o.NoEgress || t == networkingv1.PolicyTypeIngress && r.o.NoIngress {
			r.notice("policy-kept", p.Namespace, "", fmt.Sprintf("NetworkPolicy %s/%s stays: it is also about the direction that is left alone", p.Namespace, p.Name), "")
			return false
		}
	}
	if len(r.o.Workloads) == 0 {
		return true
	}
	for _, i := range selection.Subjects(p.NetworkPolicy) {
		for _, w := range i.Workloads {
			if !r.o.wants(w) {
				r.notice("policy-kept", p.Namespace, "", fmt.Sprintf("NetworkPolicy %s/%s stays: it selects %s too", p.Namespace, p.Name, w), "")
				return false
			}
		}
	}
	return true
}
