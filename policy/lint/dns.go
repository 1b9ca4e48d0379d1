package lint

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// dnsPort is where DNS answers, unless the cluster's Service says otherwise.
const dnsPort = 53

// resolver is the cluster's DNS, as far as the objects tell.
type resolver struct {
	pods  []*corev1.Pod
	addrs []netip.Addr // of its Service, and of a cache on the node
}

// resolver finds the DNS Service's pods, else those with the usual labels.
func (v *view) resolver() resolver {
	// NodeLocal DNS cache answers on this address of every node.
	d := resolver{addrs: []netip.Addr{netip.AddrFrom4([4]byte{169, 254, 20, 10})}}
	for _, s := range v.Services {
		is := func(p corev1.ServicePort) bool { return p.Port == dnsPort && p.Protocol == corev1.ProtocolUDP }
		if len(s.Spec.Selector) == 0 || !strings.Contains(s.Name, "dns") || !slices.ContainsFunc(s.Spec.Ports, is) {
			continue
		}
		d.pods = append(d.pods, matching(v.pods[s.Namespace], labels.SelectorFromSet(s.Spec.Selector))...)
		if a, err := netip.ParseAddr(s.Spec.ClusterIP); err == nil {
			d.addrs = append(d.addrs, a)
		}
	}
	if len(d.pods) == 0 {
		usual := labels.SelectorFromSet(labels.Set{"k8s-app": "kube-dns"})
		d.pods = matching(v.pods[metav1.NamespaceSystem], usual)
	}
	return d
}

// target is the port on which a DNS pod answers.
func target(p *corev1.Pod, protocol corev1.Protocol) int32 {
	for _, c := range containers(p) {
		for _, port := range c.Ports {
			if port.Protocol == protocol && (port.ContainerPort == dnsPort || strings.HasPrefix(port.Name, "dns")) {
				return port.ContainerPort
			}
		}
	}
	return dnsPort
}

// reach says what policies together allow of DNS.
type reach struct{ anything, udp, tcp bool }

func (r *reach) add(o reach) {
	r.anything, r.udp, r.tcp = r.anything || o.anything, r.udp || o.udp, r.tcp || o.tcp
}

func (v *view) reach(d *resolver, p *policy) reach {
	var out reach
	for _, r := range p.allowing(egress) {
		out.anything = true
		out.udp = out.udp || v.allowsDNS(d, p, &r, corev1.ProtocolUDP)
		out.tcp = out.tcp || v.allowsDNS(d, p, &r, corev1.ProtocolTCP)
	}
	return out
}

func (v *view) allowsDNS(d *resolver, p *policy, r *policyRule, protocol corev1.Protocol) bool {
	if len(d.pods) == 0 {
		return portsAllow(r.ports, nil, protocol) && v.mayMeanDNS(p, r)
	}
	for _, pod := range d.pods {
		if portsAllow(r.ports, pod, protocol) && (len(r.peers) == 0 || slices.ContainsFunc(r.peers, func(q peer) bool { return v.allowsPod(d, p, &q, pod) })) {
			return true
		}
	}
	return false
}

func (v *view) allowsPod(d *resolver, p *policy, q *peer, pod *corev1.Pod) bool {
	switch {
	case !q.valid:
		return true // which another rule says
	case q.IPBlock != nil:
		b, ok := readBlock(q.IPBlock)
		return !ok || slices.ContainsFunc(d.addrs, b.contains) || slices.ContainsFunc(addresses(pod), b.contains)
	case q.pods != nil && !q.pods.Matches(labels.Set(pod.Labels)):
		return false
	case q.namespaces != nil:
		return q.namespaces.Matches(v.labels[pod.Namespace])
	}
	return pod.Namespace == p.Namespace
}

// mayMeanDNS judges peers where no DNS pod is known: any namespace may hold it
// but the policy's own.
func (v *view) mayMeanDNS(p *policy, r *policyRule) bool {
	return len(r.peers) == 0 || p.Namespace == metav1.NamespaceSystem ||
		slices.ContainsFunc(r.peers, func(q peer) bool { return q.IPBlock != nil || q.NamespaceSelector != nil })
}

