package flowauditv1

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// FromFlows puts flows into columns. Endpoints and services are told apart by
// pointer: flows that share one share its entry on the wire.
func FromFlows(flows []flow.Flow) *Flows {
	n := len(flows)
	t := newTables(n)
	out := t.out
	var last int64
	for i := range flows {
		f := &flows[i]
		start := f.Start.UnixMilli()
		out.Protocol = append(out.Protocol, uint32(f.Protocol))
		out.Src = append(out.Src, t.address(f.Src))
		out.Dst = append(out.Dst, t.address(f.Dst))
		out.Port = append(out.Port, uint32(f.Port))
		out.Verdict = append(out.Verdict, Verdict(f.Verdict))
		out.Direction = append(out.Direction, Direction(f.Direction))
		out.Start = append(out.Start, start-last)
		out.Duration = append(out.Duration, uint64(max(0, f.End.UnixMilli()-start)))
		out.Source = append(out.Source, t.endpoint(f.Source))
		out.Destination = append(out.Destination, t.endpoint(f.Destination))
		out.SourcePort = append(out.SourcePort, uint32(f.SourcePort))
		out.Reason = append(out.Reason, Reason(f.Reason))
		out.Sources = append(out.Sources, uint32(f.Sources))
		out.Connections = append(out.Connections, f.Connections)
		out.Counted = append(out.Counted, f.Counted)
		out.PacketsSent = append(out.PacketsSent, f.Sent.Packets)
		out.BytesSent = append(out.BytesSent, f.Sent.Bytes)
		out.PacketsReceived = append(out.PacketsReceived, f.Received.Packets)
		out.BytesReceived = append(out.BytesReceived, f.Received.Bytes)
		out.TcpFlags = append(out.TcpFlags, uint32(f.TCPFlags))
		sparse(&out.TranslatedSrc, i, n, t.address(f.TranslatedSrc))
		sparse(&out.Service, i, n, t.service(f.Service))
		sparse(&out.Expected, i, n, Verdict(f.Expected))
		sparse(&out.Assessment, i, n, Assessment(f.Assessment))
		sparse(&out.Caveat, i, n, Caveat(f.Caveat))
		sparse(&out.Policy, i, n, t.policy(f.Policies))
		sparse(&out.Cluster, i, n, intern(t.clusters, &out.Clusters, f.Cluster))
		sparse(&out.Node, i, n, intern(t.nodes, &out.Nodes, f.Node))
		if !f.NamedFrom.IsZero() {
			sparse(&out.Named, i, n, true)
			sparse(&out.NamedBefore, i, n, start-f.NamedFrom.UnixMilli())
			sparse(&out.NamedFor, i, n, uint64(max(0, f.NamedTo.UnixMilli()-f.NamedFrom.UnixMilli())))
		}
		last = start
	}
	return out
}

// sparse sets element i of a column that is absent while all its values are zero.
func sparse[T comparable](column *[]T, i, n int, v T) {
	var zero T
	if *column == nil {
		if v == zero {
			return
		}
		*column = make([]T, n)
	}
	(*column)[i] = v
}

// tables numbers what the columns name, from 1.
type tables struct {
	out       *Flows
	addresses map[netip.Addr]uint32
	endpoints map[*flow.Endpoint]uint32
	services  map[flow.Service]uint32
	policies  map[string]uint32
	clusters  map[string]uint32
	nodes     map[string]uint32
}

func newTables(n int) *tables {
	return &tables{
		out: &Flows{
			Protocol: make([]uint32, 0, n), Src: make([]uint32, 0, n), Dst: make([]uint32, 0, n), Port: make([]uint32, 0, n),
			Verdict: make([]Verdict, 0, n), Direction: make([]Direction, 0, n), Start: make([]int64, 0, n), Duration: make([]uint64, 0, n),
			Source: make([]uint32, 0, n), Destination: make([]uint32, 0, n), SourcePort: make([]uint32, 0, n), Reason: make([]Reason, 0, n),
			Sources: make([]uint32, 0, n), Connections: make([]uint64, 0, n), Counted: make([]bool, 0, n),
			PacketsSent: make([]uint64, 0, n), BytesSent: make([]uint64, 0, n),
			PacketsReceived: make([]uint64, 0, n), BytesReceived: make([]uint64, 0, n), TcpFlags: make([]uint32, 0, n),
		},
		addresses: make(map[netip.Addr]uint32),
		endpoints: make(map[*flow.Endpoint]uint32),
		services:  make(map[flow.Service]uint32),
		policies:  make(map[string]uint32),
		clusters:  make(map[string]uint32),
		nodes:     make(map[string]uint32),
	}
}

