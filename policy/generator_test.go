package policy_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy"
)

// generator makes small clusters out of few words, so that most things meet
// at their edges: neighbouring ports, nested networks, near-equal selectors.
type generator struct {
	*rand.Rand
	invalid float64 // how often something invalid is made
}

// fixed is a source that always gives the same.
func fixed() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }

func pick[T any](g *generator, from ...T) T { return from[g.IntN(len(from))] }

func (g *generator) often(p float64) bool { return g.Float64() < p }

// world is a cluster as the reference knows it.
type world struct {
	namespaces map[string]map[string]string // labels; nil if not known
	pods       []*refPod
	policies   map[string]*networkingv1.NetworkPolicy // by namespace/name
}

func (g *generator) world() *world {
	w := &world{namespaces: make(map[string]map[string]string), policies: make(map[string]*networkingv1.NetworkPolicy)}
	for _, name := range g.namespaceNames() {
		w.namespaces[name] = g.namespaceLabels()
	}
	for i := range 4 + g.IntN(8) {
		w.pods = append(w.pods, g.pod(fmt.Sprintf("p%d", i), i))
	}
	for range g.IntN(10) {
		p := g.policy()
		w.policies[p.Namespace+"/"+p.Name] = p
	}
	w.relabel()
	return w
}

func (g *generator) namespaceNames() []string { return []string{"a", "b", "c"} }

func (g *generator) namespaceLabels() map[string]string {
	if g.often(0.1) {
		return nil
	}
	return g.labels()
}

// relabel tells the pods what labels their namespaces have.
func (w *world) relabel() {
	for _, p := range w.pods {
		p.namespaceLabels = w.namespaces[p.namespace]
	}
}

func (g *generator) labels() map[string]string {
	labels := make(map[string]string)
	for _, k := range []string{"k", "l"} {
		if g.often(0.6) {
			labels[k] = pick(g, "x", "y", "")
		}
	}
	return labels
}

func (g *generator) pod(name string, i int) *refPod {
	p := &refPod{
		namespace: pick(g, g.namespaceNames()...), name: name, labels: g.labels(),
		node: pick(g, "n1", "n2", "n2", ""), host: g.often(0.1), portsUnknown: g.often(0.05),
	}
	for range g.IntN(4) {
		p.ports = append(p.ports, corev1.ContainerPort{
			Name: pick(g, "http", "dns", ""), ContainerPort: pick(g, int32(53), 80, 81, 8080), Protocol: pick(g, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP, ""),
		})
	}
	if !g.often(0.1) {
		p.ips = []string{fmt.Sprintf("10.0.%d.%d", g.IntN(3), 1+i)}
		if g.often(0.5) {
			p.ips = append(p.ips, fmt.Sprintf("fd00::%d:%d", g.IntN(3), 1+i))
		}
	}
	return p
}

func (g *generator) policy() *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{}
	p.Namespace, p.Name = pick(g, g.namespaceNames()...), fmt.Sprintf("np%d", g.IntN(8))
	p.Spec.PodSelector = *g.selector()
	for range g.IntN(3) {
		p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: g.peers(), Ports: g.ports()})
	}
	for range g.IntN(3) {
		p.Spec.Egress = append(p.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: g.peers(), Ports: g.ports()})
	}
	if g.often(0.7) {
		p.Spec.PolicyTypes = pick(g, []networkingv1.PolicyType{"Ingress"}, []networkingv1.PolicyType{"Egress"}, []networkingv1.PolicyType{"Ingress", "Egress"}, []networkingv1.PolicyType{})
	}
	if g.often(g.invalid) {
		p.Spec.PolicyTypes = pick(g, []networkingv1.PolicyType{"ingress"}, []networkingv1.PolicyType{"Egress", ""}, []networkingv1.PolicyType{"Egress", "Egress", "Ingress"})
	}
	return p
}

func (g *generator) selector() *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	if g.often(0.3) {
		return s
	}
	for _, k := range []string{"k", "l", "kubernetes.io/metadata.name"} {
		if g.often(0.25) {
			if s.MatchLabels == nil {
				s.MatchLabels = make(map[string]string)
			}
			s.MatchLabels[k] = pick(g, "x", "y", "", "a", "b")
		}
	}
	for g.often(0.3) {
		e := metav1.LabelSelectorRequirement{Key: pick(g, "k", "l", "m", "kubernetes.io/metadata.name"), Operator: pick(g, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist)}
		if e.Operator == metav1.LabelSelectorOpIn || e.Operator == metav1.LabelSelectorOpNotIn {
			for range 1 + g.IntN(3) {
				e.Values = append(e.Values, pick(g, "x", "y", "", "a", "b", "c"))
			}
		}
		if g.often(g.invalid) {
			e = pick(g, metav1.LabelSelectorRequirement{Key: "k", Operator: "in", Values: []string{"x"}}, metav1.LabelSelectorRequirement{Key: "k", Operator: metav1.LabelSelectorOpIn},
				metav1.LabelSelectorRequirement{Key: "k", Operator: metav1.LabelSelectorOpExists, Values: []string{"x"}}, metav1.LabelSelectorRequirement{Key: "not a key", Operator: metav1.LabelSelectorOpExists},
				metav1.LabelSelectorRequirement{Key: "k", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"no value!"}})
		}
		s.MatchExpressions = append(s.MatchExpressions, e)
	}
	return s
}

