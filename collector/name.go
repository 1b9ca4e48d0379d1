package collector

import (
	"net/netip"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// index names addresses. Package kube's Index is one.
type index interface {
	// Holder says who had an address all the time from one moment to another,
	// and how long after it news may still change the answer.
	Holder(addr netip.Addr, from, to time.Time) (e *flow.Endpoint, news time.Duration)
	Service(addr netip.Addr, port uint16, protocol flow.Protocol, at time.Time) *flow.Service
	// Complete adds to a pod what an agent cannot know.
	Complete(e *flow.Endpoint) *flow.Endpoint
}

// naming is how the flows of a batch are named.
type naming struct {
	index index
	node  string // that reports
	// ahead is how far the node's clock is ahead of this one.
	ahead time.Duration
	// said is what the agent said of each address, before anything was named.
	said []ends
	done map[*flow.Endpoint]*flow.Endpoint // completed

	unnamed, ambiguous uint64    // flows with such an end
	due                time.Time // until then news may change names
}

type ends struct{ src, dst *flow.Endpoint }

// nameFlows names what the agent could not, in place.
func nameFlows(x index, localNode string, flows []flow.Flow) *naming {
	n := newNaming(x, localNode, flows)
	n.name(flows)
	return n
}

func newNaming(x index, localNode string, flows []flow.Flow) *naming {
	n := &naming{index: x, node: localNode, said: make([]ends, len(flows)), done: make(map[*flow.Endpoint]*flow.Endpoint)}
	for i := range flows {
		n.said[i] = ends{flows[i].Source, flows[i].Destination}
	}
	return n
}

// name names the flows by what is known now. It may be called again when more
// is known.
func (n *naming) name(flows []flow.Flow) {
	n.unnamed, n.ambiguous, n.due = 0, 0, time.Time{}
	for i := range flows {
		f := &flows[i]
		from, to := f.Named()
		from, to = from.Add(-n.ahead), to.Add(-n.ahead)
		f.Source = n.better(n.said[i].src, f.Src, from, to)
		f.Destination = n.better(n.said[i].dst, f.Dst, from, to)
		if f.Direction == flow.DirectionUnknown {
			f.Direction = direction(n.node, f.Source, f.Destination)
		}
		if s := f.Service; s != nil && s.Name == "" {
			if named := n.index.Service(s.Addr, s.Port, f.Protocol, from); named != nil {
				f.Service = named
			}
		}
		if nameless(f.Source) || nameless(f.Destination) {
			n.unnamed++
		}
		if ambiguous(f.Source) || ambiguous(f.Destination) {
			n.ambiguous++
		}
	}
}

// better keeps what the agent said, who looked at the moment of the packet,
// unless it did not know. The index knows more of a pod that both know.
func (n *naming) better(said *flow.Endpoint, a netip.Addr, from, to time.Time) *flow.Endpoint {
	known := said != nil && said.Kind != flow.EndpointUnknown && said.Kind != flow.EndpointOutside
	if known && said.Kind != flow.EndpointPod {
		return said
	}
	found, news := n.index.Holder(a, from, to)
	switch {
	case known && found != nil && found.Kind == flow.EndpointPod && found.Namespace == said.Namespace && found.Pod == said.Pod:
		return found
	case known:
		return n.complete(said)
	}
	if due := to.Add(news); news > 0 && due.After(n.due) {
		n.due = due
	}
	if nameless(found) {
		return said
	}
	return found
}

func (n *naming) complete(e *flow.Endpoint) *flow.Endpoint {
	c, ok := n.done[e]
	if !ok {
		c = n.index.Complete(e)
		n.done[e] = c
	}
	return c
}

func direction(node string, src, dst *flow.Endpoint) flow.Direction {
	switch {
	case src != nil && src.Kind == flow.EndpointPod && src.Node == node:
		return flow.DirectionEgress
	case dst != nil && dst.Kind == flow.EndpointPod && dst.Node == node:
		return flow.DirectionIngress
	}
	return flow.DirectionUnknown
}

func nameless(e *flow.Endpoint) bool { return e == nil || e.Kind == flow.EndpointUnknown }

func ambiguous(e *flow.Endpoint) bool { return e != nil && e.Kind == flow.EndpointAmbiguous }