func (t *tables) address(a netip.Addr) uint32 {
	if !a.IsValid() {
		return 0
	}
	id, ok := t.addresses[a]
	if !ok {
		t.out.Addresses = append(t.out.Addresses, a.AsSlice())
		id = uint32(len(t.out.Addresses))
		t.addresses[a] = id
	}
	return id
}

func (t *tables) endpoint(e *flow.Endpoint) uint32 {
	if e == nil {
		return 0
	}
	id, ok := t.endpoints[e]
	if !ok {
		t.out.Endpoints = append(t.out.Endpoints, fromEndpoint(e))
		id = uint32(len(t.out.Endpoints))
		t.endpoints[e] = id
	}
	return id
}

func (t *tables) service(s *flow.Service) uint32 {
	if s == nil {
		return 0
	}
	id, ok := t.services[*s]
	if !ok {
		t.out.Services = append(t.out.Services, &Service{Address: s.Addr.AsSlice(), Port: uint32(s.Port), Namespace: s.Namespace, Name: s.Name})
		id = uint32(len(t.out.Services))
		t.services[*s] = id
	}
	return id
}

func (t *tables) policy(refs []flow.PolicyRef) uint32 {
	if len(refs) == 0 {
		return 0
	}
	key := fmt.Sprintf("%q", refs)
	id, ok := t.policies[key]
	if !ok {
		p := &Policies{}
		for _, r := range refs {
			p.Refs = append(p.Refs, &PolicyRef{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name, Rule: r.Rule, Side: r.Side})
		}
		t.out.Policies = append(t.out.Policies, p)
		id = uint32(len(t.out.Policies))
		t.policies[key] = id
	}
	return id
}

func intern(ids map[string]uint32, table *[]string, s string) uint32 {
	if s == "" {
		return 0
	}
	id, ok := ids[s]
	if !ok {
		*table = append(*table, s)
		id = uint32(len(*table))
		ids[s] = id
	}
	return id
}

func fromEndpoint(e *flow.Endpoint) *Endpoint {
	return &Endpoint{
		Kind: EndpointKind(e.Kind), Namespace: e.Namespace, Pod: e.Pod, WorkloadKind: e.Workload.Kind, WorkloadName: e.Workload.Name,
		Node: e.Node, Identity: e.Identity, Labels: e.Labels, Candidates: e.Candidates,
	}
}

// FieldError names a field of a message that cannot be used, and why.
type FieldError struct {
	Flow  int // place in the batch, from 0; -1 if a whole column or table is meant
	Field string
	Why   string
}

// Error says which field of which flow is at fault.
func (e *FieldError) Error() string {
	if e.Flow < 0 {
		return fmt.Sprintf("field %s: %s", e.Field, e.Why)
	}
	return fmt.Sprintf("flow %d, field %s: %s", e.Flow, e.Field, e.Why)
}

// ToFlows reads the columns back. A flow with a value that cannot be is left
// out and counted in invalid, and firstInvalid names the first of them. err
// says that nothing could be read: columns of different lengths, or a broken table.
func (x *Flows) ToFlows() (flows []flow.Flow, invalid int, firstInvalid, err error) {
	return x.toFlows(false)
}

