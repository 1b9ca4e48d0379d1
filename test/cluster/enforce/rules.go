// Package enforce plays a network plugin: it writes network policies as nftables rules, and logs what they refuse to NFLOG.
package enforce

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
)

// Options say how refusals look.
type Options struct {
	Group uint16 // of NFLOG
	Limit string // of log records a pod, such as "10/minute burst 10 packets"; "" is none
}

// DefaultOptions log each refused packet to group 100, where kube-router and k3s log.
func DefaultOptions() Options { return Options{Group: 100} }

// State is what policies are made of.
type State struct {
	Pods       []corev1.Pod
	Namespaces []corev1.Namespace
	Policies   []networkingv1.NetworkPolicy
}

const table = "flowaudit-test-policies"

// Rules are one node's rules, in nft(8)'s language. They replace those before.
func Rules(node string, s State, o Options) (string, error) {
	w := &writer{state: s, options: o}
	fmt.Fprintf(&w.forward, "\t\tct state established,related accept\n\t\ticmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept\n")
	slices.SortFunc(s.Pods, func(a, b corev1.Pod) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	for i := range s.Pods {
		if p := &s.Pods[i]; p.Spec.NodeName == node && hasNetwork(p) {
			w.pod(p)
		}
	}
	if w.err != nil {
		return "", w.err
	}
	return fmt.Sprintf("table inet %s\ndelete table inet %s\ntable inet %s {\n%s\tchain forward {\n\t\ttype filter hook forward priority filter; policy accept;\n%s\t}\n}\n",
		table, table, table, w.chains.String(), w.forward.String()), nil
}

// writer writes the rules of one node.
type writer struct {
	state           State
	options         Options
	chains, forward strings.Builder
	err             error // the first
}

func (w *writer) fail(err error) {
	if w.err == nil && err != nil {
		w.err = err
	}
}

// side is one of a pod's two directions.
type side struct {
	kind       networkingv1.PolicyType
	own, other string // which end of a packet the pod is, and its peer
}

var (
	ingress = side{networkingv1.PolicyTypeIngress, "daddr", "saddr"}
	egress  = side{networkingv1.PolicyTypeEgress, "saddr", "daddr"}
)

// pod writes a chain for each direction in which policies isolate the pod.
func (w *writer) pod(p *corev1.Pod) {
	for _, d := range []side{egress, ingress} {
		var policies []*networkingv1.NetworkPolicy
		for i := range w.state.Policies {
			if q := &w.state.Policies[i]; q.Namespace == p.Namespace && slices.Contains(q.Spec.PolicyTypes, d.kind) && w.selects(&q.Spec.PodSelector, p.Labels) {
				policies = append(policies, q)
			}
		}
		if len(policies) == 0 {
			continue
		}
		slices.SortFunc(policies, func(a, b *networkingv1.NetworkPolicy) int { return cmp.Compare(a.Name, b.Name) })
		chain := strings.ToLower(fmt.Sprintf("%s-%s", d.kind, p.UID))
		for _, m := range addresses(p.Status.PodIPs, d.own) {
			fmt.Fprintf(&w.forward, "\t\t%s jump %s\n", m, chain)
		}
		fmt.Fprintf(&w.chains, "\tchain %s { # %s/%s\n", chain, p.Namespace, p.Name)
		for _, q := range policies {
			w.policy(p, q, d)
		}
		limit := ""
		if w.options.Limit != "" {
			limit = "limit rate " + w.options.Limit + " "
		}
		fmt.Fprintf(&w.chains, "\t\t%slog group %d\n\t\treject with icmpx type port-unreachable\n\t}\n", limit, w.options.Group)
	}
}

// policy writes what one policy lets pass.
func (w *writer) policy(p *corev1.Pod, q *networkingv1.NetworkPolicy, d side) {
	let := func(peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) {
		for _, peer := range w.peers(q.Namespace, peers, d, d == egress && named(ports)) {
			target := p
			if d == egress {
				target = peer.pod
			}
			for _, port := range portMatches(ports, target) {
				match := strings.Join(slices.DeleteFunc([]string{peer.match, port}, func(s string) bool { return s == "" }), " ")
				fmt.Fprintf(&w.chains, "\t\t%s\n", strings.TrimSpace(fmt.Sprintf("%s return comment \"%s/%s\"", match, q.Namespace, q.Name)))
			}
		}
	}
	if d == ingress {
		for _, r := range q.Spec.Ingress {
			let(r.From, r.Ports)
		}
		return
	}
	for _, r := range q.Spec.Egress {
		let(r.To, r.Ports)
	}
}

// peer is a match of packets' other end; pod is set where it is one pod's.
type peer struct {
	match string
	pod   *corev1.Pod
}

// peers are the other ends that a rule lets in. Apart says that pods must not
// be joined into sets, because their ports have different numbers.
func (w *writer) peers(namespace string, all []networkingv1.NetworkPolicyPeer, d side, apart bool) []peer {
	if len(all) == 0 && !apart {
		return []peer{{}}
	}
	if len(all) == 0 {
		all = []networkingv1.NetworkPolicyPeer{{NamespaceSelector: &metav1.LabelSelector{}}}
	}
	var found []peer
	for _, one := range all {
		if one.IPBlock != nil {
			found = append(found, peer{match: block(one.IPBlock, d.other)})
			continue
		}
		var addrs []corev1.PodIP
		for i := range w.state.Pods {
			p := &w.state.Pods[i]
			if !hasNetwork(p) || !w.isPeer(one, namespace, p) {
				continue
			}
			if !apart {
				addrs = append(addrs, p.Status.PodIPs...)
				continue
			}
			for _, m := range addresses(p.Status.PodIPs, d.other) {
				found = append(found, peer{m, p})
			}
		}
		for _, m := range addresses(addrs, d.other) {
			found = append(found, peer{match: m})
		}
	}
	return found
}

func (w *writer) isPeer(one networkingv1.NetworkPolicyPeer, namespace string, p *corev1.Pod) bool {
	if one.NamespaceSelector == nil {
		return p.Namespace == namespace && w.selects(one.PodSelector, p.Labels)
	}
	i := slices.IndexFunc(w.state.Namespaces, func(n corev1.Namespace) bool { return n.Name == p.Namespace })
	return i >= 0 && w.selects(one.NamespaceSelector, w.state.Namespaces[i].Labels) && (one.PodSelector == nil || w.selects(one.PodSelector, p.Labels))
}

func (w *writer) selects(s *metav1.LabelSelector, of map[string]string) bool {
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		w.fail(fmt.Errorf("read selector %v: %w", s, err))
		return false
	}
	return selector.Matches(labels.Set(of))
}

