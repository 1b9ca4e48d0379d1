package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/flow"
)

// Objects are what the index is made of.
type Objects struct {
	Namespaces  []*corev1.Namespace
	Nodes       []*corev1.Node
	Pods        []*corev1.Pod
	Services    []*corev1.Service
	Policies    []*networkingv1.NetworkPolicy
	ReplicaSets []*appsv1.ReplicaSet
	Jobs        []*batchv1.Job
	// Problems are carried into Stats.
	Problems []string
}

// build makes the state but for the history, and says who holds each address now.
func (o *Objects) build() (*state, map[netip.Addr]*flow.Endpoint) {
	b := &builder{
		Objects: o,
		now:     make(map[netip.Addr]*flow.Endpoint),
		claims:  make(map[netip.Addr]*corev1.Pod),
		labels:  make(map[string]map[string]string),
		owners:  make(map[string]flow.Workload),
		state: &state{
			services: make(map[servicePort]*flow.Service),
			policies: o.Policies,
			stats: Stats{
				Pods: len(o.Pods), Namespaces: len(o.Namespaces), Services: len(o.Services), Nodes: len(o.Nodes),
				Policies: len(o.Policies), Problems: slices.Clone(o.Problems),
			},
		},
	}
	for _, n := range o.Namespaces {
		b.labels[n.Name] = n.Labels
	}
	b.addOwners()
	for _, n := range o.Nodes {
		b.addNode(n)
	}
	for _, s := range o.Services {
		b.addService(s)
	}
	for _, p := range o.Pods {
		b.addPod(p)
	}
	return b.state, b.now
}

type builder struct {
	*Objects
	state  *state
	now    map[netip.Addr]*flow.Endpoint
	claims map[netip.Addr]*corev1.Pod   // running pods by address
	labels map[string]map[string]string // of namespaces
	owners map[string]flow.Workload     // by kind/namespace/name
	nodes  []netip.Addr
}

func (b *builder) problem(format string, args ...any) {
	b.state.stats.Problems = append(b.state.stats.Problems, fmt.Sprintf(format, args...))
}

// address reads an address of an object; a broken one is a problem.
func (b *builder) address(s, whose string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		b.problem("%s: address %q is none", whose, s)
		return a, false
	}
	return a.Unmap(), true
}

// addOwners finds what stands behind the controllers that own pods directly.
func (b *builder) addOwners() {
	own := func(kind string, m metav1.ObjectMeta) {
		w := flow.Workload{Kind: kind, Name: m.Name}
		if c := metav1.GetControllerOfNoCopy(&m); c != nil {
			w = flow.Workload{Kind: c.Kind, Name: c.Name}
		}
		b.owners[kind+"/"+m.Namespace+"/"+m.Name] = w
	}
	for _, r := range b.ReplicaSets {
		own("ReplicaSet", r.ObjectMeta)
	}
	for _, j := range b.Jobs {
		own("Job", j.ObjectMeta)
	}
}

// workload names the controller that a person would name: the Deployment and
// not its ReplicaSet.
func (b *builder) workload(p *corev1.Pod) flow.Workload {
	c := metav1.GetControllerOfNoCopy(p)
	if c == nil || c.Kind == "Node" { // a bare pod, or a static one
		return flow.Workload{Kind: "Pod", Name: p.Name}
	}
	if w, ok := b.owners[c.Kind+"/"+p.Namespace+"/"+c.Name]; ok {
		return w
	}
	// Without the ReplicaSet its name still tells: a Deployment appends the hash.
	if hash := p.Labels["pod-template-hash"]; c.Kind == "ReplicaSet" && hash != "" {
		if name, ok := strings.CutSuffix(c.Name, "-"+hash); ok {
			return flow.Workload{Kind: "Deployment", Name: name}
		}
	}
	return flow.Workload{Kind: c.Kind, Name: c.Name}
}

func (b *builder) addNode(n *corev1.Node) {
	e := &flow.Endpoint{Kind: flow.EndpointNode, Node: n.Name}
	for _, a := range n.Status.Addresses {
		if a.Type != corev1.NodeInternalIP && a.Type != corev1.NodeExternalIP {
			continue
		}
		if addr, ok := b.address(a.Address, "Node "+n.Name); ok {
			b.now[addr] = e
			b.nodes = append(b.nodes, addr)
		}
	}
}

