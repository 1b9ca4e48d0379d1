package kube

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/flowaudit/flowaudit/flow"
)

// template is what a workload makes pods of.
type template struct {
	kind     string
	owner    metav1.Object
	pod      corev1.PodTemplateSpec
	selector labels.Selector
}

func (s *Snapshot) template(kind string, owner metav1.Object, pod corev1.PodTemplateSpec, selector *metav1.LabelSelector) {
	if metav1.GetControllerOfNoCopy(owner) != nil {
		return // its owner stands for it
	}
	t := template{kind: kind, owner: owner, pod: pod, selector: labels.SelectorFromSet(pod.Labels)}
	if by, err := metav1.LabelSelectorAsSelector(selector); err == nil && selector != nil && !by.Empty() {
		t.selector = by
	}
	s.templates = append(s.templates, t)
}

// addTemplatePods gives every workload that has no pod one of its own name and
// without an address, so that manifests without pods can be judged.
func (s *Snapshot) addTemplatePods() {
	pods := make(map[string][]*corev1.Pod)
	for _, p := range s.Pods {
		pods[p.Namespace] = append(pods[p.Namespace], p)
	}
	yes := true
	for _, t := range s.templates {
		ns, name := t.owner.GetNamespace(), t.owner.GetName()
		has := false
		for _, p := range pods[ns] {
			has = has || p.Name == name || !t.selector.Empty() && t.selector.Matches(labels.Set(p.Labels))
		}
		if has {
			continue
		}
		s.Pods = append(s.Pods, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: ns, Name: name, Labels: t.pod.Labels, Annotations: t.pod.Annotations,
				OwnerReferences: []metav1.OwnerReference{{Kind: t.kind, Name: name, UID: t.owner.GetUID(), Controller: &yes}},
			},
			Spec: t.pod.Spec,
		})
		s.places[objectKey("Pod", ns, name)] = s.places[objectKey(t.kind, ns, name)]
	}
}

// completeNamespaces adds the namespaces that objects are in, and the label
// that the API server gives to each.
func (s *Snapshot) completeNamespaces() {
	known := make(map[string]bool)
	for _, n := range s.Namespaces {
		known[n.Name] = true
		if n.Labels[corev1.LabelMetadataName] == "" {
			l := map[string]string{corev1.LabelMetadataName: n.Name}
			for k, v := range n.Labels {
				l[k] = v
			}
			n.Labels = l
		}
	}
	need := func(name string) {
		if !known[name] {
			known[name] = true
			s.Assumed = append(s.Assumed, name)
			s.Namespaces = append(s.Namespaces, &corev1.Namespace{
				ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelMetadataName: name}},
			})
		}
	}
	for _, p := range s.Pods {
		need(p.Namespace)
	}
	for _, p := range s.Policies {
		need(p.Namespace)
	}
}

// Workload names the controller of a pod that a person would name: the
// Deployment and not its ReplicaSet.
func (s *Snapshot) Workload(p *corev1.Pod) flow.Workload {
	if s.owners == nil {
		o := newOwners()
		for _, r := range s.ReplicaSets {
			o.set("ReplicaSet", r)
		}
		for _, j := range s.Jobs {
			o.set("Job", j)
		}
		s.owners = &o
	}
	c := controllerOf(p)
	return s.owners.name(ownerKey{c.Kind, orDefault(p.Namespace), c.Name}, p.Name, p.Labels)
}
