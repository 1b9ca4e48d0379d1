package policy

import (
	"cmp"
	"slices"
	"sync/atomic"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/flowaudit/flowaudit/flow"
)

// Snapshot is a cluster's policies, namespaces and pods at one revision. It is
// never changed and may be used concurrently.
//
// An Engine is fastest at its latest snapshot. Who asks an old one for long
// should fork the engine instead of going back and forth.
type Snapshot struct {
	engine   *identity
	slot     uint32 // of the engine, in classes
	shared   *shared
	revision uint64
	// cacheless does not remember decisions.
	cacheless bool

	policies  map[string]*namespacePolicies // by namespace
	groups    []*group                      // by number
	own       map[string]*scope             // groups of the policy's own namespace, by namespace
	scopes    []*scope                      // groups with a namespaceSelector
	table     *blockTable
	inventory map[string]*namespace
}

// identity tells engines apart, and one engine before its groups were numbered
// anew from after that. It is not empty, so that no two have one address.
type identity struct{ _ byte }

// shared is what all revisions of an engine use.
type shared struct {
	classes *Classes
	cache   *cache
	ids     atomic.Uint64
}

// firstID is above all kinds of ends; see edge.
const firstID = 16

func (s *shared) nextID() uint64 { return firstID + s.ids.Add(1) }

// Revision is 1 for the policies that the engine was made with, and one more
// after each change of a policy. Pods and namespaces do not change it: a
// Connection brings its own.
func (s *Snapshot) Revision() uint64 { return s.revision }

// Decide says what the policies say about a connection.
func (s *Snapshot) Decide(c *Connection) Decision {
	d := Decision{
		Egress:   s.side(egress, &c.Src, &c.Dst, &c.Dst, c),
		Ingress:  s.side(ingress, &c.Dst, c.seen(), &c.Dst, c),
		Revision: s.revision,
	}
	d.Verdict = both(d.Egress.Verdict, d.Ingress.Verdict)
	return d
}

// both is the verdict of two sides: each must let the connection pass.
func both(a, b flow.Verdict) flow.Verdict {
	switch {
	case a == flow.VerdictDenied || b == flow.VerdictDenied:
		return flow.VerdictDenied
	case a == flow.VerdictAllowed && b == flow.VerdictAllowed:
		return flow.VerdictAllowed
	}
	return flow.VerdictUnknown
}

// side decides one direction for the end that its policies would select.
func (s *Snapshot) side(direction int, subject, peer, dst *End, c *Connection) Side {
	switch subject.kind() {
	case flow.EndpointPod:
	case flow.EndpointNode, flow.EndpointOutside:
		return Side{Verdict: flow.VerdictAllowed, Reason: ReasonNotPod}
	default:
		return Side{Reason: ReasonEnd}
	}
	class := s.class(subject.Class)
	policies := &class.sides[direction]
	if len(policies.policies) == 0 {
		return Side{Verdict: flow.VerdictAllowed, Reason: ReasonNotIsolated}
	}
	side := *s.ask(class, direction, peer, dst, c)
	if side.Verdict != flow.VerdictAllowed {
		side.exempt(&c.Src, &c.Dst, subject, peer)
	}
	return side
}

// exempt lets a pod reach itself, and its node, whatever the policies say.
func (s *Side) exempt(src, dst, subject, peer *End) {
	same, own := samePod(src, dst), ownNode(subject, peer)
	switch {
	case same.is == yes:
		s.Verdict, s.Reason = flow.VerdictAllowed, ReasonSamePod
	case own.is == yes:
		s.Verdict, s.Reason = flow.VerdictAllowed, ReasonOwnNode
	case s.Verdict == flow.VerdictDenied && same.or(own).is == maybe:
		s.Verdict, s.Reason = flow.VerdictUnknown, ReasonSame
	}
}

// ask remembers what was asked before.
func (s *Snapshot) ask(class *compiledClass, direction int, peer, dst *End, c *Connection) *Side {
	e := edge{
		subject: class.id<<1 | uint64(direction), peer: uint64(peer.kind()),
		traffic: uint32(c.Protocol)<<16 | uint32(c.Port),
	}
	q := question{protocol: c.Protocol, port: c.Port, dst: dst, peer: peer, table: s.table}
	if peer.kind() == flow.EndpointPod {
		q.class = s.class(peer.Class)
		e.peer = q.class.id
	}
	policies := &class.sides[direction]
	if policies.usesBlocks {
		q.place = s.table.place(peer.Addr)
		e.place, e.table = q.place, s.table.version
	}
	if s.cacheless {
		side := policies.evaluate(&q)
		return &side
	}
	if known := s.shared.cache.find(&e); known != nil {
		return known
	}
	side := policies.evaluate(&q)
	return s.shared.cache.add(&e, &side)
}

// Policies lists the policies, sorted by namespace and name.
func (s *Snapshot) Policies() []*networkingv1.NetworkPolicy {
	var out []*networkingv1.NetworkPolicy
	for _, p := range s.compiled() {
		out = append(out, p.object)
	}
	return out
}

// Problems lists what could not be compiled, sorted by policy; in a policy, as
// it was found.
func (s *Snapshot) Problems() []Problem {
	var out []Problem
	for _, p := range s.compiled() {
		out = append(out, p.problems...)
	}
	return out
}

// compiled lists the policies, sorted by namespace and name.
func (s *Snapshot) compiled() []*compiled {
	var out []*compiled
	for _, n := range s.policies {
		out = append(out, n.list...)
	}
	slices.SortFunc(out, func(a, b *compiled) int {
		return cmp.Or(order(a.object.Namespace, b.object.Namespace), order(a.object.Name, b.object.Name))
	})
	return out
}

// Isolating names the policies that isolate the pods of a class for a
// direction, and those of which it is not known whether they do.
func (s *Snapshot) Isolating(c *Class, d flow.Direction) []flow.PolicyRef {
	switch d {
	case flow.DirectionEgress:
		return s.class(c).sides[egress].by
	case flow.DirectionIngress:
		return s.class(c).sides[ingress].by
	}
	return nil
}