// toFlows is ToFlows; whole says that nothing may be withheld of an end, as an
// answer does: what agents report has an address or a name.
func (x *Flows) toFlows(whole bool) (flows []flow.Flow, invalid int, firstInvalid, err error) {
	if x == nil {
		return nil, 0, nil, nil
	}
	if err := x.checkColumns(); err != nil {
		return nil, 0, nil, err
	}
	t, err := x.readTables()
	if err != nil {
		return nil, 0, nil, err
	}
	flows = make([]flow.Flow, 0, len(x.Src))
	var start int64
	for i := range x.Src {
		start += x.Start[i]
		flows = flows[:len(flows)+1]
		err := x.row(i, start, t, &flows[len(flows)-1])
		if whole && err == nil {
			err = named(i, &flows[len(flows)-1])
		}
		if err != nil {
			flows[len(flows)-1] = flow.Flow{}
			flows = flows[:len(flows)-1]
			if invalid++; firstInvalid == nil {
				firstInvalid = err
			}
		}
	}
	return flows, invalid, firstInvalid, nil
}

func (x *Flows) checkColumns() error {
	n := len(x.Src)
	for _, c := range [...]struct {
		name     string
		len      int
		optional bool
	}{
		{"protocol", len(x.Protocol), false},
		{"dst", len(x.Dst), false},
		{"port", len(x.Port), false},
		{"verdict", len(x.Verdict), false},
		{"direction", len(x.Direction), false},
		{"start", len(x.Start), false},
		{"duration", len(x.Duration), false},
		{"source", len(x.Source), false},
		{"destination", len(x.Destination), false},
		{"source_port", len(x.SourcePort), false},
		{"translated_src", len(x.TranslatedSrc), true},
		{"service", len(x.Service), true},
		{"reason", len(x.Reason), false},
		{"expected", len(x.Expected), true},
		{"assessment", len(x.Assessment), true},
		{"caveat", len(x.Caveat), true},
		{"policy", len(x.Policy), true},
		{"sources", len(x.Sources), false},
		{"connections", len(x.Connections), false},
		{"counted", len(x.Counted), false},
		{"packets_sent", len(x.PacketsSent), false},
		{"bytes_sent", len(x.BytesSent), false},
		{"packets_received", len(x.PacketsReceived), false},
		{"bytes_received", len(x.BytesReceived), false},
		{"tcp_flags", len(x.TcpFlags), false},
		{"cluster", len(x.Cluster), true},
		{"node", len(x.Node), true},
		{"named", len(x.Named), true},
		{"named_before", len(x.NamedBefore), true},
		{"named_for", len(x.NamedFor), true},
	} {
		if c.len != n && (c.len != 0 || !c.optional) {
			return &FieldError{-1, c.name, fmt.Sprintf("the column has %d values, src has %d", c.len, n)}
		}
	}
	return nil
}

// readTables is what the columns name, element 0 being none.
type readTables struct {
	addresses []netip.Addr
	endpoints []*flow.Endpoint
	services  []*flow.Service
	policies  [][]flow.PolicyRef
	clusters  []string
	nodes     []string
}

func (x *Flows) readTables() (*readTables, error) {
	t := &readTables{
		addresses: make([]netip.Addr, 1, len(x.Addresses)+1),
		endpoints: make([]*flow.Endpoint, 1, len(x.Endpoints)+1),
		services:  make([]*flow.Service, 1, len(x.Services)+1),
		policies:  make([][]flow.PolicyRef, 1, len(x.Policies)+1),
		clusters:  append([]string{""}, x.Clusters...),
		nodes:     append([]string{""}, x.Nodes...),
	}
	for i, b := range x.Addresses {
		a, ok := netip.AddrFromSlice(b)
		if !ok {
			return nil, &FieldError{-1, fmt.Sprintf("addresses[%d]", i), fmt.Sprintf("%d bytes are no address", len(b))}
		}
		t.addresses = append(t.addresses, a.Unmap())
	}
	for _, e := range x.Endpoints {
		t.endpoints = append(t.endpoints, toEndpoint(e))
	}
	for i, s := range x.Services {
		a, ok := netip.AddrFromSlice(s.Address)
		if !ok && (len(s.Address) > 0 || s.Name == "") || s.Port > 65535 {
			return nil, &FieldError{-1, fmt.Sprintf("services[%d]", i), "no address or no port"}
		}
		t.services = append(t.services, &flow.Service{Addr: a.Unmap(), Port: uint16(s.Port), Namespace: s.Namespace, Name: s.Name})
	}
	for _, p := range x.Policies {
		refs := make([]flow.PolicyRef, 0, len(p.Refs))
		for _, r := range p.Refs {
			refs = append(refs, flow.PolicyRef{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name, Rule: r.Rule, Side: r.Side})
		}
		t.policies = append(t.policies, refs)
	}
	return t, nil
}

