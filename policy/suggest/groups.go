package suggest

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/policy/history"
)

// group is workloads that one selector selects: one, unless labels cannot tell
// them apart.
type group struct {
	namespace string
	workloads []*history.Workload // sorted
	// selector is nil if no labels tell the group.
	selector *metav1.LabelSelector
	// identities are all that its pods had; selected those that the selector
	// selects, present those at the end.
	identities, selected, present []*history.Identity
}

// name names the group by its first workload.
func (g *group) name() string { return g.workloads[0].String() }

func (g *group) names() []string {
	var out []string
	for _, w := range g.workloads {
		out = append(out, w.String())
	}
	return out
}

func (g *group) selects(i *history.Identity) bool { return slices.Contains(g.selected, i) }

// grouping finds the group of each workload.
type grouping struct {
	groups  []*group // sorted by namespace and first workload
	of      map[*history.Workload]*group
	notices []Notice
}

func groupWorkloads(h *history.History) *grouping {
	g := &grouping{of: make(map[*history.Workload]*group)}
	changing := changingKeys(h)
	byNamespace := make(map[string][]*history.Workload)
	var names []string
	for _, w := range h.Workloads {
		if byNamespace[w.Namespace] == nil {
			names = append(names, w.Namespace)
		}
		byNamespace[w.Namespace] = append(byNamespace[w.Namespace], w)
	}
	identities := make(map[string][]*history.Identity)
	for _, i := range h.Identities {
		identities[i.Namespace] = append(identities[i.Namespace], i)
	}
	for _, name := range names {
		space := newLabelSpace(identities[name], changing)
		n := &namespaceGroups{space: space, name: name}
		n.begin(byNamespace[name])
		n.separate()
		for _, found := range n.groups {
			for _, w := range found.workloads {
				g.of[w] = found
			}
		}
		g.groups = append(g.groups, n.groups...)
		g.notices = append(g.notices, n.notices...)
	}
	return g
}

// changingKeys are labels that had several values within one workload.
func changingKeys(h *history.History) map[string]bool {
	out := make(map[string]bool)
	for _, w := range h.Workloads {
		first := make(map[string]string)
		for _, i := range w.Identities {
			for k, v := range i.Labels {
				if known, ok := first[k]; ok && known != v {
					out[k] = true
				}
				first[k] = v
			}
		}
	}
	return out
}

type namespaceGroups struct {
	name    string
	space   *labelSpace
	groups  []*group
	notices []Notice
}

// begin puts workloads that had the same labels into one group.
func (n *namespaceGroups) begin(workloads []*history.Workload) {
	for _, w := range workloads {
		n.groups = append(n.groups, newGroup(n.name, []*history.Workload{w}))
	}
	for {
		owner := make(map[*history.Identity]*group)
		var a, b *group
		for _, g := range n.groups {
			for _, i := range g.identities {
				if other := owner[i]; other != nil && other != g {
					a, b = other, g
				}
				owner[i] = g
			}
		}
		if a == nil {
			return
		}
		n.merge(a, b)
	}
}

func newGroup(namespace string, workloads []*history.Workload) *group {
	g := &group{namespace: namespace, workloads: workloads}
	slices.SortFunc(g.workloads, func(a, b *history.Workload) int {
		return cmp.Or(strings.Compare(a.Kind, b.Kind), strings.Compare(a.Name, b.Name))
	})
	for _, w := range g.workloads {
		for _, i := range w.Identities {
			if !slices.Contains(g.identities, i) {
				g.identities = append(g.identities, i)
			}
		}
		for _, i := range w.Present() {
			if !slices.Contains(g.present, i) {
				g.present = append(g.present, i)
			}
		}
	}
	return g
}

func (n *namespaceGroups) merge(a, b *group) {
	joined := newGroup(n.name, append(slices.Clone(a.workloads), b.workloads...))
	n.groups = slices.DeleteFunc(n.groups, func(g *group) bool { return g == a || g == b })
	n.groups = append(n.groups, joined)
	slices.SortFunc(n.groups, func(a, b *group) int {
		return cmp.Or(strings.Compare(a.workloads[0].Kind, b.workloads[0].Kind), strings.Compare(a.workloads[0].Name, b.workloads[0].Name))
	})
}

