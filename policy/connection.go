package policy

import (
	"net/netip"

	"github.com/flowaudit/flowaudit/flow"
)

// Connection is one attempt to connect, as policies judge it. Replies follow
// their connection, so they are never asked about.
type Connection struct {
	Src, Dst End
	// Seen is the source as the destination's node sees it, where SNAT changed
	// it on the way: ingress is judged by it. The zero End means Src.
	Seen     End
	Protocol flow.Protocol
	// Port is the destination's, after DNAT. 0 means that it is not known, as
	// of a later fragment; rules that name ports are then in doubt.
	Port uint16
}

// End is one end of a connection. The zero End is one of which nothing is known.
//
// What each kind means to a policy:
//   - pod: policies can select it; peers match by labels, and by its address.
//   - node: the node and its hostNetwork pods, which cannot be told from it. No
//     policy selects it; only ipBlocks match it. A node always reaches the pods
//     that it runs, and is reached by them.
//   - outside, apiserver: no policy selects it; only ipBlocks match it.
//   - service: a virtual address that nothing translated. Which backend stands
//     behind it, and whether ipBlocks see it, is not known.
//   - unknown and ambiguous: some end, perhaps a pod. Only ipBlocks, and rules
//     for everyone, can be decided.
type End struct {
	Kind  flow.EndpointKind
	Class *Class // of a pod; nil for every other kind
	// Pod is a pod's name. It tells a pod from its siblings: a pod always
	// reaches itself. Callers without names may use any two different words.
	Pod string
	// Node is the node that runs the pod, or the node itself; "" if unknown.
	Node string
	// Addr is what ipBlocks match, of pods too; the zero Addr if unknown.
	Addr netip.Addr
}

// seen is the source that ingress is judged by.
func (c *Connection) seen() *End {
	if c.Seen == (End{}) {
		return &c.Src
	}
	return &c.Seen
}

// namespace is the namespace of a pod, "" of anything else.
func (e *End) namespace() string {
	if e.Class == nil {
		return ""
	}
	return e.Class.Namespace()
}

// kind is the kind that counts: a pod without a class is an unknown end.
func (e *End) kind() flow.EndpointKind {
	switch {
	case e.Kind == flow.EndpointPod && e.Class == nil:
		return flow.EndpointUnknown
	case e.Kind == flow.EndpointAPIServer:
		return flow.EndpointOutside
	}
	return e.Kind
}