// hasNetwork tells whether a pod has addresses of its own now.
func hasNetwork(p *corev1.Pod) bool {
	return !p.Spec.HostNetwork && len(p.Status.PodIPs) > 0 && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed
}

// addresses matches any of the addresses, one match an IP version.
func addresses(ips []corev1.PodIP, end string) []string {
	var v4, v6, matches []string
	for _, ip := range ips {
		if strings.Contains(ip.IP, ":") {
			v6 = append(v6, ip.IP)
		} else {
			v4 = append(v4, ip.IP)
		}
	}
	if len(v4) > 0 {
		matches = append(matches, fmt.Sprintf("ip %s { %s }", end, strings.Join(v4, ", ")))
	}
	if len(v6) > 0 {
		matches = append(matches, fmt.Sprintf("ip6 %s { %s }", end, strings.Join(v6, ", ")))
	}
	return matches
}

func block(b *networkingv1.IPBlock, end string) string {
	family := "ip"
	if p, err := netip.ParsePrefix(b.CIDR); err == nil && p.Addr().Is6() {
		family = "ip6"
	}
	match := fmt.Sprintf("%s %s %s", family, end, b.CIDR)
	if len(b.Except) > 0 {
		match += fmt.Sprintf(" %s %s != { %s }", family, end, strings.Join(b.Except, ", "))
	}
	return match
}
