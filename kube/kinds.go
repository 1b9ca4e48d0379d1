package kube

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/flowaudit/flowaudit/flow"
)

// kind is a kind of object that is watched, and what the index does with it.
type kind struct {
	resource schema.GroupVersionResource
	object   runtime.Object // of the type that comes
	// metadata says that only the object's metadata is asked for.
	metadata bool
	// field selects objects; empty for all.
	field string
	// last says that it is asked for after the others: what the others say is
	// needed to understand it.
	last bool

	// told is what the timeline calls what these objects are, or what all of
	// them together have.
	told flow.ChangeKind

	trim   func(any) any // makes of an object what set takes
	set    func(*Index, any, moment)
	remove func(*Index, podKey, moment)
	known  func(*Index) []podKey
}

func (k *kind) name() string { return k.resource.GroupResource().String() }

func core(resource string) schema.GroupVersionResource {
	return corev1.SchemeGroupVersion.WithResource(resource)
}

func group(name, resource string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: name, Version: "v1", Resource: resource}
}

// nodeKinds are what an agent watches: its own node and the pods there.
func nodeKinds(node string) []kind {
	pods, nodes := podKind(), nodeKind()
	pods.field, nodes.field = "spec.nodeName="+node, "metadata.name="+node
	return []kind{nodes, pods}
}

// clusterKinds are what a collector watches.
func clusterKinds() []kind {
	return []kind{
		namespaceKind(), nodeKind(), serviceKind(), sliceKind(), policyKind(),
		ownerKind(group("apps", "replicasets"), "ReplicaSet"), ownerKind(group("batch", "jobs"), "Job"), podKind(),
	}
}

func podKind() kind {
	return kind{
		resource: core("pods"), object: &corev1.Pod{}, last: true, told: flow.ChangeIdentity,
		trim:   func(o any) any { return factsOf(o.(*corev1.Pod)) },
		set:    func(x *Index, o any, m moment) { x.setPod(o.(*podFacts), m) },
		remove: (*Index).deletePod,
		known:  func(x *Index) []podKey { return slices.Collect(maps.Keys(x.pods)) },
	}
}

func nodeKind() kind {
	return kind{
		resource: core("nodes"), object: &corev1.Node{},
		trim: func(o any) any {
			n := o.(*corev1.Node)
			return &corev1.Node{
				ObjectMeta: metav1.ObjectMeta{Name: n.Name},
				Spec:       corev1.NodeSpec{PodCIDR: n.Spec.PodCIDR, PodCIDRs: n.Spec.PodCIDRs},
				Status:     corev1.NodeStatus{Addresses: n.Status.Addresses},
			}
		},
		set:    func(x *Index, o any, m moment) { x.setNode(o.(*corev1.Node), m) },
		remove: func(x *Index, k podKey, m moment) { x.deleteNode(k.name, m) },
		known:  (*Index).knownNodes,
	}
}

func namespaceKind() kind {
	return kind{
		resource: core("namespaces"), object: &corev1.Namespace{}, told: flow.ChangeNamespace, trim: same,
		set:    func(x *Index, o any, m moment) { x.setNamespace(o.(*corev1.Namespace), m) },
		remove: func(x *Index, k podKey, m moment) { x.deleteNamespace(k.name, m) },
		known:  (*Index).knownNamespaces,
	}
}

func serviceKind() kind {
	return kind{
		resource: core("services"), object: &corev1.Service{},
		trim: func(o any) any {
			s := o.(*corev1.Service)
			s.ManagedFields, s.Annotations = nil, nil
			return s
		},
		set:    func(x *Index, o any, m moment) { x.setService(o.(*corev1.Service), m) },
		remove: (*Index).deleteService,
		known:  func(x *Index) []podKey { return slices.Collect(maps.Keys(x.svcs)) },
	}
}

func sliceKind() kind {
	return kind{
		resource: group("discovery.k8s.io", "endpointslices"), object: &discoveryv1.EndpointSlice{},
		trim: func(o any) any {
			s := o.(*discoveryv1.EndpointSlice)
			s.ManagedFields, s.Annotations = nil, nil
			for i := range s.Endpoints {
				s.Endpoints[i].TargetRef, s.Endpoints[i].Hints = nil, nil
			}
			return s
		},
		set:    func(x *Index, o any, m moment) { x.setSlice(o.(*discoveryv1.EndpointSlice), m) },
		remove: (*Index).deleteSlice,
		known:  func(x *Index) []podKey { return slices.Collect(maps.Keys(x.slices)) },
	}
}

func policyKind() kind {
	return kind{
		resource: group("networking.k8s.io", "networkpolicies"), object: &networkingv1.NetworkPolicy{}, told: flow.ChangePolicy, trim: same,
		set:    func(x *Index, o any, m moment) { x.setPolicy(o.(*networkingv1.NetworkPolicy), m) },
		remove: (*Index).deletePolicy,
		known:  func(x *Index) []podKey { return slices.Collect(maps.Keys(x.byName)) },
	}
}

// ownerKind asks for the metadata of controllers only: who owns them.
func ownerKind(resource schema.GroupVersionResource, name string) kind {
	return kind{
		resource: resource, object: &metav1.PartialObjectMetadata{}, metadata: true,
		trim: func(o any) any {
			m := o.(*metav1.PartialObjectMetadata)
			return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
				Namespace: m.Namespace, Name: m.Name, OwnerReferences: m.OwnerReferences,
			}}
		},
		set:    func(x *Index, o any, m moment) { x.setOwner(name, o.(*metav1.PartialObjectMetadata), m) },
		remove: func(x *Index, k podKey, _ moment) { x.deleteOwner(name, k) },
		known: func(x *Index) []podKey {
			var out []podKey
			for k := range x.owners.behind {
				if k.kind == name {
					out = append(out, podKey{k.namespace, k.name})
				}
			}
			return out
		},
	}
}

func same(o any) any { return o }
