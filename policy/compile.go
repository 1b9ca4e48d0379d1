package policy

import (
	"fmt"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/flowaudit/flowaudit/flow"
)

// The two directions, as indexes.
const (
	egress = iota
	ingress
)

var directionNames = [2]string{"egress", "ingress"}

// compiled is a policy in the form that decides. It is never changed.
type compiled struct {
	object   *networkingv1.NetworkPolicy
	refs     [2]flow.PolicyRef // the policy, as it isolates each direction
	pods     *selector
	isolates [2]tri // whether the policy is about a direction at all
	rules    [2][]*rule
	problems []Problem
}

// valid is yes, or maybe with a policy that no API server would have taken:
// whether it is in force is not known.
func (p *compiled) valid() answer {
	if len(p.problems) > 0 {
		return doubt(ReasonInvalid)
	}
	return answer{is: yes}
}

// rule is one item of ingress or egress.
type rule struct {
	alone    []flow.PolicyRef // names the rule; its capacity is 1
	everyone bool             // no peers: not restricted by them
	peers    []peer
	ports    []port // none: not restricted by them

	// The same peers for the hot path.
	groups       []uint32
	blocks       []uint32
	everyAddress bool // the blocks hold every address of both IP versions
	invalidPeer  bool // one that perhaps matches anything
}

// peer is one item of from or to: a group of pods or a block of addresses, or
// neither if it is not valid.
type peer struct {
	field string
	group *group
	block *block
}

// interner numbers equal groups and blocks alike.
type interner interface {
	group(g *group) uint32
	block(b *block) uint32
}

// compile compiles a policy. It never fails: what cannot be understood becomes
// a Problem, and perhaps matches.
func compile(object *networkingv1.NetworkPolicy, in interner) *compiled {
	c := &compiler{in: in, policy: &compiled{object: object}}
	for d := range c.policy.refs {
		c.policy.refs[d] = flow.PolicyRef{Kind: "NetworkPolicy", Namespace: object.Namespace, Name: object.Name, Side: directionNames[d]}
	}
	spec := field.NewPath("spec")
	c.policy.pods = c.selector(&object.Spec.PodSelector, spec.Child("podSelector"))
	c.types(&object.Spec, spec.Child("policyTypes"))
	for i := range object.Spec.Ingress {
		r := &object.Spec.Ingress[i]
		c.rule(ingress, spec.Child("ingress").Index(i), i, "from", r.From, r.Ports)
	}
	for i := range object.Spec.Egress {
		r := &object.Spec.Egress[i]
		c.rule(egress, spec.Child("egress").Index(i), i, "to", r.To, r.Ports)
	}
	return c.policy
}

type compiler struct {
	in     interner
	policy *compiled
}

func (c *compiler) problem(at *field.Path, format string, args ...any) {
	c.policy.problems = append(c.policy.problems, Problem{
		Namespace: c.policy.object.Namespace, Policy: c.policy.object.Name, Field: at.String(), Message: fmt.Sprintf(format, args...),
	})
}

// types says which directions the policy is about. Without policyTypes it is
// ingress, and egress if there are egress rules.
func (c *compiler) types(spec *networkingv1.NetworkPolicySpec, at *field.Path) {
	if len(spec.PolicyTypes) == 0 {
		c.policy.isolates[ingress] = yes
		c.policy.isolates[egress] = isTrue(len(spec.Egress) > 0)
		return
	}
	if len(spec.PolicyTypes) > 2 {
		c.problem(at, "has %d items: want Ingress, Egress or both", len(spec.PolicyTypes))
	}
	for i, t := range spec.PolicyTypes {
		switch t {
		case networkingv1.PolicyTypeIngress:
			c.policy.isolates[ingress] = yes
		case networkingv1.PolicyTypeEgress:
			c.policy.isolates[egress] = yes
		default:
			c.problem(at.Index(i), "%q is no policy type: want Ingress or Egress", t)
			for d, now := range c.policy.isolates {
				c.policy.isolates[d] = max(now, maybe)
			}
		}
	}
}