// portsAllow reports whether ports hold the DNS port of a pod; nil is an
// unknown pod, of which a name may mean it.
func portsAllow(ports []networkingv1.NetworkPolicyPort, pod *corev1.Pod, protocol corev1.Protocol) bool {
	if len(ports) == 0 {
		return true
	}
	want := int32(dnsPort)
	if pod != nil {
		want = target(pod, protocol)
	}
	return slices.ContainsFunc(ports, func(p networkingv1.NetworkPolicyPort) bool {
		switch {
		case protocolOf(&p) != protocol:
			return false
		case p.Port == nil:
			return true
		case p.Port.Type == intstr.Int:
			return p.Port.IntVal <= want && want <= lastPort(p)
		case pod == nil:
			return true
		}
		why, _ := portShortfall([]*corev1.Pod{pod}, p.Port.StrVal, protocol)
		return why == ""
	})
}

func dnsOverUDP(v *view) {
	v.blocked(func(r reach) bool { return r.anything && !r.udp }, func(r reach, whose string) string {
		over := "over UDP"
		if !r.tcp {
			over = "over UDP or TCP"
		}
		return fmt.Sprintf("egress of %s is isolated, and no policy allows port 53 to the cluster's DNS %s: names do not resolve", whose, over)
	})
}

func dnsOverTCP(v *view) {
	v.blocked(func(r reach) bool { return r.udp && !r.tcp }, func(_ reach, whose string) string {
		return fmt.Sprintf("DNS of %s is allowed over UDP alone: an answer that does not fit into a datagram fails", whose)
	})
}

// blocked finds pods of which bad holds over all their policies, each once: at
// the policy that has rules, where the missing one belongs.
func (v *view) blocked(bad func(reach) bool, message func(r reach, whose string) string) {
	d := v.resolver()
	var isolating []*policy
	can := make(map[*policy]reach)
	for _, p := range v.policies {
		if p.selector != nil && isolates(p.NetworkPolicy, egress) {
			isolating = append(isolating, p)
			can[p] = v.reach(&d, p)
		}
	}
	slices.SortStableFunc(isolating, func(a, b *policy) int { return cmp.Compare(len(b.Spec.Egress), len(a.Spec.Egress)) })
	told := make(map[*corev1.Pod]bool)
	for _, p := range isolating {
		whose, r := v.firstBlocked(p, isolating, can, told, bad)
		if whose == "" {
			continue
		}
		field := "spec.egress"
		if len(p.Spec.Egress) == 0 {
			field = "spec"
		}
		v.in("NetworkPolicy", p.Namespace, p.Name)(field, message(r, whose),
			"add a rule to kube-system's pods with k8s-app: kube-dns, ports 53 UDP and 53 TCP")
	}
}

// firstBlocked names the pods of a policy of which bad holds, and what the
// first of them can reach. Without pods the policy is judged as it stands, with
// those that select all that it selects.
func (v *view) firstBlocked(p *policy, isolating []*policy, can map[*policy]reach, told map[*corev1.Pod]bool, bad func(reach) bool) (string, reach) {
	together := func(applies func(q *policy) bool) reach {
		var r reach
		for _, q := range isolating {
			if q.Namespace == p.Namespace && applies(q) {
				r.add(can[q])
			}
		}
		return r
	}
	if len(p.selected) == 0 {
		r := together(func(q *policy) bool { return selectorCovers(&q.Spec.PodSelector, &p.Spec.PodSelector) })
		if bad(r) && can[p].anything {
			return "its pods", r
		}
		return "", r
	}
	var first reach
	var pods []*corev1.Pod
	for _, pod := range p.selected {
		r := together(func(q *policy) bool { return q.selector.Matches(labels.Set(pod.Labels)) })
		if !told[pod] && bad(r) {
			if len(pods) == 0 {
				first = r
			}
			told[pod] = true
			pods = append(pods, pod)
		}
	}
	if len(pods) == 0 {
		return "", first
	}
	return podsText(pods), first
}
