package flow

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"time"
)

// flowJSON is a flow as programs read it. Fields that are unknown are absent.
type flowJSON struct {
	Start       string       `json:"start"` // RFC 3339, UTC, milliseconds
	End         string       `json:"end"`
	Cluster     string       `json:"cluster,omitempty"`
	Node        string       `json:"node,omitempty"` // the node that reports
	Direction   string       `json:"direction,omitempty"`
	Verdict     string       `json:"verdict"`
	Expected    string       `json:"expected,omitempty"`
	Assessment  string       `json:"assessment,omitempty"`
	Caveat      string       `json:"caveat,omitempty"`
	Reason      string       `json:"reason,omitempty"`
	RefusedAt   string       `json:"refused_at,omitempty"` // egress, ingress or between; follows from the rest
	Protocol    string       `json:"protocol"`
	Source      endJSON      `json:"source"`
	Destination endJSON      `json:"destination"`
	Service     *serviceJSON `json:"service,omitempty"`
	Connections uint64       `json:"connections"`
	Packets     *countsJSON  `json:"packets,omitempty"`
	Bytes       *countsJSON  `json:"bytes,omitempty"`
	TCPFlags    []string     `json:"tcp_flags,omitempty"`
	ICMP        *icmpJSON    `json:"icmp,omitempty"`
	Policies    []PolicyRef  `json:"policies,omitempty"`
	Sources     []string     `json:"sources,omitempty"`
}

type endJSON struct {
	IP           string            `json:"ip,omitempty"`            // absent where a plugin tells names only
	TranslatedIP string            `json:"translated_ip,omitempty"` // after SNAT
	Port         uint16            `json:"port,omitempty"`
	Kind         string            `json:"kind,omitempty"` // pod, node, service, apiserver, outside or ambiguous
	Namespace    string            `json:"namespace,omitempty"`
	Pod          string            `json:"pod,omitempty"`
	Workload     *workloadJSON     `json:"workload,omitempty"`
	Labels       map[string]string `json:"labels,omitempty"`
	Node         string            `json:"node,omitempty"`
	Identity     string            `json:"identity,omitempty"` // 16 hexadecimal digits
	Candidates   []string          `json:"candidates,omitempty"`
}

type workloadJSON struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
}

type serviceJSON struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	IP        string `json:"ip,omitempty"`
	Port      uint16 `json:"port,omitempty"`
}

type countsJSON struct {
	Sent     uint64 `json:"sent"`
	Received uint64 `json:"received"`
}

type icmpJSON struct {
	Type uint8 `json:"type"`
	Code uint8 `json:"code"`
}

const timeLayout = "2006-01-02T15:04:05.000Z07:00"

// MarshalJSON gives the form that docs/json.md describes.
func (f Flow) MarshalJSON() ([]byte, error) {
	j := flowJSON{
		Start: f.Start.UTC().Format(timeLayout), End: f.End.UTC().Format(timeLayout), Cluster: f.Cluster, Node: f.Node,
		Verdict: f.Verdict.String(), Reason: f.Reason.String(), Caveat: f.Caveat.String(), Protocol: f.Protocol.String(),
		Source:      toEnd(f.Src, f.SourcePort, f.Source),
		Destination: toEnd(f.Dst, 0, f.Destination),
		Connections: f.Connections, TCPFlags: TCPFlagNames(f.TCPFlags), Policies: f.Policies, Sources: f.Sources.Names(),
	}
	if f.Direction != DirectionUnknown {
		j.Direction = f.Direction.String()
	}
	if p := f.RefusedAt(); p != PlaceUnknown {
		j.RefusedAt = p.String()
	}
	if f.Expected != VerdictUnknown {
		j.Expected = f.Expected.String()
	}
	if f.Assessment != AssessmentUnknown {
		j.Assessment = f.Assessment.String()
	}
	if f.TranslatedSrc.IsValid() {
		j.Source.TranslatedIP = f.TranslatedSrc.String()
	}
	if f.Protocol.IsICMP() {
		if typ, code := f.ICMP(); typ != ICMPUnknown {
			j.ICMP = &icmpJSON{typ, code}
		}
	} else {
		j.Destination.Port = f.Port
	}
	if s := f.Service; s != nil {
		j.Service = &serviceJSON{s.Namespace, s.Name, addrText(s.Addr), s.Port}
	}
	if f.Counted {
		j.Packets = &countsJSON{f.Sent.Packets, f.Received.Packets}
		j.Bytes = &countsJSON{f.Sent.Bytes, f.Received.Bytes}
	}
	return json.Marshal(j)
}

