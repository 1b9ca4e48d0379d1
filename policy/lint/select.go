package lint

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func selectsNoPod(v *view, p *policy, found report) {
	// One that selects every pod of a namespace waits for them.
	if v.podCount == 0 || p.selector == nil || p.selector.Empty() || len(p.selected) > 0 {
		return
	}
	why, fix := nearest(&p.Spec.PodSelector, labelsOf(v.pods[p.Namespace]))
	if why == "" {
		why = "the namespace has no pods"
	}
	found("spec.podSelector", fmt.Sprintf("no pod of namespace %s has the labels (%s): %s", p.Namespace, p.selector, why), fix)
}

func peerWithoutPods(v *view, p *policy, found report) {
	if v.podCount == 0 {
		return
	}
	for _, r := range p.rules {
		for i := range r.peers {
			q := &r.peers[i]
			if !q.valid || q.pods == nil || q.pods.Empty() || len(v.podsOf(p, q)) > 0 {
				continue
			}
			in := v.namespacesOf(p, q)
			if len(in) == 0 {
				continue // which another rule says
			}
			var pods []*corev1.Pod
			for _, ns := range in {
				pods = append(pods, v.pods[ns]...)
			}
			why, fix := nearest(q.PodSelector, labelsOf(pods))
			if why == "" {
				why = "there are no pods"
			}
			found(q.field+".podSelector", fmt.Sprintf("no pod of %s has the labels (%s): %s", namespacesText(in), q.pods, why), fix)
		}
	}
}

func namespacesText(names []string) string {
	const shown = 3
	switch {
	case len(names) == 1:
		return "namespace " + names[0]
	case len(names) <= shown:
		return "namespaces " + strings.Join(names, ", ")
	}
	return fmt.Sprintf("namespaces %s and %d more", strings.Join(names[:shown], ", "), len(names)-shown)
}

func peerWithoutNamespaces(v *view, p *policy, found report) {
	if len(v.labels) == 0 {
		return
	}
	for _, r := range p.rules {
		for i := range r.peers {
			q := &r.peers[i]
			if !q.valid || q.namespaces == nil || len(v.namespacesMatching(q.namespaces)) > 0 {
				continue
			}
			var all []labelled
			for name, l := range v.labels {
				all = append(all, labelled{"namespace " + name, l})
			}
			why, fix := nearest(q.NamespaceSelector, all)
			if name := q.NamespaceSelector.MatchLabels["name"]; name != "" && v.labels[name] != nil {
				fix = "write " + corev1.LabelMetadataName + ": " + name + ", which every namespace has"
			}
			found(q.field+".namespaceSelector", fmt.Sprintf("no namespace has the labels (%s): %s", q.namespaces, why), fix)
		}
	}
}

// labelsOf names pods for a message.
func labelsOf(pods []*corev1.Pod) []labelled {
	out := make([]labelled, len(pods))
	for i, p := range pods {
		out[i] = labelled{"pod " + p.Namespace + "/" + p.Name, p.Labels}
	}
	return out
}

// changing are labels whose values a controller makes anew. A StatefulSet's
// pod names are not among them: they stay.
func changing() []string {
	return []string{
		"pod-template-hash", "pod-template-generation", "controller-revision-hash", "controller-uid", "batch.kubernetes.io/controller-uid",
		"job-name", "batch.kubernetes.io/job-name",
	}
}

func volatileLabels(_ *view, p *policy, found report) {
	const fix = "select by a label that you gave to the pod template, such as app"
	p.selectors(func(path string, s *metav1.LabelSelector) {
		for _, key := range changing() {
			if _, ok := s.MatchLabels[key]; ok {
				found(path+".matchLabels["+key+"]", key+" changes with every rollout or run, and the selector will match nothing", fix)
			}
		}
		for i, e := range s.MatchExpressions {
			if slices.Contains(changing(), e.Key) && (e.Operator == metav1.LabelSelectorOpIn || e.Operator == metav1.LabelSelectorOpNotIn) {
				found(fmt.Sprintf("%s.matchExpressions[%d]", path, i), e.Key+" changes with every rollout or run, and these values will be gone", fix)
			}
		}
	})
}
