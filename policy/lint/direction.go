package lint

import (
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
)

const (
	ingress = networkingv1.PolicyTypeIngress
	egress  = networkingv1.PolicyTypeEgress
)

func egressWithoutType(_ *view, p *policy, found report) {
	if p.Spec.Egress != nil && !isolates(p.NetworkPolicy, egress) && len(p.Spec.PolicyTypes) > 0 {
		found("spec.egress", "egress is given, but policyTypes lacks Egress: the rules do nothing, and egress stays open",
			"add Egress to policyTypes, or remove egress")
	}
}

func ingressWithoutType(_ *view, p *policy, found report) {
	if p.Spec.Ingress != nil && !isolates(p.NetworkPolicy, ingress) {
		found("spec.ingress", "ingress is given, but policyTypes lacks Ingress: the rules do nothing, and ingress stays open",
			"add Ingress to policyTypes, or remove ingress")
	}
}

// An empty list that is written out says that nothing is meant.

func typeWithoutEgress(_ *view, p *policy, found report) {
	if i := slices.Index(p.Spec.PolicyTypes, egress); i >= 0 && p.Spec.Egress == nil && len(p.Spec.Ingress) > 0 {
		found("spec.policyTypes", "policyTypes has Egress, but no egress is given: the pods may begin no connection, not even to DNS",
			"write egress: [] if that is meant, else give the rules, or remove Egress")
	}
}

func typeWithoutIngress(_ *view, p *policy, found report) {
	if p.Spec.Ingress != nil || len(p.Spec.Egress) == 0 {
		return
	}
	switch {
	case len(p.Spec.PolicyTypes) == 0:
		found("spec", "policyTypes is omitted, which means Ingress too, and no ingress is given: nobody may connect to the pods",
			"write policyTypes: [Egress], or ingress: [] if that is meant")
	case slices.Contains(p.Spec.PolicyTypes, ingress):
		found("spec.policyTypes", "policyTypes has Ingress, but no ingress is given: nobody may connect to the pods",
			"write ingress: [] if that is meant, else give the rules, or remove Ingress")
	}
}
