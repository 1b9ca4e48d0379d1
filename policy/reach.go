package policy

import (
	"slices"

	"github.com/flowaudit/flowaudit/flow"
)

// PortRange is a range of ports with one verdict.
type PortRange struct {
	Protocol    flow.Protocol
	First, Last uint16
	Verdict     flow.Verdict
}

// Reach says which ports of a destination a source may connect to: for TCP,
// UDP and SCTP all ports from 1 to 65535 in ranges, in order, with the verdict
// that Decide gives to each port in them. Neighbours differ in their verdict.
func (s *Snapshot) Reach(src, dst *End) []PortRange {
	var out []PortRange
	for _, protocol := range [...]flow.Protocol{flow.TCP, flow.UDP, flow.SCTP} {
		begins := s.boundaries(protocol, src, dst)
		for i, first := range begins {
			last := uint16(65535)
			if i+1 < len(begins) {
				last = begins[i+1] - 1
			}
			verdict := s.decideOnce(&Connection{Src: *src, Dst: *dst, Protocol: protocol, Port: first})
			if n := len(out); n > 0 && out[n-1].Protocol == protocol && out[n-1].Verdict == verdict {
				out[n-1].Last = last
				continue
			}
			out = append(out, PortRange{protocol, first, last, verdict})
		}
	}
	return out
}

// decideOnce is Decide's verdict of what will hardly be asked again.
func (s *Snapshot) decideOnce(c *Connection) flow.Verdict {
	once := *s
	once.cacheless = true
	d := once.Decide(c)
	return d.Verdict
}

// boundaries are the ports at which a rule of either side begins or ends.
func (s *Snapshot) boundaries(protocol flow.Protocol, src, dst *End) []uint16 {
	begins := []uint16{1}
	cut := func(first, last uint16) {
		begins = append(begins, first)
		if last < 65535 {
			begins = append(begins, last+1)
		}
	}
	named := false
	for d, subject := range [2]*End{egress: src, ingress: dst} {
		if subject.kind() != flow.EndpointPod {
			continue
		}
		for _, p := range s.class(subject.Class).sides[d].selected() {
			for _, r := range p.rules {
				for i := range r.ports {
					p := &r.ports[i]
					named = named || p.name != ""
					if p.protocol == protocol && p.first > 0 {
						cut(p.first, p.last)
					}
				}
			}
		}
	}
	if named && dst.kind() == flow.EndpointPod {
		for _, p := range dst.Class.ports {
			if p.Protocol == protocol && p.Port > 0 {
				cut(p.Port, p.Port)
			}
		}
	}
	slices.Sort(begins)
	return slices.Compact(begins)
}
