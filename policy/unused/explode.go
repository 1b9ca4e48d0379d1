package unused

import (
	"fmt"
	"strconv"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy/history"
)

// explode turns each rule of a policy into rules of one peer, and rules of one
// port, so that a decision tells which of them it needed.
func (f *finder) explode(p *history.Policy) *networkingv1.NetworkPolicy {
	out := &networkingv1.NetworkPolicy{ObjectMeta: p.ObjectMeta, Spec: p.Spec}
	out.Spec.Ingress, out.Spec.Egress = nil, nil
	if len(out.Spec.PolicyTypes) == 0 {
		out.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(p.Spec.Egress) > 0 {
			out.Spec.PolicyTypes = append(out.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
	for i, r := range p.Spec.Ingress {
		f.rule(p, "ingress", i, "from", r.From, r.Ports, func(peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) int {
			out.Spec.Ingress = append(out.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: peers, Ports: ports})
			return len(out.Spec.Ingress) - 1
		})
	}
	for i, r := range p.Spec.Egress {
		f.rule(p, "egress", i, "to", r.To, r.Ports, func(peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) int {
			out.Spec.Egress = append(out.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: peers, Ports: ports})
			return len(out.Spec.Egress) - 1
		})
	}
	return out
}

func (f *finder) rule(p *history.Policy, direction string, n int, list string, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort,
	add func([]networkingv1.NetworkPolicyPeer, []networkingv1.NetworkPolicyPort) int,
) {
	field := "spec." + direction + "[" + strconv.Itoa(n) + "]"
	make1 := func(kind, field, text string, peers []networkingv1.NetworkPolicyPeer, parent *part) *part {
		made := &part{
			Rule:   Rule{Kind: kind, Namespace: p.Namespace, Policy: p.Name, Direction: direction, Field: field, Text: text},
			policy: p, peers: peers, parent: parent,
		}
		f.parts = append(f.parts, made)
		return made
	}
	slot := func(at int, parts ...*part) {
		ref := flow.PolicyRef{Namespace: p.Namespace, Name: p.Name, Rule: direction + "[" + strconv.Itoa(at) + "]"}
		f.slots[ref] = append(f.slots[ref], parts...)
	}
	whole := make1("rule", field, list+" "+peersText(peers)+", "+portsText(ports), peers, nil)
	if len(peers) < 2 && len(ports) < 2 {
		slot(add(peers, ports), whole)
		return
	}
	if len(peers) > 1 {
		for i := range peers {
			one := peers[i : i+1]
			slot(add(one, ports), whole, make1("peer", field+"."+list+"["+strconv.Itoa(i)+"]", peersText(one), one, whole))
		}
	}
	if len(ports) > 1 {
		for i := range ports {
			one := ports[i : i+1]
			slot(add(peers, one), whole, make1("port", field+".ports["+strconv.Itoa(i)+"]", portsText(one), peers, whole))
		}
	}
}

func peersText(peers []networkingv1.NetworkPolicyPeer) string {
	if len(peers) == 0 {
		return "anyone"
	}
	var out []string
	for i := range peers {
		p := &peers[i]
		switch {
		case p.IPBlock != nil && len(p.IPBlock.Except) > 0:
			out = append(out, p.IPBlock.CIDR+" except "+strings.Join(p.IPBlock.Except, " "))
		case p.IPBlock != nil:
			out = append(out, p.IPBlock.CIDR)
		case p.NamespaceSelector != nil && p.PodSelector != nil:
			out = append(out, "pods "+selectorText(p.PodSelector)+" of namespaces "+selectorText(p.NamespaceSelector))
		case p.NamespaceSelector != nil:
			out = append(out, "namespaces "+selectorText(p.NamespaceSelector))
		default:
			out = append(out, "pods "+selectorText(p.PodSelector))
		}
	}
	return strings.Join(out, ", ")
}

func selectorText(s *metav1.LabelSelector) string {
	if text := metav1.FormatLabelSelector(s); text != "" && text != "<none>" {
		return text
	}
	return "(all)"
}

func portsText(ports []networkingv1.NetworkPolicyPort) string {
	if len(ports) == 0 {
		return "any port"
	}
	var out []string
	for _, p := range ports {
		text := "TCP"
		if p.Protocol != nil {
			text = string(*p.Protocol)
		}
		if p.Port != nil {
			text += " " + p.Port.String()
		}
		if p.EndPort != nil {
			text += fmt.Sprintf("–%d", *p.EndPort)
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}
