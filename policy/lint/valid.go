package lint

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// selectors yields every selector of a policy with its field's path.
func (p *policy) selectors(yield func(path string, s *metav1.LabelSelector)) {
	yield("spec.podSelector", &p.Spec.PodSelector)
	for _, r := range p.rules {
		for _, q := range r.peers {
			if q.NamespaceSelector != nil {
				yield(q.field+".namespaceSelector", q.NamespaceSelector)
			}
			if q.PodSelector != nil {
				yield(q.field+".podSelector", q.PodSelector)
			}
		}
	}
}

func invalidSelectors(_ *view, p *policy, found report) {
	p.selectors(func(path string, s *metav1.LabelSelector) {
		for _, e := range metav1validation.ValidateLabelSelector(s, metav1validation.LabelSelectorValidationOptions{}, field.NewPath(path)) {
			found(e.Field, e.ErrorBody(), "write an operator of In, NotIn (with values), Exists, DoesNotExist (without), and keys and values as labels have them")
		}
	})
}

// blocks yields the ipBlocks of a policy.
func (p *policy) blocks(yield func(path string, r *policyRule, b *networkingv1.IPBlock)) {
	for i := range p.rules {
		for _, q := range p.rules[i].peers {
			if q.IPBlock != nil {
				yield(q.field+".ipBlock", &p.rules[i], q.IPBlock)
			}
		}
	}
}

func invalidCIDRs(_ *view, p *policy, found report) {
	p.blocks(func(path string, _ *policyRule, b *networkingv1.IPBlock) {
		invalid := func(path, text string) {
			if _, err := netip.ParsePrefix(text); err != nil {
				found(path, fmt.Sprintf("%q is no CIDR", text), cidrFix(text))
			}
		}
		invalid(path+".cidr", b.CIDR)
		for i, e := range b.Except {
			invalid(fmt.Sprintf("%s.except[%d]", path, i), e)
		}
	})
}

func cidrFix(text string) string {
	if a, err := netip.ParseAddr(text); err == nil {
		return fmt.Sprintf("write %s/%d for this one address", a, a.BitLen())
	}
	return "write an address and a length, such as 192.0.2.0/24 or 2001:db8::/64"
}

func exceptsOutside(_ *view, p *policy, found report) {
	p.blocks(func(path string, _ *policyRule, b *networkingv1.IPBlock) {
		whole, err := netip.ParsePrefix(b.CIDR)
		if err != nil {
			return
		}
		for i, text := range b.Except {
			e, err := netip.ParsePrefix(text)
			if err == nil && (e.Bits() <= whole.Bits() || !whole.Contains(e.Addr())) {
				found(fmt.Sprintf("%s.except[%d]", path, i), fmt.Sprintf("%s is not a part of %s", e, whole),
					"write an except that is smaller than cidr and inside of it, or remove it")
			}
		}
	})
}

// eachPort yields the ports of a policy.
func (p *policy) eachPort(yield func(path string, r *policyRule, port *networkingv1.NetworkPolicyPort)) {
	for i := range p.rules {
		r := &p.rules[i]
		for j := range r.ports {
			yield(fmt.Sprintf("%s.ports[%d]", r.field, j), r, &r.ports[j])
		}
	}
}

func invalidPorts(_ *view, p *policy, found report) {
	p.eachPort(func(path string, _ *policyRule, port *networkingv1.NetworkPolicyPort) {
		const fix = "write a number from 1 to 65535, or a container port's name (at most 15 of a-z, 0-9 and -)"
		switch {
		case port.Port == nil:
		case port.Port.Type == intstr.Int:
			for _, m := range validation.IsValidPortNum(port.Port.IntValue()) {
				found(path+".port", fmt.Sprintf("%d is no port: %s", port.Port.IntValue(), m), fix)
			}
		default:
			for _, m := range validation.IsValidPortName(port.Port.StrVal) {
				found(path+".port", fmt.Sprintf("%q is no port name: %s", port.Port.StrVal, m), portNameFix(port.Port.StrVal, fix))
			}
		}
		if port.EndPort == nil {
			return
		}
		if port.Port == nil || port.Port.Type != intstr.Int {
			found(path+".endPort", "endPort needs port as a number", "write the first port of the range as a number into port")
		}
		for _, m := range validation.IsValidPortNum(int(*port.EndPort)) {
			found(path+".endPort", fmt.Sprintf("%d is no port: %s", *port.EndPort, m), fix)
		}
	})
}

// portNameFix sees the number that was quoted.
func portNameFix(text, otherwise string) string {
	if n := intstr.Parse(text); n.Type == intstr.Int {
		return fmt.Sprintf("write %d without quotes", n.IntValue())
	}
	return otherwise
}

func endPortsBelow(_ *view, p *policy, found report) {
	p.eachPort(func(path string, _ *policyRule, port *networkingv1.NetworkPolicyPort) {
		if port.EndPort != nil && port.Port != nil && port.Port.Type == intstr.Int && *port.EndPort < port.Port.IntVal {
			found(path+".endPort", fmt.Sprintf("endPort %d is below port %d", *port.EndPort, port.Port.IntVal),
				fmt.Sprintf("write port: %d and endPort: %d", *port.EndPort, port.Port.IntVal))
		}
	})
}

func protocolOf(port *networkingv1.NetworkPolicyPort) corev1.Protocol {
	if port.Protocol == nil {
		return corev1.ProtocolTCP
	}
	return *port.Protocol
}

func invalidProtocols(_ *view, p *policy, found report) {
	p.eachPort(func(path string, _ *policyRule, port *networkingv1.NetworkPolicyPort) {
		switch protocolOf(port) {
		case corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP:
		default:
			found(path+".protocol", fmt.Sprintf("%q is no protocol of a NetworkPolicy", *port.Protocol), "write TCP, UDP or SCTP, in capitals")
		}
	})
}

func invalidPeers(_ *view, p *policy, found report) {
	for _, r := range p.rules {
		for _, q := range r.peers {
			switch selects := q.NamespaceSelector != nil || q.PodSelector != nil; {
			case q.IPBlock != nil && selects:
				found(q.field, "a peer with ipBlock may not have selectors", "make two items of it: one with ipBlock, one with the selectors")
			case q.IPBlock == nil && !selects:
				found(q.field, "a peer says nothing", "remove the list to mean everybody, or write a selector; podSelector: {} means every pod of this namespace")
			}
		}
	}
}

func invalidTypes(_ *view, p *policy, found report) {
	for i, t := range p.Spec.PolicyTypes {
		if t != networkingv1.PolicyTypeIngress && t != networkingv1.PolicyTypeEgress {
			found(fmt.Sprintf("spec.policyTypes[%d]", i), fmt.Sprintf("%q is no policy type", t), "write Ingress or Egress, as these are")
		}
	}
}