func (g *generator) peers() []networkingv1.NetworkPolicyPeer {
	if g.often(0.1) {
		return []networkingv1.NetworkPolicyPeer{}
	}
	var peers []networkingv1.NetworkPolicyPeer
	for range g.IntN(4) {
		peers = append(peers, g.peer())
	}
	return peers
}

func (g *generator) peer() networkingv1.NetworkPolicyPeer {
	var p networkingv1.NetworkPolicyPeer
	kind := g.IntN(4)
	if kind == 0 {
		p.IPBlock = g.block()
	}
	if kind == 1 || kind == 3 {
		p.PodSelector = g.selector()
	}
	if kind == 2 || kind == 3 {
		p.NamespaceSelector = g.selector()
	}
	if g.often(g.invalid) {
		p = pick(g, networkingv1.NetworkPolicyPeer{}, networkingv1.NetworkPolicyPeer{IPBlock: g.block(), PodSelector: &metav1.LabelSelector{}})
	}
	return p
}

func (g *generator) block() *networkingv1.IPBlock {
	if g.often(g.invalid) {
		return pick(g, &networkingv1.IPBlock{CIDR: "10.0.0.0"}, &networkingv1.IPBlock{CIDR: ""}, &networkingv1.IPBlock{CIDR: "10.0.0.0/33"}, &networkingv1.IPBlock{CIDR: "10.0.0.0/8", Except: []string{"11.0.0.0/16"}},
			&networkingv1.IPBlock{CIDR: "10.0.0.0/24", Except: []string{"10.0.0.0/24"}}, &networkingv1.IPBlock{CIDR: "10.0.0.0/8", Except: []string{"fd00::/16"}}, &networkingv1.IPBlock{CIDR: "10.0.0.0/8", Except: []string{"x"}})
	}
	if g.often(0.3) {
		b := &networkingv1.IPBlock{CIDR: pick(g, "::/0", "fd00::/16", "fd00::1:0/112", "fd00::1:3/127", "fd00::2:5/128", "8000::/1", "ffff::/16")}
		for b.CIDR == "::/0" && g.often(0.5) {
			b.Except = append(b.Except, pick(g, "fd00::/16", "fd00::1:0/112", "fd00::2:0/125", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0/124"))
		}
		return b
	}
	b := &networkingv1.IPBlock{CIDR: pick(g, "0.0.0.0/0", "10.0.0.0/8", "10.0.1.3/24", "10.0.2.0/30", "10.0.0.4/32", "192.168.0.0/16", "255.255.255.255/32", "128.0.0.0/1", "::ffff:10.0.1.0/120")}
	for (b.CIDR == "0.0.0.0/0" || b.CIDR == "10.0.0.0/8") && g.often(0.4) {
		b.Except = append(b.Except, pick(g, "10.0.1.0/24", "10.0.1.0/30", "10.0.2.4/31", "10.0.0.0/16", "10.0.0.1/32"))
	}
	return b
}

func (g *generator) ports() []networkingv1.NetworkPolicyPort {
	if g.often(0.1) {
		return []networkingv1.NetworkPolicyPort{}
	}
	var ports []networkingv1.NetworkPolicyPort
	for range g.IntN(4) {
		ports = append(ports, g.port())
	}
	return ports
}

func (g *generator) port() networkingv1.NetworkPolicyPort {
	var p networkingv1.NetworkPolicyPort
	if g.often(0.7) {
		p.Protocol = new(pick(g, corev1.ProtocolTCP, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP))
	}
	switch g.IntN(5) {
	case 0: // every port
	case 1, 2:
		p.Port = new(intstr.FromInt32(pick(g, int32(1), 53, 80, 81, 8080, 65535)))
	case 3:
		p.Port = new(intstr.FromString(pick(g, "http", "dns")))
	default:
		p.Port = new(intstr.FromInt32(pick(g, int32(1), 53, 79, 80)))
		p.EndPort = new(pick(g, int32(80), 81, 8080, 65535))
	}
	if g.often(g.invalid) {
		p = pick(g, networkingv1.NetworkPolicyPort{Protocol: new(corev1.Protocol("tcp"))}, networkingv1.NetworkPolicyPort{Port: new(intstr.FromInt32(0))}, networkingv1.NetworkPolicyPort{Port: new(intstr.FromInt32(65536))},
			networkingv1.NetworkPolicyPort{Port: new(intstr.FromInt32(80)), EndPort: new(int32(79))}, networkingv1.NetworkPolicyPort{EndPort: new(int32(79))}, networkingv1.NetworkPolicyPort{Port: new(intstr.FromString("http")), EndPort: new(int32(79))},
			networkingv1.NetworkPolicyPort{Port: new(intstr.FromString("not a name"))}, networkingv1.NetworkPolicyPort{Port: new(intstr.FromInt32(-1))}, networkingv1.NetworkPolicyPort{Port: new(intstr.FromInt32(80)), EndPort: new(int32(65536))})
	}
	return p
}

func (g *generator) connection(w *world) *refConnection {
	c := &refConnection{
		src: g.end(w), dst: g.end(w), protocol: pick(g, "TCP", "TCP", "TCP", "UDP", "SCTP", "ICMP", "GRE"),
		port: pick(g, int32(0), 1, 2, 52, 53, 54, 79, 80, 80, 81, 82, 8079, 8080, 8081, 65534, 65535),
	}
	if g.often(0.2) {
		c.dst = c.src
	}
	if g.often(0.1) {
		if seen := g.end(w); seen != (refEnd{kind: "unknown"}) {
			c.seen = &seen
		}
	}
	return c
}

func (g *generator) end(w *world) refEnd {
	if g.often(0.75) {
		p := pick(g, w.pods...)
		e := refEnd{kind: "pod", pod: p, node: p.node}
		if len(p.ips) > 0 {
			e.ip = pick(g, p.ips...)
		}
		if p.host {
			e.kind, e.pod = "node", nil
		}
		return e
	}
	return refEnd{
		kind: pick(g, "node", "outside", "outside", "service", "unknown", "ambiguous"), node: pick(g, "n1", "n2", ""),
		ip: pick(g, "10.0.0.4", "10.0.1.0", "10.0.2.5", "11.0.0.0", "192.168.255.255", "0.0.0.0", "255.255.255.255", "fd00::1:3", "fd00::1:4", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::", "7fff::", "::ffff:10.0.1.7", ""),
	}
}

// asPod is a pod of the reference as the engine takes it.
func (p *refPod) asPod() policy.Pod {
	out := policy.Pod{
		Namespace: p.namespace, NamespaceLabels: p.namespaceLabels, Name: p.name, Labels: p.labels,
		PortsUnknown: p.portsUnknown, Node: p.node, HostNetwork: p.host,
	}
	for _, n := range p.ports {
		protocol := flow.TCP
		if n.Protocol != "" {
			protocol, _ = flow.ParseProtocol(string(n.Protocol))
		}
		out.Ports = append(out.Ports, policy.NamedPort{Name: n.Name, Protocol: protocol, Port: uint16(n.ContainerPort)})
	}
	for _, ip := range p.ips {
		out.Addrs = append(out.Addrs, netip.MustParseAddr(ip))
	}
	return out
}

// asEnd describes the end to the engine. A pod's class is that of the
// snapshot's own pod, if there is a snapshot, else one made for it.
func (e *refEnd) asEnd(classes *policy.Classes, s *policy.Snapshot) policy.End {
	out := policy.End{Kind: endpointKinds[e.kind], Node: e.node}
	switch {
	case e.pod != nil && s != nil:
		out.Class, out.Pod = s.Pod(e.pod.namespace, e.pod.name).Class, e.pod.name
	case e.pod != nil:
		p := e.pod.asPod()
		out.Class, out.Pod = classes.Of(&p), p.Name
	}
	if e.ip != "" {
		out.Addr = netip.MustParseAddr(e.ip)
	}
	return out
}

var endpointKinds = map[string]flow.EndpointKind{
	"pod": flow.EndpointPod, "node": flow.EndpointNode, "outside": flow.EndpointOutside,
	"service": flow.EndpointService, "ambiguous": flow.EndpointAmbiguous, "unknown": flow.EndpointUnknown,
}

// asConnection describes the connection to the engine; see asEnd.
func (c *refConnection) asConnection(classes *policy.Classes, s *policy.Snapshot) *policy.Connection {
	out := &policy.Connection{Src: c.src.asEnd(classes, s), Dst: c.dst.asEnd(classes, s), Port: uint16(c.port), Protocol: 47} // GRE
	if c.protocol != "GRE" {
		out.Protocol, _ = flow.ParseProtocol(c.protocol)
	}
	if c.seen != nil {
		out.Seen = c.seen.asEnd(classes, nil)
	}
	return out
}
