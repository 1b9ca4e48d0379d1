package kube

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/flow"
)

// namespace is what the index keeps of a namespace.
type namespace struct {
	known  bool // the API told of it, and not only a pod in it
	labels map[string]string
	pods   int
}

func (x *Index) namespace(name string) *namespace {
	n := x.namespaces[name]
	if n == nil {
		n = &namespace{}
		x.namespaces[intern(name)] = n
	}
	return n
}

// setNamespace takes in a namespace's labels. Other labels give all its pods
// another identity from now on.
func (x *Index) setNamespace(o *corev1.Namespace, m moment) {
	n := x.namespace(o.Name)
	if n.known && maps.Equal(n.labels, o.Labels) {
		return
	}
	n.known = true
	x.tellNamespace(o, m)
	x.relabel(o.Name, n, o.Labels, m)
}

func (x *Index) relabel(name string, n *namespace, labels map[string]string, m moment) {
	if maps.Equal(n.labels, labels) {
		return
	}
	n.labels = maps.Clone(labels)
	if n.pods == 0 {
		return
	}
	for k, r := range x.pods {
		if k.namespace == name {
			p := *r.pod
			x.describe(r, &p, m)
		}
	}
}

// deleteNamespace takes in that the API has no such namespace any more.
func (x *Index) deleteNamespace(name string, m moment) {
	n := x.namespaces[name]
	if n == nil || !n.known {
		return
	}
	n.known = false
	x.tell(flow.Change{Time: time.Unix(0, m.now), Kind: flow.ChangeNamespace, Name: name, Deleted: true})
	if n.pods == 0 {
		delete(x.namespaces, name)
	}
}

func (x *Index) tellNamespace(o *corev1.Namespace, m moment) {
	labels := o.Labels
	if labels == nil {
		labels = map[string]string{}
	}
	c := changeOf(o, flow.ChangeNamespace, m)
	x.tellObject(c, labels)
}

// Namespace returns a namespace's labels as they are now.
func (x *Index) Namespace(name string) (labels map[string]string, ok bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	n := x.namespaces[name]
	if n == nil || !n.known {
		return nil, false
	}
	return n.labels, true
}

// setPolicy takes in what a NetworkPolicy is now.
func (x *Index) setPolicy(o *networkingv1.NetworkPolicy, m moment) {
	k := podKey{orDefault(o.Namespace), o.Name}
	c := changeOf(o, flow.ChangePolicy, m)
	p := trimPolicy(o)
	before := x.byName[k]
	x.byName[k] = p
	if before != nil && samePolicy(before, p) {
		return
	}
	x.tellObject(c, p)
	x.publishPolicies()
}

func samePolicy(a, b *networkingv1.NetworkPolicy) bool {
	ja, errA := json.Marshal(a)
	jb, errB := json.Marshal(b)
	return errA == nil && errB == nil && string(ja) == string(jb)
}

// trimPolicy keeps of a policy what decides, and what people know it by.
func trimPolicy(o *networkingv1.NetworkPolicy) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
		ObjectMeta: metav1.ObjectMeta{Namespace: orDefault(o.Namespace), Name: o.Name, UID: o.UID, Labels: o.Labels},
		Spec:       o.Spec,
	}
}

// deletePolicy takes in that the API has no such policy any more.
func (x *Index) deletePolicy(k podKey, m moment) {
	if x.byName[k] == nil {
		return
	}
	delete(x.byName, k)
	x.tell(flow.Change{Time: time.Unix(0, m.now), Kind: flow.ChangePolicy, Namespace: k.namespace, Name: k.name, Deleted: true})
	x.publishPolicies()
}

// publishPolicies makes the list that readers see.
func (x *Index) publishPolicies() {
	list := make([]*networkingv1.NetworkPolicy, 0, len(x.byName))
	for _, p := range x.byName {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b *networkingv1.NetworkPolicy) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	x.policies.Store(&list)
}

func (x *Index) tell(c flow.Change) {
	if x.options.Changed != nil {
		x.options.Changed(c)
	}
}

func (x *Index) tellObject(c flow.Change, object any) {
	if x.options.Changed == nil {
		return
	}
	var err error
	if c.Object, err = json.Marshal(object); err == nil { // API types always have JSON
		x.options.Changed(c)
	}
}

// changeOf says when an object became what it is, and by whom: the newest
// entry of managedFields knows. A status is nobody's intention.
func changeOf(o metav1.Object, kind flow.ChangeKind, m moment) flow.Change {
	c := flow.Change{Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName(), Time: o.GetCreationTimestamp().Time}
	if kind == flow.ChangePolicy {
		c.Namespace = orDefault(c.Namespace)
	}
	for _, f := range o.GetManagedFields() {
		if f.Subresource != "" || f.Time == nil {
			continue
		}
		if c.Author == "" || !f.Time.Time.Before(c.Time) {
			c.Author = f.Manager
		}
		if f.Time.After(c.Time) {
			c.Time = f.Time.Time
		}
	}
	if c.Time.IsZero() {
		c.Time = time.Unix(0, m.now)
	}
	return c
}
