package flowauditv1

import (
	"fmt"
	"net/netip"

	"github.com/flowaudit/flowaudit/flow"
)

// FromEdges turns edges into a message. Ends that are the same share an entry.
func FromEdges(edges []*flow.Edge) *EdgesResponse {
	out := &EdgesResponse{Edges: make([]*Edge, 0, len(edges))}
	ends := make(map[flow.EdgeEnd]uint32)
	end := func(e *flow.EdgeEnd, labels map[string]string) uint32 {
		n := ends[*e]
		if n == 0 {
			out.Ends = append(out.Ends, fromEdgeEnd(e, labels))
			n = uint32(len(out.Ends))
			ends[*e] = n
		}
		return n
	}
	for _, e := range edges {
		out.Edges = append(out.Edges, &Edge{
			Source: end(&e.Source, e.SourceLabels), Destination: end(&e.Destination, e.DestinationLabels), Seen: addressBytes(e.Seen),
			Protocol: uint32(e.Protocol), Port: uint32(e.Port), Direction: Direction(e.Direction), Verdict: Verdict(e.Verdict), Expected: Verdict(e.Expected),
			Assessment: Assessment(e.Assessment), Caveat: Caveat(e.Caveat), Exempt: Exemption(e.Exempt),
			First: millis(e.First), Last: millis(e.Last), Hours: uint32(e.Hours), Connections: e.Connections, Sent: e.Sent, Received: e.Received, Cluster: e.Cluster,
		})
	}
	return out
}

func addressBytes(a netip.Addr) []byte {
	if !a.IsValid() {
		return nil
	}
	return a.AsSlice()
}

func fromEdgeEnd(e *flow.EdgeEnd, labels map[string]string) *EdgeEnd {
	out := &EdgeEnd{
		Kind: EndpointKind(e.Kind), Namespace: e.Namespace, WorkloadKind: e.Workload.Kind, WorkloadName: e.Workload.Name,
		Node: e.Node, Identity: e.Identity, Labels: labels,
	}
	if e.Prefix.IsValid() {
		out.Address, out.Bits = e.Prefix.Addr().AsSlice(), uint32(e.Prefix.Bits())
	}
	return out
}

// ToEdges reads edges back. The error names the field that cannot be used.
func (x *EdgesResponse) ToEdges() ([]*flow.Edge, error) {
	ends := make([]flow.EdgeEnd, len(x.GetEnds())+1)
	labels := make([]map[string]string, len(ends))
	for i, e := range x.GetEnds() {
		var err error
		if ends[i+1], err = toEdgeEnd(e); err != nil {
			return nil, err
		}
		labels[i+1] = e.GetLabels()
	}
	out := make([]*flow.Edge, 0, len(x.GetEdges()))
	for i, m := range x.GetEdges() {
		if err := m.check(i, len(ends)); err != nil {
			return nil, err
		}
		e := &flow.Edge{
			EdgeKey: flow.EdgeKey{
				Cluster: m.Cluster, Source: ends[m.Source], Destination: ends[m.Destination], Protocol: flow.Protocol(m.Protocol), Port: uint16(m.Port),
				Direction: flow.Direction(m.Direction), Verdict: flow.Verdict(m.Verdict), Expected: flow.Verdict(m.Expected),
				Assessment: flow.Assessment(m.Assessment), Caveat: flow.Caveat(m.Caveat), Exempt: flow.Exemption(m.Exempt),
			},
			First: fromMillis(m.First), Last: fromMillis(m.Last), Hours: int(m.Hours), Connections: m.Connections, Sent: m.Sent, Received: m.Received,
			SourceLabels: labels[m.Source], DestinationLabels: labels[m.Destination],
		}
		if len(m.Seen) > 0 {
			a, ok := netip.AddrFromSlice(m.Seen)
			if !ok {
				return nil, &FieldError{i, "seen", fmt.Sprintf("%d bytes are no address", len(m.Seen))}
			}
			e.Seen = a.Unmap()
		}
		out = append(out, e)
	}
	return out, nil
}

// check finds values that cannot be.
func (x *Edge) check(i, ends int) error {
	switch {
	case x.Source == 0 || int(x.Source) >= ends:
		return &FieldError{i, "source", fmt.Sprintf("no end %d", x.Source)}
	case x.Destination == 0 || int(x.Destination) >= ends:
		return &FieldError{i, "destination", fmt.Sprintf("no end %d", x.Destination)}
	case x.Protocol > 255:
		return &FieldError{i, "protocol", fmt.Sprintf("%d is no IP protocol", x.Protocol)}
	case x.Port > 65535:
		return &FieldError{i, "port", fmt.Sprintf("%d is no port", x.Port)}
	case x.First < minTime || x.Last < x.First || x.Last > maxTime:
		return &FieldError{i, "last", fmt.Sprintf("%d to %d ms is no time range", x.First, x.Last)}
	}
	for _, e := range [...]struct {
		field       string
		value, last int32
	}{
		{"direction", int32(x.Direction), int32(Direction_DIRECTION_INGRESS)},
		{"verdict", int32(x.Verdict), int32(Verdict_VERDICT_UNANSWERED)},
		{"expected", int32(x.Expected), int32(Verdict_VERDICT_UNANSWERED)},
		{"assessment", int32(x.Assessment), int32(Assessment_ASSESSMENT_UNANSWERED)},
		{"caveat", int32(x.Caveat), int32(Caveat_CAVEAT_NO_ENDPOINT)},
		{"exempt", int32(x.Exempt), int32(Exemption_EXEMPTION_OWN_NODE)},
	} {
		if e.value < 0 || e.value > e.last {
			return &FieldError{i, e.field, fmt.Sprintf("unknown value %d", e.value)}
		}
	}
	return nil
}

func toEdgeEnd(x *EdgeEnd) (flow.EdgeEnd, error) {
	out := flow.EdgeEnd{
		Kind: flow.EndpointKind(x.GetKind()), Namespace: x.GetNamespace(), Workload: flow.Workload{Kind: x.GetWorkloadKind(), Name: x.GetWorkloadName()},
		Node: x.GetNode(), Identity: x.GetIdentity(),
	}
	if len(x.GetAddress()) == 0 {
		return out, nil
	}
	a, ok := netip.AddrFromSlice(x.GetAddress())
	if !ok || int(x.GetBits()) > a.BitLen() {
		return out, &FieldError{-1, "address", fmt.Sprintf("%d bytes with %d bits are no prefix", len(x.GetAddress()), x.GetBits())}
	}
	out.Prefix = netip.PrefixFrom(a, int(x.GetBits()))
	return out, nil
}

// FromChange turns a change into its message.
func FromChange(c flow.Change) *Change {
	return &Change{
		Time: millis(c.Time), Cluster: c.Cluster, Kind: ChangeKind(c.Kind), Namespace: c.Namespace, Name: c.Name, Author: c.Author,
		Deleted: c.Deleted, Object: c.Object,
	}
}

// ToChange reads a change back.
func ToChange(x *Change) (flow.Change, error) {
	if x.GetKind() < 0 || x.GetKind() > ChangeKind_CHANGE_KIND_IDENTITY {
		return flow.Change{}, &FieldError{-1, "kind", fmt.Sprintf("unknown value %d", x.GetKind())}
	}
	return flow.Change{
		Time: fromMillis(x.GetTime()), Cluster: x.GetCluster(), Kind: flow.ChangeKind(x.GetKind()), Namespace: x.GetNamespace(), Name: x.GetName(),
		Author: x.GetAuthor(), Deleted: x.GetDeleted(), Object: x.GetObject(),
	}, nil
}
