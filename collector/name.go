package collector

import (
	"net/netip"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// index names addresses. Package kube's Index is one.
type index interface {
	Endpoint(addr netip.Addr, at time.Time) *flow.Endpoint
	Service(addr netip.Addr, port uint16, protocol flow.Protocol, at time.Time) *flow.Service
}

// nameFlows names what the agent could not, in place, and returns how many
// flows still have an end without a name.
func nameFlows(x index, localNode string, flows []flow.Flow) (unnamed uint64) {
	for i := range flows {
		f := &flows[i]
		f.Source = better(f.Source, f.Src, f.Start, x)
		f.Destination = better(f.Destination, f.Dst, f.Start, x)
		if f.Direction == flow.DirectionUnknown {
			f.Direction = direction(localNode, f.Source, f.Destination)
		}
		if s := f.Service; s != nil && s.Name == "" {
			if named := x.Service(s.Addr, s.Port, f.Protocol, f.Start); named != nil {
				f.Service = named
			}
		}
		if nameless(f.Source) || nameless(f.Destination) {
			unnamed++
		}
	}
	return unnamed
}

// better keeps what the agent said, who looked at the moment of the packet,
// unless it did not know.
func better(said *flow.Endpoint, a netip.Addr, at time.Time, x index) *flow.Endpoint {
	if said != nil && said.Kind != flow.EndpointUnknown && said.Kind != flow.EndpointOutside {
		return said
	}
	found := x.Endpoint(a, at)
	if found == nil || found.Kind == flow.EndpointUnknown {
		return said
	}
	return found
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
