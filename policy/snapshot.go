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
// A class remembers what the latest few revisions meant to it. Who asks about
// many at a time should fork the engine for each.
type Snapshot struct {
	engine   *identity
	slot     uint32 // of the engine, in classes
	shared   *shared
	revision uint32
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
func (s *Snapshot) Revision() uint64 { return uint64(s.revision) }

// Decide says what the policies say about a connection.
func (s *Snapshot) Decide(c *Connection) (d Decision) {
	s.side(&d.Egress, egress, &c.Src, &c.Dst, c)
	s.side(&d.Ingress, ingress, &c.Dst, c.seen(), c)
	d.Verdict = both(d.Egress.Verdict, d.Ingress.Verdict)
	d.Revision = s.Revision()
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
func (s *Snapshot) side(out *Side, direction int, subject, peer *End, c *Connection) {
	switch subject.kind() {
	case flow.EndpointPod:
	case flow.EndpointNode, flow.EndpointOutside:
		out.Verdict, out.Reason = flow.VerdictAllowed, ReasonNotPod
		return
	default:
		out.Reason = ReasonEnd
		return
	}
	class := s.class(subject.Class)
	policies := &class.sides[direction]
	if len(policies.by) == 0 {
		out.Verdict, out.Reason = flow.VerdictAllowed, ReasonNotIsolated
		return
	}
	r := s.ask(class, direction, peer, c)
	out.Verdict, out.Reason, out.Allowed = r.verdict, r.reason, r.allowed
	out.Isolated, out.By = policies.isolated, policies.by
	if out.Verdict != flow.VerdictAllowed {
		out.exempt(&c.Src, &c.Dst, subject, peer)
	}
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
func (s *Snapshot) ask(class *compiledClass, direction int, peer *End, c *Connection) *remembered {
	policies := &class.sides[direction]
	e := edge{
		subject: class.id<<1 | uint64(direction), peer: uint64(peer.kind()),
		traffic: uint32(c.Protocol)<<16 | uint32(c.Port),
	}
	var peerClass *compiledClass
	if peer.kind() == flow.EndpointPod {
		peerClass = s.class(peer.Class)
		e.peer = peerClass.id
	}
	if policies.usesBlocks {
		e.place, e.table = s.table.place(peer.Addr), s.table.version
	}
	if !s.cacheless {
		if known := s.shared.cache.find(&e); known != nil {
			return known
		}
	}
	r := &remembered{edge: e}
	policies.evaluate(r, &question{
		protocol: c.Protocol, port: c.Port, dst: &c.Dst, peer: peer, class: peerClass, place: e.place, table: s.table,
	})
	if !s.cacheless {
		s.shared.cache.add(r)
	}
	return r
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