func (b *builder) addPod(p *corev1.Pod) {
	whose := "Pod " + p.Namespace + "/" + p.Name
	if ended(p) {
		return // another pod may have its address
	}
	if len(podIPs(p)) == 0 {
		if p.Status.Phase == corev1.PodRunning || p.Status.Phase == "" {
			b.problem("%s: has no address in status.podIPs", whose)
		}
		return
	}
	e := b.endpoint(p)
	for _, s := range podIPs(p) {
		addr, ok := b.address(s, whose)
		if !ok {
			continue
		}
		if p.Spec.HostNetwork {
			// Its address is the node's, and every hostNetwork pod's there.
			if b.now[addr] == nil {
				b.now[addr] = &flow.Endpoint{Kind: flow.EndpointNode, Node: p.Spec.NodeName}
			}
			continue
		}
		if other := b.claims[addr]; other != nil {
			b.problem("%s: address %s is also claimed by Pod %s/%s: neither is named by it", whose, addr, other.Namespace, other.Name)
			b.state.stats.Ambiguous++
			b.now[addr] = &flow.Endpoint{Kind: flow.EndpointAmbiguous}
			continue
		}
		b.claims[addr] = p
		b.now[addr] = e
	}
}

// ended reports whether a pod has given its address back.
func ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

func podIPs(p *corev1.Pod) []string {
	var out []string
	for _, ip := range p.Status.PodIPs {
		out = append(out, ip.IP)
	}
	if p.Status.PodIP != "" && !slices.Contains(out, p.Status.PodIP) {
		out = append(out, p.Status.PodIP)
	}
	return out
}

func (b *builder) endpoint(p *corev1.Pod) *flow.Endpoint {
	labels := stable(p.Labels)
	return &flow.Endpoint{
		Kind: flow.EndpointPod, Namespace: p.Namespace, Pod: p.Name, Workload: b.workload(p), Node: p.Spec.NodeName,
		Identity: Identity(p.Namespace, b.labels[p.Namespace], labels), Labels: labels,
	}
}

func (b *builder) addService(s *corev1.Service) {
	whose := "Service " + s.Namespace + "/" + s.Name
	var addrs []netip.Addr
	add := func(text string) {
		if text == "" || text == corev1.ClusterIPNone {
			return
		}
		if a, ok := b.address(text, whose); ok && !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	add(s.Spec.ClusterIP)
	for _, list := range [][]string{s.Spec.ClusterIPs, s.Spec.ExternalIPs} {
		for _, text := range list {
			add(text)
		}
	}
	for _, in := range s.Status.LoadBalancer.Ingress {
		add(in.IP)
	}
	e := &flow.Endpoint{Kind: flow.EndpointService, Namespace: s.Namespace, Workload: flow.Workload{Kind: "Service", Name: s.Name}}
	for _, a := range addrs {
		b.now[a] = e
		for _, p := range s.Spec.Ports {
			b.addServicePort(s, a, p.Port, p.Protocol)
		}
	}
	for _, p := range s.Spec.Ports {
		for _, node := range b.nodes {
			if p.NodePort != 0 {
				b.addServicePort(s, node, p.NodePort, p.Protocol)
			}
		}
	}
}

func (b *builder) addServicePort(s *corev1.Service, a netip.Addr, port int32, protocol corev1.Protocol) {
	p := flow.TCP
	if protocol != "" {
		var err error
		if p, err = flow.ParseProtocol(string(protocol)); err != nil {
			b.problem("Service %s/%s: %v", s.Namespace, s.Name, err)
			return
		}
	}
	if port < 1 || port > 65535 {
		b.problem("Service %s/%s: %d is no port", s.Namespace, s.Name, port)
		return
	}
	b.state.services[servicePort{a, uint16(port), p}] = &flow.Service{Addr: a, Port: uint16(port), Namespace: s.Namespace, Name: s.Name}
}
