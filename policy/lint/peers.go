package lint

import (
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/labels"
)

// orWhereAnd finds neighbours, one with a namespaceSelector and one with a
// podSelector, of which the podSelector adds nothing by itself: it matches no
// pod of its own namespace, or only such as the namespaceSelector lets in.
func orWhereAnd(v *view, p *policy, found report) {
	for _, r := range p.rules {
		for i := 1; i < len(r.peers); i++ {
			a, b := &r.peers[i-1], &r.peers[i]
			if !a.valid || !b.valid {
				continue
			}
			if a.namespaces == nil {
				a, b = b, a
			}
			if a.namespaces == nil || a.pods != nil || b.namespaces != nil || b.pods == nil || b.pods.Empty() {
				continue
			}
			if why := v.addsNothing(p, a.namespaces, b.pods); why != "" {
				found(r.peers[i].field, fmt.Sprintf("this item and the one before mean OR: every pod of the namespaces (%s), whatever its labels; the podSelector (%s) adds nothing, as %s",
					a.namespaces, b.pods, why), "for AND write one item: no hyphen before the second selector")
			}
		}
	}
}

func (v *view) addsNothing(p *policy, namespaces, pods labels.Selector) string {
	own, known := v.labels[p.Namespace]
	switch {
	case namespaces.Empty() || known && namespaces.Matches(own):
		return "namespace " + p.Namespace + " is among them"
	case len(matching(v.pods[p.Namespace], pods)) == 0:
		return "no pod of namespace " + p.Namespace + " has these labels"
	}
	return ""
}

// andWhereOr finds a peer whose two selectors each match pods, and together none.
func andWhereOr(v *view, p *policy, found report) {
	for _, r := range p.rules {
		for i := range r.peers {
			q := &r.peers[i]
			if !q.valid || q.namespaces == nil || q.pods == nil || len(v.podsOf(p, q)) > 0 {
				continue
			}
			own := matching(v.pods[p.Namespace], q.pods)
			there := slices.DeleteFunc(v.namespacesMatching(q.namespaces), func(ns string) bool { return len(v.pods[ns]) == 0 })
			if len(own) == 0 || len(there) == 0 {
				continue
			}
			found(q.field, fmt.Sprintf("the two selectors of this item mean AND: no pod of the namespaces (%s) has the labels (%s), but %s of namespace %s has",
				q.namespaces, q.pods, own[0].Name, p.Namespace), "for OR make two items of it: a hyphen before each selector")
		}
	}
}
