package history

import (
	"net/netip"
	"time"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy"
)

// Words for what edges do not tell: they equal no pod's and no node's name.
const (
	onePod, otherPod   = "?1", "?2"
	podsNode, nodeless = "?1", "?2"
)

// Connection describes an edge to the policies, with the labels and ports of
// its time.
func (h *History) Connection(e *Edge) policy.Connection {
	c := policy.Connection{
		Src: h.end(&e.Source, e.From.Identity, e.Last, onePod), Dst: h.end(&e.Destination, e.To.Identity, e.Last, otherPod),
		Protocol: e.Protocol, Port: e.Port,
	}
	switch e.Exempt {
	case flow.ExemptSamePod:
		c.Dst.Pod = c.Src.Pod
	case flow.ExemptOwnNode:
		if c.Src.Kind == flow.EndpointPod {
			c.Src.Node = c.Dst.Node
		} else {
			c.Dst.Node = c.Src.Node
		}
	case flow.ExemptNone:
	}
	if e.Seen.IsValid() {
		c.Seen = policy.End{Kind: flow.EndpointOutside, Addr: e.Seen}
		if node := h.nodes[e.Seen]; node != "" {
			c.Seen.Kind, c.Seen.Node = flow.EndpointNode, node
		}
	}
	return c
}

func (h *History) end(e *flow.EdgeEnd, i *Identity, at time.Time, pod string) policy.End {
	if i != nil {
		return i.End(at, pod)
	}
	out := policy.End{Kind: e.Kind, Addr: e.Prefix.Addr(), Node: e.Node}
	switch e.Kind {
	case flow.EndpointNode:
		if out.Node == "" {
			out.Node = nodeless
		}
	case flow.EndpointUnknown:
		if HostLocal(out.Addr) {
			out.Kind = flow.EndpointOutside
		}
	case flow.EndpointPod, flow.EndpointAmbiguous:
		out.Kind = flow.EndpointAmbiguous // a pod without an identity
	case flow.EndpointService, flow.EndpointOutside:
	default:
		out.Kind = flow.EndpointOutside // addresses of other known kinds are nobody's whom policies select
	}
	return out
}

// End returns pods of the identity as an end of a connection. Ends with two
// different names are two pods.
func (i *Identity) End(at time.Time, pod string) policy.End {
	return policy.End{Kind: flow.EndpointPod, Class: i.at(at).class, Pod: pod, Node: podsNode}
}

// Join finds the ends of an edge that came later, by what is known at the end
// of the history. Its workloads are left out.
func (h *History) Join(e *flow.Edge) *Edge {
	out := &Edge{Edge: e}
	for _, end := range []struct {
		*flow.EdgeEnd
		labels map[string]string
		into   *End
	}{{&e.Source, e.SourceLabels, &out.From}, {&e.Destination, e.DestinationLabels, &out.To}} {
		if end.Kind != flow.EndpointPod {
			continue
		}
		i := h.identities[keyOf(end.EdgeEnd, end.labels)]
		if i == nil {
			i = &Identity{ID: end.Identity, Namespace: end.Namespace, Labels: end.labels}
			if n := h.Namespace(end.Namespace); n != nil && n.Known {
				i.NamespaceLabels = n.Labels
			}
			i.classify(h.classes)
		}
		end.into.Identity = i
	}
	return out
}

// HostLocal reports addresses that a node or its cloud answers itself, such as
// the metadata service and the node-local DNS cache: no pod and nobody outside
// has them.
func HostLocal(a netip.Addr) bool {
	return a.IsLinkLocalUnicast() || Metadata(a)
}

// Metadata reports the addresses of clouds' metadata services.
func Metadata(a netip.Addr) bool {
	return a == netip.AddrFrom4([4]byte{169, 254, 169, 254}) || a == netip.AddrFrom16([16]byte{0: 0xfd, 2: 0x0e, 3: 0xc2, 14: 0x02, 15: 0x54})
}
