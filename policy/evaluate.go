package policy

import (
	"slices"

	"github.com/flowaudit/flowaudit/flow"
)

// question is what a rule is asked.
type question struct {
	protocol flow.Protocol
	port     uint16
	dst      *End           // where port names are resolved
	peer     *End           // the other end than the one that the policy selects
	class    *compiledClass // the peer's, if it is a pod
	place    place          // of the peer's address, if the rules have ipBlocks
	table    *blockTable
}

// match reports whether the rule allows what is asked: ports and peers must.
func (r *rule) match(q *question) answer {
	ports := r.matchPorts(q)
	if ports.is == no {
		return ports
	}
	return ports.and(r.matchPeers(q))
}

func (r *rule) matchPorts(q *question) answer {
	if len(r.ports) == 0 {
		return answer{is: yes}
	}
	var any answer
	for i := range r.ports {
		if any = any.or(r.ports[i].match(q)); any.is == yes {
			break
		}
	}
	return any
}

func (r *rule) matchPeers(q *question) answer {
	if r.everyone || r.everyAddress {
		return answer{is: yes}
	}
	any := r.matchGroups(q)
	if any.is == yes {
		return any
	}
	if any = any.or(r.matchBlocks(q)); any.is == no && r.invalidPeer {
		return doubt(ReasonInvalid)
	}
	return any
}

func (r *rule) matchGroups(q *question) answer {
	var any answer
	switch q.peer.kind() {
	case flow.EndpointPod:
		for _, g := range r.groups {
			if any = any.or(q.class.members.of(g)); any.is == yes {
				break
			}
		}
	case flow.EndpointNode, flow.EndpointOutside: // no pods
	default:
		if len(r.groups) > 0 {
			return doubt(ReasonEnd)
		}
	}
	return any
}

func (r *rule) matchBlocks(q *question) answer {
	switch {
	case len(r.blocks) == 0:
		return answer{}
	case q.peer.kind() == flow.EndpointService:
		return doubt(ReasonEnd) // before or after translation: the API leaves it open
	case q.place == placeUnknown:
		return doubt(ReasonAddress)
	}
	for _, b := range r.blocks {
		if q.table.blocks[b].holds(q.place) {
			return answer{is: yes}
		}
	}
	return answer{}
}

// evaluate decides a side of a pod that a policy selects, or perhaps does.
func (s *selection) evaluate(out *outcome, q *question) {
	if !q.protocol.HasPorts() {
		out.reason = ReasonProtocol
		return
	}
	var certain, doubtful answer // whether such a policy allows it
	everyDoubtful := true        // whether all of them do
	policies := s.selected()
	for i := range policies {
		p := &policies[i]
		var allows answer
		for _, r := range p.rules {
			a := r.match(q)
			if a.is == yes && (p.selects.is == yes || !s.isolated) {
				out.allow(r)
			}
			allows = allows.or(a)
		}
		if p.selects.is == yes {
			certain = certain.or(allows)
			continue
		}
		everyDoubtful = everyDoubtful && allows.is == yes
		if allows.is != no {
			doubtful = doubtful.or(doubt(first(allows.why, p.selects.why)))
		}
	}
	switch {
	case s.isolated:
		out.decide(certain.or(doubtful))
	case everyDoubtful:
		out.decide(answer{is: yes})
	default:
		out.decide(doubt(ReasonInvalid))
	}
}

// allow adds a rule. One alone is a slice that all share.
func (o *outcome) allow(by *rule) {
	if o.allowed == nil {
		o.allowed = &by.alone
		return
	}
	all := append(slices.Clone(*o.allowed), by.alone...)
	o.allowed = &all
}

// decide gives the side its verdict.
func (o *outcome) decide(allowed answer) {
	switch allowed.is {
	case yes:
		o.verdict, o.reason = flow.VerdictAllowed, ReasonRule
	case no:
		o.verdict, o.reason = flow.VerdictDenied, ReasonNoRule
	default:
		o.verdict, o.reason, o.allowed = flow.VerdictUnknown, allowed.why, nil
	}
}

// samePod reports whether both ends are one pod. A pod has one address of each
// IP version, so two addresses tell most.
func samePod(a, b *End) answer {
	if a.kind() != flow.EndpointPod || b.kind() != flow.EndpointPod {
		return answer{}
	}
	x, y := a.Addr.Unmap(), b.Addr.Unmap()
	if x.IsValid() && y.IsValid() && x.Is4() == y.Is4() {
		return answer{is: isTrue(x == y)}
	}
	if a.Class != b.Class && a.namespace() != b.namespace() {
		return answer{}
	}
	if a.Pod != "" && b.Pod != "" {
		return answer{is: isTrue(a.Pod == b.Pod)}
	}
	if a.Class != b.Class {
		return answer{}
	}
	return doubt(ReasonSame)
}

// ownNode reports whether one end is the node that runs the other.
func ownNode(a, b *End) answer {
	pod, node := a, b
	if pod.kind() != flow.EndpointPod {
		pod, node = b, a
	}
	if pod.kind() != flow.EndpointPod || node.kind() != flow.EndpointNode {
		return answer{}
	}
	if pod.Node == "" || node.Node == "" {
		return doubt(ReasonSame)
	}
	return answer{is: isTrue(pod.Node == node.Node)}
}
