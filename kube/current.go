package kube

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/flow"
)

// Current returns the objects as they are now, cut to what policies see:
// namespaces, nodes, pods that have not ended, Services and NetworkPolicies.
func (x *Index) Current() *Objects {
	x.mu.Lock()
	defer x.mu.Unlock()
	o := &Objects{Policies: x.Policies()}
	for name, n := range x.namespaces {
		if n.known {
			o.Namespaces = append(o.Namespaces, &corev1.Namespace{TypeMeta: typeOf("Namespace"), ObjectMeta: metav1.ObjectMeta{Name: name, Labels: n.labels}})
		}
	}
	for name, n := range x.nodes {
		if !n.known {
			continue
		}
		node := &corev1.Node{TypeMeta: typeOf("Node"), ObjectMeta: metav1.ObjectMeta{Name: name}}
		for _, a := range n.own {
			node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
		}
		o.Nodes = append(o.Nodes, node)
	}
	for _, r := range x.pods {
		addrs := r.addrs
		if r.node != nil {
			addrs = r.node.host[r]
		}
		if r.pod != nil && !r.ended {
			o.Pods = append(o.Pods, podObject(r.pod, addrs))
		}
	}
	for _, r := range x.svcs {
		s := &corev1.Service{TypeMeta: typeOf("Service"), ObjectMeta: metav1.ObjectMeta{Namespace: r.key.namespace, Name: r.key.name}}
		s.Spec.Selector = r.selector
		for _, a := range r.addrs {
			s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, a.String())
		}
		o.Services = append(o.Services, s)
	}
	sortByName(o.Namespaces)
	sortByName(o.Nodes)
	sortByName(o.Pods)
	sortByName(o.Services)
	return o
}

// PodsAt returns the pods that surely had an address at a moment, as they were
// then, and their identities. Those that ended hours before now are forgotten.
func (x *Index) PodsAt(at time.Time) (pods []*corev1.Pod, identities map[uint64]bool) {
	t := at.UnixNano()
	addrs := make(map[*Pod][]netip.Addr)
	x.addresses.each(func(addr netip.Addr, claims []claim) {
		if v := decide(claims, t, t); v.claim != nil {
			if p := v.claim.at(t).pod; p != nil {
				addrs[p] = append(addrs[p], addr)
			}
		}
	})
	identities = make(map[uint64]bool)
	for p, list := range addrs {
		slices.SortFunc(list, netip.Addr.Compare)
		pods = append(pods, podObject(p, list))
		identities[p.Identity] = true
	}
	sortByName(pods)
	return pods, identities
}

// each calls take for each address that somebody claims. Others may change
// them meanwhile.
func (a *addresses) each(take func(netip.Addr, []claim)) {
	for i := range a.shards {
		s := &a.shards[i]
		s.mu.RLock()
		entries, claims := slices.Clone(s.entries), slices.Clone(s.claims)
		s.mu.RUnlock()
		for i := range entries {
			if e := &entries[i]; e.lo|e.hi != 0 {
				take(e.addr(), claims[i])
			}
		}
	}
}

func typeOf(kind string) metav1.TypeMeta { return metav1.TypeMeta{APIVersion: "v1", Kind: kind} }

// podObject makes the object of a pod.
func podObject(p *Pod, addrs []netip.Addr) *corev1.Pod {
	o := &corev1.Pod{
		TypeMeta:   typeOf("Pod"),
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Pod, Labels: p.AllLabels},
		Spec:       corev1.PodSpec{NodeName: p.Node, HostNetwork: p.HostNetwork, Containers: portContainers(p.Ports)},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
	if w := p.Workload; w.Name != "" && w.Kind != "Pod" {
		controls := true
		o.OwnerReferences = []metav1.OwnerReference{{Kind: w.Kind, Name: w.Name, Controller: &controls}}
	}
	for _, a := range addrs {
		o.Status.PodIPs = append(o.Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	if len(addrs) > 0 {
		o.Status.PodIP = addrs[0].String()
	}
	return o
}

// IdentityPod makes the object of a pod that stands for all of an identity.
func IdentityPod(name string, s *flow.IdentityState) *corev1.Pod {
	return podObject(&Pod{
		Endpoint:  flow.Endpoint{Namespace: s.Namespace, Pod: name, Workload: s.Workload},
		AllLabels: s.Labels, Ports: s.Ports,
	}, nil)
}

// portContainers are as many containers as it takes to name the ports; one at
// least, so that it shows that all are known.
func portContainers(ports []flow.NamedPort) []corev1.Container {
	c := corev1.Container{Name: "all"}
	for _, p := range ports {
		protocol := map[flow.Protocol]corev1.Protocol{flow.UDP: corev1.ProtocolUDP, flow.SCTP: corev1.ProtocolSCTP}[p.Protocol]
		c.Ports = append(c.Ports, corev1.ContainerPort{Name: p.Name, ContainerPort: int32(p.Port), Protocol: cmp.Or(protocol, corev1.ProtocolTCP)})
	}
	return []corev1.Container{c}
}

func sortByName[T metav1.Object](list []T) {
	slices.SortFunc(list, func(a, b T) int {
		return cmp.Or(cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
	})
}