func toEnd(addr netip.Addr, port uint16, e *Endpoint) endJSON {
	j := endJSON{IP: addrText(addr), Port: port}
	if e == nil {
		return j
	}
	if e.Kind != EndpointUnknown {
		j.Kind = e.Kind.String()
	}
	j.Namespace, j.Pod, j.Node, j.Labels, j.Candidates = e.Namespace, e.Pod, e.Node, e.Labels, e.Candidates
	if e.Workload != (Workload{}) {
		j.Workload = &workloadJSON{e.Workload.Kind, e.Workload.Name}
	}
	if e.Identity != 0 {
		j.Identity = fmt.Sprintf("%016x", e.Identity)
	}
	return j
}

// addrText is empty for the zero Addr.
func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// UnmarshalJSON reads what MarshalJSON writes.
func (f *Flow) UnmarshalJSON(b []byte) error {
	var j flowJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return fmt.Errorf("read flow: %w", err)
	}
	r := reader{}
	*f = Flow{
		Cluster: j.Cluster, Node: j.Node, Connections: j.Connections, Policies: j.Policies,
		Start: r.time(j.Start), End: r.time(j.End), SourcePort: j.Source.Port,
		Source: r.end(j.Source), Destination: r.end(j.Destination),
	}
	f.Src, f.Dst, f.Port = r.addr(j.Source.IP), r.addr(j.Destination.IP), j.Destination.Port
	f.Protocol = read(&r, j.Protocol, ParseProtocol)
	f.Verdict = read(&r, j.Verdict, ParseVerdict)
	f.Expected = code[Verdict](&r, "expected", verdictNames[:], j.Expected)
	f.Direction = code[Direction](&r, "direction", directionNames[:], j.Direction)
	f.Assessment = code[Assessment](&r, "assessment", assessmentNames[:], j.Assessment)
	f.Reason = code[Reason](&r, "reason", reasonNames[:], j.Reason)
	f.Caveat = code[Caveat](&r, "caveat", caveatNames[:], j.Caveat)
	if j.Source.TranslatedIP != "" {
		f.TranslatedSrc = r.addr(j.Source.TranslatedIP)
	}
	if j.ICMP != nil {
		f.Port = ICMPPort(j.ICMP.Type, j.ICMP.Code)
	} else if f.Protocol.IsICMP() {
		f.Port = ICMPPort(ICMPUnknown, ICMPUnknown)
	}
	if s := j.Service; s != nil {
		f.Service = &Service{Addr: r.addr(s.IP), Port: s.Port, Namespace: s.Namespace, Name: s.Name}
	}
	if j.Packets != nil && j.Bytes != nil {
		f.Counted = true
		f.Sent = Counters{j.Packets.Sent, j.Bytes.Sent}
		f.Received = Counters{j.Packets.Received, j.Bytes.Received}
	}
	for bit := range 8 {
		for _, n := range j.TCPFlags {
			if TCPFlagNames(1 << bit)[0] == n {
				f.TCPFlags |= 1 << bit
			}
		}
	}
	for bit := range 8 {
		for _, n := range j.Sources {
			if names := Source(1 << bit).Names(); len(names) == 1 && names[0] == n {
				f.Sources |= 1 << bit
			}
		}
	}
	return r.err
}

// reader keeps the first error of many fields.
type reader struct{ err error }

func (r *reader) fail(err error) {
	if r.err == nil && err != nil {
		r.err = fmt.Errorf("read flow: %w", err)
	}
}

func (r *reader) time(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	r.fail(err)
	return t
}

func (r *reader) addr(s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(s)
	r.fail(err)
	return a
}

func (r *reader) end(j endJSON) *Endpoint {
	e := &Endpoint{Namespace: j.Namespace, Pod: j.Pod, Node: j.Node, Labels: j.Labels, Candidates: j.Candidates}
	e.Kind = code[EndpointKind](r, "kind", endpointKindNames[:], j.Kind)
	if j.Workload != nil {
		e.Workload = Workload{j.Workload.Kind, j.Workload.Name}
	}
	if j.Identity != "" {
		var err error
		e.Identity, err = strconv.ParseUint(j.Identity, 16, 64)
		r.fail(err)
	}
	if e.Kind == EndpointUnknown && e.Namespace == "" && e.Pod == "" && e.Node == "" {
		return nil
	}
	return e
}

func read[T any](r *reader, s string, parse func(string) (T, error)) T {
	v, err := parse(s)
	r.fail(err)
	return v
}

// code finds the number of a name; absent is 0.
func code[T ~uint8](r *reader, field string, names []string, s string) T {
	if s == "" {
		return 0
	}
	for i, n := range names {
		if n == s {
			return T(i)
		}
	}
	r.fail(fmt.Errorf("%s: unknown value %q", field, s))
	return 0
}