func toEndpoint(e *Endpoint) *flow.Endpoint {
	return &flow.Endpoint{
		Kind: flow.EndpointKind(e.Kind), Namespace: e.Namespace, Pod: e.Pod,
		Workload: flow.Workload{Kind: e.WorkloadKind, Name: e.WorkloadName},
		Node:     e.Node, Identity: e.Identity, Labels: e.Labels, Candidates: e.Candidates,
	}
}

// Times outside of these are a lie or a broken clock: the years 2000 and 2200.
const (
	minTime = 946_684_800_000
	maxTime = 7_258_118_400_000
)

func (x *Flows) row(i int, start int64, t *readTables, f *flow.Flow) error {
	duration := x.Duration[i]
	switch {
	case x.Src[i] >= uint32(len(t.addresses)):
		return &FieldError{i, "src", fmt.Sprintf("no address %d", x.Src[i])}
	case x.Dst[i] >= uint32(len(t.addresses)):
		return &FieldError{i, "dst", fmt.Sprintf("no address %d", x.Dst[i])}
	case x.Protocol[i] > 255:
		return &FieldError{i, "protocol", fmt.Sprintf("%d is no IP protocol", x.Protocol[i])}
	case x.Port[i] > 65535:
		return &FieldError{i, "port", fmt.Sprintf("%d is no port", x.Port[i])}
	case x.SourcePort[i] > 65535:
		return &FieldError{i, "source_port", fmt.Sprintf("%d is no port", x.SourcePort[i])}
	case start < minTime || start > maxTime:
		return &FieldError{i, "start", fmt.Sprintf("%d ms is no time of this age", start)}
	case duration > maxTime-minTime:
		return &FieldError{i, "duration", fmt.Sprintf("%d ms is too long", duration)}
	case x.Verdict[i] < 0 || x.Verdict[i] > Verdict_VERDICT_UNANSWERED:
		return &FieldError{i, "verdict", fmt.Sprintf("unknown value %d", x.Verdict[i])}
	case x.Direction[i] < 0 || x.Direction[i] > Direction_DIRECTION_INGRESS:
		return &FieldError{i, "direction", fmt.Sprintf("unknown value %d", x.Direction[i])}
	case x.Reason[i] < 0 || x.Reason[i] > 255:
		return &FieldError{i, "reason", fmt.Sprintf("unknown value %d", x.Reason[i])}
	case x.Sources[i] > 255:
		return &FieldError{i, "sources", fmt.Sprintf("%#x has more than 8 bits", x.Sources[i])}
	case len(x.Expected) > 0 && (x.Expected[i] < 0 || x.Expected[i] > Verdict_VERDICT_UNANSWERED):
		return &FieldError{i, "expected", fmt.Sprintf("unknown value %d", x.Expected[i])}
	case len(x.Assessment) > 0 && (x.Assessment[i] < 0 || x.Assessment[i] > Assessment_ASSESSMENT_UNANSWERED):
		return &FieldError{i, "assessment", fmt.Sprintf("unknown value %d", x.Assessment[i])}
	case len(x.Caveat) > 0 && (x.Caveat[i] < 0 || x.Caveat[i] > Caveat_CAVEAT_OTHER_CAUSE):
		return &FieldError{i, "caveat", fmt.Sprintf("unknown value %d", x.Caveat[i])}
	case x.TcpFlags[i] > 255:
		return &FieldError{i, "tcp_flags", fmt.Sprintf("%#x has more than 8 bits", x.TcpFlags[i])}
	}
	f.Protocol, f.Port = flow.Protocol(x.Protocol[i]), uint16(x.Port[i])
	f.Src, f.Dst = t.addresses[x.Src[i]], t.addresses[x.Dst[i]]
	f.Verdict, f.Direction = flow.Verdict(x.Verdict[i]), flow.Direction(x.Direction[i])
	f.Start = time.UnixMilli(start)
	f.End = time.UnixMilli(start + int64(duration))
	f.SourcePort = uint16(x.SourcePort[i])
	f.Reason = flow.Reason(x.Reason[i])
	f.Sources = flow.Source(x.Sources[i])
	f.Connections = x.Connections[i]
	f.Counted = x.Counted[i]
	f.Sent = flow.Counters{Packets: x.PacketsSent[i], Bytes: x.BytesSent[i]}
	f.Received = flow.Counters{Packets: x.PacketsReceived[i], Bytes: x.BytesReceived[i]}
	f.TCPFlags = uint8(x.TcpFlags[i])
	if err := x.rowNamed(i, start, f); err != nil {
		return err
	}
	return x.rowTables(i, t, f)
}