func (c *compiler) selector(s *metav1.LabelSelector, at *field.Path) *selector {
	var problems field.ErrorList
	if len(s.MatchLabels)+len(s.MatchExpressions) > 0 {
		problems = validation.ValidateLabelSelector(s, validation.LabelSelectorValidationOptions{}, at)
	}
	// matchLabels is a map: its problems come in any order.
	slices.SortFunc(problems, func(a, b *field.Error) int { return order(a.Error(), b.Error()) })
	for _, p := range problems {
		c.policy.problems = append(c.policy.problems, Problem{
			Namespace: c.policy.object.Namespace, Policy: c.policy.object.Name, Field: p.Field, Message: p.ErrorBody(),
		})
	}
	return newSelector(s, len(problems) == 0)
}

func (c *compiler) rule(direction int, at *field.Path, index int, peersName string, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) {
	ref := c.policy.refs[direction]
	ref.Rule = fmt.Sprintf("%s[%d]", directionNames[direction], index)
	r := &rule{alone: []flow.PolicyRef{ref}, everyone: len(peers) == 0}
	for i := range peers {
		r.peers = append(r.peers, c.peer(&peers[i], at.Child(peersName).Index(i)))
	}
	for i := range ports {
		r.ports = append(r.ports, c.port(&ports[i], at.Child("ports").Index(i)))
	}
	c.flatten(r)
	c.policy.rules[direction] = append(c.policy.rules[direction], r)
}

func (c *compiler) peer(from *networkingv1.NetworkPolicyPeer, at *field.Path) peer {
	p := peer{field: at.String()}
	selects := from.PodSelector != nil || from.NamespaceSelector != nil
	switch {
	case from.IPBlock != nil && selects:
		c.problem(at, "has an ipBlock and a selector: make them two items")
	case from.IPBlock != nil:
		p.block = c.block(from.IPBlock, at.Child("ipBlock"))
	case selects:
		p.group = c.group(from, at)
	default:
		c.problem(at, "is empty: want podSelector, namespaceSelector or ipBlock; an empty selector ({}) selects all")
	}
	return p
}

func (c *compiler) group(from *networkingv1.NetworkPolicyPeer, at *field.Path) *group {
	g := &group{namespace: c.policy.object.Namespace, pods: &selector{}}
	if from.NamespaceSelector != nil {
		g.namespaces = c.selector(from.NamespaceSelector, at.Child("namespaceSelector"))
	}
	if from.PodSelector != nil {
		g.pods = c.selector(from.PodSelector, at.Child("podSelector"))
	}
	return g
}

// block compiles an ipBlock; nil if it is not valid.
func (c *compiler) block(from *networkingv1.IPBlock, at *field.Path) *block {
	cidr, err := parsePrefix(from.CIDR)
	if err != nil {
		c.problem(at.Child("cidr"), "%v", err)
		return nil
	}
	b, valid := &block{cidr: cidr}, true
	for i, text := range from.Except {
		except, err := parsePrefix(text)
		switch {
		case err != nil:
			c.problem(at.Child("except").Index(i), "%v", err)
			valid = false
		case !strictlyWithin(except, cidr):
			c.problem(at.Child("except").Index(i), "%q is not a part of %s: want a smaller network inside of it", text, from.CIDR)
			valid = false
		default:
			b.except = append(b.except, except)
		}
	}
	if !valid {
		return nil
	}
	slices.SortFunc(b.except, comparePrefixes)
	b.except = slices.Compact(b.except)
	return b
}

// flatten gives the rule its hot form.
func (c *compiler) flatten(r *rule) {
	var all4, all6 bool
	for i := range r.peers {
		switch p := &r.peers[i]; {
		case p.group != nil:
			r.groups = append(r.groups, c.in.group(p.group))
		case p.block != nil:
			r.blocks = append(r.blocks, c.in.block(p.block))
			if p.block.cidr.Bits() == 0 && len(p.block.except) == 0 {
				all4 = all4 || p.block.cidr.Addr().Is4()
				all6 = all6 || p.block.cidr.Addr().Is6()
			}
		default:
			r.invalidPeer = true
		}
	}
	r.everyAddress = all4 && all6
}
