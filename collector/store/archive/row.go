package archive

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"github.com/flowaudit/flowaudit/collector/store/columns"
	"github.com/flowaudit/flowaudit/flow"
)

// flowRow is a flow as it stands in a file. Names stand for codes where other
// programs may want them; an empty text is what is absent.
type flowRow struct {
	Start       time.Time `parquet:"start,timestamp(millisecond),delta"`
	End         time.Time `parquet:"end,timestamp(millisecond),delta"`
	Cluster     string    `parquet:"cluster,dict"`
	Node        string    `parquet:"node,dict"`
	Protocol    int32     `parquet:"protocol,dict"`
	Port        int32     `parquet:"port,dict"`
	SourcePort  int32     `parquet:"source_port"`
	Verdict     string    `parquet:"verdict,dict"`
	Direction   string    `parquet:"direction,dict"`
	Expected    string    `parquet:"expected,dict"`
	Assessment  string    `parquet:"assessment,dict"`
	Caveat      int32     `parquet:"caveat,dict"`
	Reason      int32     `parquet:"reason,dict"`
	ReasonText  string    `parquet:"reason_text,dict"`
	Sources     int32     `parquet:"sources,dict"`
	Translated  string    `parquet:"translated_source_ip,dict"`
	Source      endRow    `parquet:"source"`
	Destination endRow    `parquet:"destination"`
	Service     struct {
		Known     bool   `parquet:"known"`
		IP        string `parquet:"ip,dict"`
		Port      int32  `parquet:"port,dict"`
		Namespace string `parquet:"namespace,dict"`
		Name      string `parquet:"name,dict"`
	} `parquet:"service"`
	Policies        string `parquet:"policies,dict"` // JSON
	Connections     uint64 `parquet:"connections"`
	Counted         bool   `parquet:"counted"`
	PacketsSent     uint64 `parquet:"packets_sent"`
	BytesSent       uint64 `parquet:"bytes_sent"`
	PacketsReceived uint64 `parquet:"packets_received"`
	BytesReceived   uint64 `parquet:"bytes_received"`
	TCPFlags        int32  `parquet:"tcp_flags,dict"`
}

type endRow struct {
	Known        bool     `parquet:"known"`
	IP           string   `parquet:"ip,dict"`
	Kind         int32    `parquet:"kind,dict"`
	Namespace    string   `parquet:"namespace,dict"`
	Pod          string   `parquet:"pod,dict"`
	WorkloadKind string   `parquet:"workload_kind,dict"`
	Workload     string   `parquet:"workload,dict"`
	Node         string   `parquet:"node,dict"`
	Identity     uint64   `parquet:"identity,dict"`
	Labels       string   `parquet:"labels,dict"` // JSON
	Candidates   []string `parquet:"candidates,list"`
}

func rowOf(f *flow.Flow) flowRow {
	r := flowRow{
		Start: f.Start, End: f.End, Cluster: f.Cluster, Node: f.Node, Protocol: int32(f.Protocol), Port: int32(f.Port), SourcePort: int32(f.SourcePort),
		Verdict: f.Verdict.String(), Direction: f.Direction.String(), Expected: f.Expected.String(), Assessment: f.Assessment.String(),
		Caveat: int32(f.Caveat), Reason: int32(f.Reason), ReasonText: f.Reason.String(), Sources: int32(f.Sources), Translated: addrText(f.TranslatedSrc),
		Source: endOf(f.Src, f.Source), Destination: endOf(f.Dst, f.Destination), Policies: columns.PoliciesText(f.Policies),
		Connections: f.Connections, Counted: f.Counted, PacketsSent: f.Sent.Packets, BytesSent: f.Sent.Bytes,
		PacketsReceived: f.Received.Packets, BytesReceived: f.Received.Bytes, TCPFlags: int32(f.TCPFlags),
	}
	if s := f.Service; s != nil {
		r.Service.Known, r.Service.IP, r.Service.Port, r.Service.Namespace, r.Service.Name = true, addrText(s.Addr), int32(s.Port), s.Namespace, s.Name
	}
	return r
}

func endOf(addr netip.Addr, e *flow.Endpoint) endRow {
	if e == nil {
		return endRow{IP: addrText(addr)}
	}
	return endRow{true, addrText(addr), int32(e.Kind), e.Namespace, e.Pod, e.Workload.Kind, e.Workload.Name, e.Node, e.Identity, labelsText(e.Labels), e.Candidates}
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func (r *flowRow) flow() (f flow.Flow, err error) {
	f = flow.Flow{
		Key:   flow.Key{Protocol: flow.Protocol(r.Protocol), Port: uint16(r.Port)},
		Start: r.Start.Local(), End: r.End.Local(), Cluster: r.Cluster, Node: r.Node, SourcePort: uint16(r.SourcePort),
		Caveat: flow.Caveat(r.Caveat), Reason: flow.Reason(r.Reason), Sources: flow.Source(r.Sources), Policies: columns.PoliciesOf(r.Policies),
		Connections: r.Connections, Counted: r.Counted, Sent: flow.Counters{Packets: r.PacketsSent, Bytes: r.BytesSent},
		Received: flow.Counters{Packets: r.PacketsReceived, Bytes: r.BytesReceived}, TCPFlags: uint8(r.TCPFlags),
	}
	if f.Verdict, err = flow.ParseVerdict(r.Verdict); err != nil {
		return f, err
	}
	if f.Expected, err = flow.ParseVerdict(r.Expected); err != nil {
		return f, err
	}
	if f.Assessment, err = flow.ParseAssessment(r.Assessment); err != nil {
		return f, err
	}
	if r.Direction != flow.DirectionUnknown.String() {
		if f.Direction, err = flow.ParseDirection(r.Direction); err != nil {
			return f, err
		}
	}
	if f.TranslatedSrc, err = addrOf(r.Translated); err != nil {
		return f, err
	}
	if f.Src, f.Source, err = r.Source.endpoint(); err != nil {
		return f, err
	}
	if f.Dst, f.Destination, err = r.Destination.endpoint(); err != nil {
		return f, err
	}
	if s := &r.Service; s.Known {
		f.Service = &flow.Service{Port: uint16(s.Port), Namespace: s.Namespace, Name: s.Name}
		f.Service.Addr, err = addrOf(s.IP)
	}
	return f, err
}

func (r *endRow) endpoint() (addr netip.Addr, e *flow.Endpoint, err error) {
	if addr, err = addrOf(r.IP); err != nil || !r.Known {
		return addr, nil, err
	}
	e = &flow.Endpoint{
		Kind: flow.EndpointKind(r.Kind), Namespace: r.Namespace, Pod: r.Pod, Workload: flow.Workload{Kind: r.WorkloadKind, Name: r.Workload},
		Node: r.Node, Identity: r.Identity, Candidates: r.Candidates,
	}
	if r.Labels != "" {
		if err := json.Unmarshal([]byte(r.Labels), &e.Labels); err != nil {
			return addr, nil, fmt.Errorf("read labels: %w", err)
		}
	}
	return addr, e, nil
}

func addrOf(text string) (netip.Addr, error) {
	if text == "" {
		return netip.Addr{}, nil
	}
	return netip.ParseAddr(text)
}