// rowNamed reads when the connections of flow i began.
func (x *Flows) rowNamed(i int, start int64, f *flow.Flow) error {
	if len(x.Named) == 0 || !x.Named[i] {
		return nil
	}
	var before int64
	var span uint64
	if len(x.NamedBefore) > 0 {
		before = x.NamedBefore[i]
	}
	if len(x.NamedFor) > 0 {
		span = x.NamedFor[i]
	}
	from := start - before
	switch {
	case from < minTime || from > maxTime:
		return &FieldError{i, "named_before", fmt.Sprintf("%d ms lead to no time of this age", before)}
	case span > maxTime-minTime:
		return &FieldError{i, "named_for", fmt.Sprintf("%d ms is too long", span)}
	}
	f.NamedFrom, f.NamedTo = time.UnixMilli(from), time.UnixMilli(from+int64(span))
	return nil
}

// rowTables fills what optional columns and tables say of flow i.
func (x *Flows) rowTables(i int, t *readTables, f *flow.Flow) error {
	var ok [7]bool
	f.Source, ok[0] = entry(t.endpoints, x.Source, i)
	f.Destination, ok[1] = entry(t.endpoints, x.Destination, i)
	f.TranslatedSrc, ok[2] = entry(t.addresses, x.TranslatedSrc, i)
	f.Service, ok[3] = entry(t.services, x.Service, i)
	f.Policies, ok[4] = entry(t.policies, x.Policy, i)
	f.Cluster, ok[5] = entry(t.clusters, x.Cluster, i)
	f.Node, ok[6] = entry(t.nodes, x.Node, i)
	for j, name := range [...]string{"source", "destination", "translated_src", "service", "policy", "cluster", "node"} {
		if !ok[j] {
			return &FieldError{i, name, "the table has no such entry"}
		}
	}
	if len(x.Expected) > 0 {
		f.Expected = flow.Verdict(x.Expected[i])
	}
	if len(x.Assessment) > 0 {
		f.Assessment = flow.Assessment(x.Assessment[i])
	}
	if len(x.Caveat) > 0 {
		f.Caveat = flow.Caveat(x.Caveat[i])
	}
	return nil
}

// named reports an error where an end has neither an address nor a name.
func named(i int, f *flow.Flow) error {
	switch {
	case !f.Src.IsValid() && (f.Source == nil || f.Source.Kind == flow.EndpointUnknown):
		return &FieldError{i, "src", "no address, and no name"}
	case !f.Dst.IsValid() && (f.Destination == nil || f.Destination.Kind == flow.EndpointUnknown):
		return &FieldError{i, "dst", "no address, and no name"}
	}
	return nil
}

func entry[T any](table []T, column []uint32, i int) (v T, ok bool) {
	if len(column) == 0 {
		return v, true
	}
	if column[i] >= uint32(len(table)) {
		return v, false
	}
	return table[column[i]], true
}
