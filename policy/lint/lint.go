// Package lint finds what a set of NetworkPolicies says wrongly, or says other than was likely meant.
package lint

import (
	"cmp"
	"fmt"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
)

// Severity says how much a finding matters.
type Severity uint8

// Severities, the least first.
const (
	Info    Severity = iota + 1 // true, and maybe meant
	Warning                     // likely not meant
	Error                       // refused by the API server, or without any effect
)

var severityNames = [...]string{Info: "info", Warning: "warning", Error: "error"}

func (s Severity) String() string {
	if s < Info || s > Error {
		return fmt.Sprintf("severity %d", uint8(s))
	}
	return severityNames[s]
}

// MarshalText gives the severity's name.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// ParseSeverity reads info, warning or error.
func ParseSeverity(text string) (Severity, error) {
	for s := Info; s <= Error; s++ {
		if severityNames[s] == text {
			return s, nil
		}
	}
	return 0, fmt.Errorf("severity %q: want info, warning or error", text)
}

// Objects are what is judged. Pods that have ended are left out of account.
// Rules that compare with pods or namespaces are silent where there are none.
type Objects struct {
	Namespaces []*corev1.Namespace
	Nodes      []*corev1.Node
	Pods       []*corev1.Pod
	Services   []*corev1.Service
	DaemonSets []*appsv1.DaemonSet
	Policies   []*networkingv1.NetworkPolicy
}

// Finding is one thing that a rule found.
type Finding struct {
	Code     string   `json:"code"`
	Severity Severity `json:"severity"`
	// Kind, Namespace and Name say in which object. Namespace is empty for
	// objects that have none.
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	// Field is the path of the field, such as spec.ingress[0].from[1]; empty if
	// it is the whole object.
	Field string `json:"field,omitempty"`
	// Message is what is wrong, with the object's own values.
	Message string `json:"message"`
	// Fix is what one can do.
	Fix string `json:"fix"`
}

// Rule describes a rule. Its page is docs/lint/CODE.md.
type Rule struct {
	Code     string
	Severity Severity
	Title    string // one line
}

// Unreadable is the rule for documents that are no objects. Check never finds
// it: who reads the documents does.
const Unreadable = "FA000"

// check is a rule with what looks for it: in one policy, or in the cluster.
type check struct {
	Rule
	policy  func(*view, *policy, report)
	cluster func(*view)
}

// report takes a finding in the object at hand.
type report func(field, message, fix string)

// Rules lists all rules by code.
func Rules() []Rule {
	rules := []Rule{{Unreadable, Error, "a document cannot be read"}}
	for _, c := range checks() {
		rules = append(rules, c.Rule)
	}
	return rules
}

func checks() []check {
	return []check{
		{Rule: Rule{"FA001", Error, "a selector is invalid"}, policy: invalidSelectors},
		{Rule: Rule{"FA002", Error, "a CIDR is invalid"}, policy: invalidCIDRs},
		{Rule: Rule{"FA003", Error, "a port is invalid"}, policy: invalidPorts},
		{Rule: Rule{"FA004", Error, "a protocol is invalid"}, policy: invalidProtocols},
		{Rule: Rule{"FA005", Error, "endPort is below port"}, policy: endPortsBelow},
		{Rule: Rule{"FA006", Error, "except is outside of its CIDR"}, policy: exceptsOutside},
		{Rule: Rule{"FA007", Error, "a peer is empty, or mixes ipBlock with selectors"}, policy: invalidPeers},
		{Rule: Rule{"FA008", Error, "a policy type is invalid"}, policy: invalidTypes},
		{Rule: Rule{"FA101", Error, "egress rules without effect: policyTypes lacks Egress"}, policy: egressWithoutType},
		{Rule: Rule{"FA102", Error, "ingress rules without effect: policyTypes lacks Ingress"}, policy: ingressWithoutType},
		{Rule: Rule{"FA103", Info, "all egress is denied beside ingress rules"}, policy: typeWithoutEgress},
		{Rule: Rule{"FA104", Info, "all ingress is denied beside egress rules"}, policy: typeWithoutIngress},
		{Rule: Rule{"FA201", Warning, "two peers mean OR where AND was likely meant"}, policy: orWhereAnd},
		{Rule: Rule{"FA202", Warning, "one peer means AND where OR was likely meant"}, policy: andWhereOr},
		{Rule: Rule{"FA301", Warning, "a policy selects no pod"}, policy: selectsNoPod},
		{Rule: Rule{"FA302", Warning, "a peer's podSelector matches no pod"}, policy: peerWithoutPods},
		{Rule: Rule{"FA303", Warning, "a namespaceSelector matches no namespace"}, policy: peerWithoutNamespaces},
		{Rule: Rule{"FA304", Warning, "a selector asks for a label that changes"}, policy: volatileLabels},
		{Rule: Rule{"FA401", Warning, "no container has a port of this name"}, policy: unknownPortNames},
		{Rule: Rule{"FA501", Warning, "an ipBlock covers pod addresses"}, policy: blocksOverPods},
		{Rule: Rule{"FA502", Warning, "an ipBlock covers Service addresses"}, policy: blocksOverServices},
		{Rule: Rule{"FA601", Warning, "pods may talk to others, but not to DNS"}, cluster: dnsOverUDP},
		{Rule: Rule{"FA602", Info, "pods may talk to DNS over UDP, but not over TCP"}, cluster: dnsOverTCP},
		{Rule: Rule{"FA701", Warning, "a policy is shadowed by another"}, cluster: shadowed},
		{Rule: Rule{"FA702", Warning, "a policy says the same as another"}, cluster: duplicates},
		{Rule: Rule{"FA801", Info, "a namespace has no default deny of ingress"}, cluster: noDefaultDenyIngress},
		{Rule: Rule{"FA802", Info, "a namespace has no default deny of egress"}, cluster: noDefaultDenyEgress},
		{Rule: Rule{"FA901", Error, "the network solution does not enforce policies"}, cluster: notEnforced},
	}
}

// Check applies every rule. Findings come by namespace, name, field and code.
// What is invalid in a policy is found as such, and no other rule looks at it.
func Check(o *Objects) []Finding {
	v := newView(o)
	for _, c := range checks() {
		v.rule = c.Rule
		if c.cluster != nil {
			c.cluster(v)
			continue
		}
		for _, p := range v.policies {
			c.policy(v, p, v.in("NetworkPolicy", p.Namespace, p.Name))
		}
	}
	slices.SortStableFunc(v.findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Field, b.Field), cmp.Compare(a.Code, b.Code))
	})
	return v.findings
}