// separate gives each group its selector. Groups that no labels tell apart
// become one.
func (n *namespaceGroups) separate() {
	for again := true; again; {
		again = false
		n.notices = nil
		for _, g := range n.groups {
			if alike := n.choose(g); alike != nil {
				n.merge(g, alike)
				again = true
				break
			}
		}
	}
	for _, g := range n.groups {
		if len(g.workloads) > 1 && g.selector != nil {
			n.notice("labels-alike", g, fmt.Sprintf("labels cannot tell %s apart: one policy covers them all and allows each what any of them does", strings.Join(g.names(), " and ")),
				"give them different labels")
		}
	}
}

func (n *namespaceGroups) notice(code string, g *group, text, fix string) {
	n.notices = append(n.notices, Notice{Code: code, Namespace: n.name, Workload: g.name(), Text: text, Fix: fix})
}

// choose finds the group's selector. It returns another group if nothing tells
// the two apart.
func (n *namespaceGroups) choose(g *group) *group {
	own, now := n.space.of(g.identities), n.space.of(g.present)
	all := newBitset(len(n.space.identities)).all(len(n.space.identities))
	var running []*history.Identity
	for _, i := range n.space.identities {
		if i.Present {
			running = append(running, i)
		}
	}
	others, othersNow := all.without(own), n.space.of(running).without(own)
	for _, try := range []struct {
		wanted, others bitset
		absences       bool
		code, text     string
	}{
		{own, others, false, "", ""},
		{own, others, true, "", ""},
		{now, others, false, "labels-changed", "the labels of %s changed: the policy selects it as it is now, not as it was"},
		{now, others, true, "labels-changed", "the labels of %s changed: the policy selects it as it is now, not as it was"},
		{own, othersNow, true, "labels-reused", "other pods had the labels of %s before: the policy is exact for the pods of now, not for those of then"},
		{now, othersNow, true, "labels-reused", "the labels of %s changed, and other pods had them before: the policy is exact for the pods of now, not for those of then"},
	} {
		terms := n.space.smallest(try.wanted, try.others, try.absences)
		if terms == nil {
			continue
		}
		if try.code != "" {
			n.notice(try.code, g, fmt.Sprintf(try.text, g.name()), "")
		}
		if terms[0].absent {
			n.notice("labels-absent", g, g.name()+" has no label of its own: it is selected by the labels that it lacks, as any other pod without them will be", "give its pods a label, such as app")
		}
		g.selector = selectorOf(terms)
		g.selected = n.selectedBy(terms)
		return nil
	}
	return n.alike(g, now, othersNow)
}

// selectedBy lists the identities that meet all terms.
func (n *namespaceGroups) selectedBy(terms []requirement) []*history.Identity {
	left := newBitset(len(n.space.identities)).all(len(n.space.identities))
	for _, t := range terms {
		left = left.and(t.pods)
	}
	var out []*history.Identity
	for k, i := range n.space.identities {
		if left[k/64]>>(k%64)&1 == 1 {
			out = append(out, i)
		}
	}
	return out
}

// alike finds a group that has all that the given one has. Where there is
// none, the group has no labels at all.
func (n *namespaceGroups) alike(g *group, now, others bitset) *group {
	left := others
	for _, t := range n.space.requirements(now, true) {
		left = left.and(t.pods)
	}
	for k, i := range n.space.identities {
		if left[k/64]>>(k%64)&1 == 0 {
			continue
		}
		for _, other := range n.groups {
			if other != g && slices.Contains(other.identities, i) {
				return other
			}
		}
	}
	if !left.empty() {
		n.notice("labels-alike", g, "labels cannot tell "+g.name()+" from other pods, whose owner is not known: nothing is suggested for it", "give its pods a label of their own")
		return nil
	}
	n.notice("no-labels", g, fmt.Sprintf("%s has no stable labels, and an empty selector would select every pod of %s: nothing is suggested for it", g.name(), n.name), "give its pods a label, such as app")
	return nil
}
