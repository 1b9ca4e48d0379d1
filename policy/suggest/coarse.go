package suggest

import (
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/flow"
)

// namespaces writes one policy for each namespace: its pods may talk to each
// other, and to what any of them was seen to talk to. It denies all else.
func (r *run) namespaces() {
	byNamespace := make(map[string][]*group)
	var names []string
	for _, g := range r.grouping.groups {
		if !r.scope[g] || !r.active[g] {
			continue
		}
		if byNamespace[g.namespace] == nil {
			names = append(names, g.namespace)
		}
		byNamespace[g.namespace] = append(byNamespace[g.namespace], g)
	}
	for _, name := range names {
		p := Policy{Object: r.object(name, coarseName, metav1.LabelSelector{})}
		for _, g := range byNamespace[name] {
			p.Workloads = append(p.Workloads, g.names()...)
		}
		for _, d := range r.directions() {
			if !r.opens(name, d) {
				r.writeNamespace(&p, byNamespace[name], d)
			}
		}
		if len(p.Object.Spec.PolicyTypes) > 0 {
			r.keepOthers(&p)
			r.out.Policies = append(r.out.Policies, p)
		}
	}
}

// opens reports whether a policy for the whole namespace would open what the
// present ones isolate.
func (r *run) opens(namespace string, d flow.Direction) bool {
	if r.o.Mode != Add {
		return false
	}
	for _, i := range r.h.Identities {
		if i.Namespace != namespace || !i.Present {
			continue
		}
		if by := r.present.Isolating(i.Class(), d); len(by) > 0 {
			r.notice("isolated-already", namespace, "", fmt.Sprintf("%s: %s is not written: it would open pods that NetworkPolicy %s isolates", namespace, d, by[0].Name), "use mode replace")
			return true
		}
	}
	return false
}

func (r *run) writeNamespace(p *Policy, groups []*group, d flow.Direction) {
	egress := d == flow.DirectionEgress
	all := make(needs)
	for _, g := range groups {
		from := r.ingress[g]
		if egress {
			from = r.egress[g]
		}
		for who, services := range from {
			for s, edges := range services {
				all.add(r.oneOf(who), s, edges...)
			}
		}
	}
	if egress {
		all = r.withCaches(all)
	}
	p.fill(egress, r.assembly(p.Object.Namespace, nil, egress).rules(all))
}

// oneOf lets the first group of a namespace stand for all of them.
func (r *run) oneOf(p party) party {
	if p.group == nil {
		return p
	}
	at := slices.IndexFunc(r.grouping.groups, func(g *group) bool { return g.namespace == p.group.namespace })
	return party{group: r.grouping.groups[at]}
}
