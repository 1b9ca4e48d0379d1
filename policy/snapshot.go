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
	src, dst := s.begin(&d.Egress, egress, &c.Src), s.begin(&d.Ingress, ingress, &c.Dst)
	seen := c.seen()
	if seen == &c.Src {
		s.ask(&d, src, dst, &c.Src, c)
	} else {
		s.ask(&d, src, side{class: dst.class}, &c.Src, c)
		s.ask(&d, side{class: s.begin(&Side{}, ingress, seen).class}, dst, seen, c)
	}
	if d.Egress.Verdict != flow.VerdictAllowed && src.asked != nil {
		d.Egress.exempt(&c.Src, &c.Dst, &c.Src, &c.Dst)
	}
	if d.Ingress.Verdict != flow.VerdictAllowed && dst.asked != nil {
		d.Ingress.exempt(&c.Src, &c.Dst, &c.Dst, seen)
	}
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

// side is one end of a connection that is decided about.
type side struct {
	class *compiledClass // of a pod
	asked *selection     // the policies that decide; nil if none has a say
}

// begin decides one direction where no policy has a say.
func (s *Snapshot) begin(out *Side, direction int, subject *End) side {
	switch subject.kind() {
	case flow.EndpointPod:
	case flow.EndpointNode, flow.EndpointOutside:
		out.Verdict, out.Reason = flow.VerdictAllowed, ReasonNotPod
		return side{}
	default:
		out.Reason = ReasonEnd
		return side{}
	}
	class := s.class(subject.Class)
	policies := &class.sides[direction]
	if len(policies.by) == 0 {
		out.Verdict, out.Reason = flow.VerdictAllowed, ReasonNotIsolated
		return side{class: class}
	}
	out.Isolated, out.By = policies.isolated, policies.by
	return side{class, policies}
}

// id is what an edge calls the side.
func (d *side) id(e *End) uint64 {
	if d.class != nil {
		return d.class.id
	}
	return uint64(e.kind())
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

// The sides that an edge asks about.
const (
	asksEgress  = 1 << 24
	asksIngress = 1 << 25
)

// ask decides the sides that policies have a say in, and remembers what was
// asked before.
func (s *Snapshot) ask(d *Decision, src, dst side, from *End, c *Connection) {
	e := edge{src: src.id(from), dst: dst.id(&c.Dst), traffic: uint32(c.Protocol)<<16 | uint32(c.Port)}
	if src.asked != nil {
		e.traffic |= asksEgress
		if src.asked.usesBlocks {
			e.dstPlace, e.table = s.table.place(c.Dst.Addr), s.table.version
		}
	}
	if dst.asked != nil {
		e.traffic |= asksIngress
		if dst.asked.usesBlocks {
			e.srcPlace, e.table = s.table.place(from.Addr), s.table.version
		}
	}
	if e.traffic < asksEgress {
		return
	}
	r := s.find(&e, src, dst, from, c)
	if src.asked != nil {
		d.Egress.take(&r.sides[egress])
	}
	if dst.asked != nil {
		d.Ingress.take(&r.sides[ingress])
	}
}

func (s *Side) take(o *outcome) {
	s.Verdict, s.Reason = o.verdict, o.reason
	if o.allowed != nil {
		s.Allowed = *o.allowed
	}
}

// find remembers an edge, or decides it.
func (s *Snapshot) find(e *edge, src, dst side, from *End, c *Connection) *remembered {
	if !s.cacheless {
		if known := s.shared.cache.find(e); known != nil {
			return known
		}
	}
	r := &remembered{edge: *e}
	q := question{protocol: c.Protocol, port: c.Port, dst: &c.Dst, table: s.table}
	if src.asked != nil {
		q.peer, q.class, q.place = &c.Dst, dst.class, e.dstPlace
		src.asked.evaluate(&r.sides[egress], &q)
	}
	if dst.asked != nil {
		q.peer, q.class, q.place = from, src.class, e.srcPlace
		dst.asked.evaluate(&r.sides[ingress], &q)
	}
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
