package suggest

import (
	"cmp"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/policy/history"
)

// requirement is one term of a selector: a label, or a key that must be absent.
type requirement struct {
	key, value string
	absent     bool
	rank       int
	pods       bitset // the identities of the namespace that meet it
}

// labelSpace is all identities of a namespace, and which labels they have.
type labelSpace struct {
	identities []*history.Identity
	number     map[*history.Identity]int
	labels     map[[2]string]bitset
	keys       map[string]bitset
	// changing are keys whose value changed within a workload, anywhere.
	changing map[string]bool
}

func newLabelSpace(identities []*history.Identity, changing map[string]bool) *labelSpace {
	s := &labelSpace{identities: identities, number: make(map[*history.Identity]int), labels: make(map[[2]string]bitset), keys: make(map[string]bitset), changing: changing}
	for n, i := range identities {
		s.number[i] = n
		for k, v := range i.Labels {
			if Volatile(k) {
				continue
			}
			s.labels[[2]string{k, v}] = s.labels[[2]string{k, v}].with(n, len(identities))
			s.keys[k] = s.keys[k].with(n, len(identities))
		}
	}
	return s
}

// of numbers a set of identities.
func (s *labelSpace) of(identities []*history.Identity) bitset {
	out := newBitset(len(s.identities))
	for _, i := range identities {
		out = out.with(s.number[i], len(s.identities))
	}
	return out
}

// Volatile reports labels that change from one release or copy of a workload
// to the next, so that no policy may rest on them.
func Volatile(key string) bool {
	switch key {
	case "pod-template-hash", "pod-template-generation", "rollouts-pod-template-hash", "controller-revision-hash", "controller-uid", "job-name",
		"statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index", "app.kubernetes.io/version", "helm.sh/chart", "chart", "version", "heritage",
		"app.kubernetes.io/managed-by", "workflows.argoproj.io/workflow", "spark-app-selector", "spark-exec-id", "pod-name", "release-revision":
		return true
	}
	return strings.HasPrefix(key, "batch.kubernetes.io/") || strings.HasPrefix(key, "topology.kubernetes.io/") ||
		strings.HasPrefix(key, "service.istio.io/canonical-revision")
}

// wellKnown orders the keys that people select by.
func wellKnown(key string) int {
	if n := slices.Index([]string{
		"app.kubernetes.io/name", "app", "k8s-app", "app.kubernetes.io/instance", "app.kubernetes.io/component", "name", "component", "release", "tier", "role",
	}, key); n >= 0 {
		return n
	}
	return 20
}

func (s *labelSpace) rank(key string, absent bool) int {
	rank := wellKnown(key)
	if s.changing[key] {
		rank += 100
	}
	if absent {
		rank += 1000
	}
	return rank
}

// requirements lists what holds for all of some identities, the best first.
func (s *labelSpace) requirements(of bitset, absences bool) []requirement {
	var out []requirement
	for label, pods := range s.labels {
		if of.within(pods) {
			out = append(out, requirement{key: label[0], value: label[1], rank: s.rank(label[0], false), pods: pods})
		}
	}
	if absences {
		all := newBitset(len(s.identities)).all(len(s.identities))
		for key, pods := range s.keys {
			if !of.meets(pods) {
				out = append(out, requirement{key: key, absent: true, rank: s.rank(key, true), pods: all.without(pods)})
			}
		}
	}
	slices.SortFunc(out, func(a, b requirement) int {
		return cmp.Or(cmp.Compare(a.rank, b.rank), strings.Compare(a.key, b.key), strings.Compare(a.value, b.value))
	})
	return out
}

// smallest finds the fewest requirements that hold for all wanted identities
// and for none of the others; nil if there are none such. Of several equally
// small sets it takes the one of the best keys. One label at least is part of
// it, if the wanted have any in common.
func (s *labelSpace) smallest(wanted, others bitset, absences bool) []requirement {
	all := s.requirements(wanted, absences)
	left := others
	for _, r := range all {
		left = left.and(r.pods)
	}
	if len(all) == 0 || !left.empty() {
		return nil
	}
	labels := len(all)
	for i, r := range all {
		if r.absent {
			labels = i
			break
		}
	}
	firsts := len(all)
	if labels > 0 {
		firsts = labels
	}
	for size := 1; size <= min(maxExact, len(all)); size++ {
		for first := range firsts {
			if found := combine(all, first+1, size-1, others.and(all[first].pods)); found != nil {
				return append([]requirement{all[first]}, found...)
			}
		}
	}
	return greedy(all, others)
}

// maxExact is how many requirements are looked for by trying all; more are
// added one by one.
const maxExact = 4

// combine looks for more requirements from a place on; left are the others
// that are still selected. The result is empty, not nil, if none is needed.
func combine(all []requirement, from, size int, left bitset) []requirement {
	if left.empty() {
		return []requirement{}
	}
	if size == 0 {
		return nil
	}
	for i := from; i <= len(all)-size; i++ {
		if found := combine(all, i+1, size-1, left.and(all[i].pods)); found != nil {
			return append([]requirement{all[i]}, found...)
		}
	}
	return nil
}

// greedy adds what leaves the fewest others, until none is left.
func greedy(all []requirement, left bitset) []requirement {
	var out []requirement
	for !left.empty() {
		best, fewest := -1, left.count()
		for i, r := range all {
			if n := left.and(r.pods).count(); n < fewest {
				best, fewest = i, n
			}
		}
		if best < 0 {
			return nil
		}
		out = append(out, all[best])
		left = left.and(all[best].pods)
	}
	return out
}

// selectorOf writes requirements as Kubernetes has them.
func selectorOf(terms []requirement) *metav1.LabelSelector {
	out := &metav1.LabelSelector{}
	for _, t := range terms {
		if t.absent {
			out.MatchExpressions = append(out.MatchExpressions, metav1.LabelSelectorRequirement{Key: t.key, Operator: metav1.LabelSelectorOpDoesNotExist})
			continue
		}
		if out.MatchLabels == nil {
			out.MatchLabels = make(map[string]string)
		}
		out.MatchLabels[t.key] = t.value
	}
	slices.SortFunc(out.MatchExpressions, func(a, b metav1.LabelSelectorRequirement) int { return strings.Compare(a.Key, b.Key) })
	return out
}
