package policy_test

import (
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"
)

// throughProtobuf is a policy as an API server sends it. Empty lists come out nil.
func throughProtobuf(p *networkingv1.NetworkPolicy) *networkingv1.NetworkPolicy {
	b, err := p.Marshal()
	if err != nil {
		panic(err)
	}
	out := &networkingv1.NetworkPolicy{}
	if err := out.Unmarshal(b); err != nil {
		panic(err)
	}
	return out
}

// throughYAML is a policy as a file has it.
func throughYAML(p *networkingv1.NetworkPolicy) *networkingv1.NetworkPolicy {
	b, err := yaml.Marshal(p)
	if err != nil {
		panic(err)
	}
	out := &networkingv1.NetworkPolicy{}
	if err := yaml.UnmarshalStrict(b, out); err != nil {
		panic(err)
	}
	return out
}
