package flowauditv1

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"

	"github.com/flowaudit/flowaudit/flow"
)

func at(seconds int) time.Time { return time.UnixMilli(1_772_366_400_345 + int64(seconds)*1000) }

// sampleFlows are flows that set every field, and flows that set few.
func sampleFlows() []flow.Flow {
	web := &flow.Endpoint{
		Kind: flow.EndpointPod, Namespace: "shop", Pod: "web-0", Workload: flow.Workload{Kind: "Deployment", Name: "web"},
		Node: "node-1", Identity: 7, Labels: map[string]string{"role": "web"}, Candidates: []string{"shop/web-0", "shop/web-1"},
	}
	full := flow.Flow{
		Key: flow.Key{
			Protocol: flow.TCP, Src: netip.MustParseAddr("10.1.0.1"), Dst: netip.MustParseAddr("fd00::3"), Port: 3306,
			Verdict: flow.VerdictDenied, Direction: flow.DirectionIngress,
		},
		Start: at(0), End: at(9), NamedFrom: at(-3), NamedTo: at(1), Cluster: "prod", Node: "node-1", Source: web, Destination: &flow.Endpoint{Kind: flow.EndpointOutside},
		SourcePort: 40000, TranslatedSrc: netip.MustParseAddr("192.168.7.1"),
		Service: &flow.Service{Addr: netip.MustParseAddr("10.96.0.33"), Port: 3306, Namespace: "shop", Name: "db"},
		Reason:  flow.ReasonLogged, Expected: flow.VerdictDenied, Assessment: flow.AssessmentEnforced, Caveat: flow.CaveatRecent,
		Policies: []flow.PolicyRef{{Kind: "NetworkPolicy", Namespace: "shop", Name: "p", Rule: "ingress[0]", Side: "ingress"}},
		Sources:  flow.SourceNFLOG, Connections: 3, Sent: flow.Counters{Packets: 3, Bytes: 180}, Received: flow.Counters{Packets: 1, Bytes: 60},
		Counted: true, TCPFlags: flow.TCPSyn,
	}
	bare := flow.Flow{
		Key:   flow.Key{Protocol: flow.UDP, Src: netip.MustParseAddr("10.1.0.1"), Dst: netip.MustParseAddr("10.1.0.2"), Port: 53},
		Start: at(5), End: at(5), Source: web,
	}
	earlier := bare
	earlier.Start, earlier.End = at(-60), at(-59)
	return []flow.Flow{full, bare, earlier, full}
}

// TestFlowsWithoutAddresses: a plugin that aggregates tells names only.
func TestFlowsWithoutAddresses(t *testing.T) {
	named := flow.Flow{
		Key: flow.Key{Protocol: flow.TCP, Port: 80, Verdict: flow.VerdictDenied}, Start: at(1), End: at(2),
		Source:      &flow.Endpoint{Kind: flow.EndpointPod, Namespace: "shop", Workload: flow.Workload{Kind: "Deployment", Name: "web"}},
		Destination: &flow.Endpoint{Kind: flow.EndpointOutside},
		Service:     &flow.Service{Port: 80, Namespace: "shop", Name: "db"}, Sources: flow.SourceFelix,
	}
	got, invalid, first, err := FromFlows([]flow.Flow{named}).ToFlows()
	if err != nil || invalid != 0 {
		t.Fatalf("%d invalid (%v), %v", invalid, first, err)
	}
	if diff := cmp.Diff([]flow.Flow{named}, got, addresses); diff != "" {
		t.Error(diff)
	}
	for field, spoil := range map[string]func(*flow.Flow){
		"src": func(f *flow.Flow) { f.Source = nil }, "dst": func(f *flow.Flow) { f.Destination = &flow.Endpoint{} },
	} {
		f := named
		spoil(&f)
		if _, invalid, first, _ := FromFlows([]flow.Flow{f}).ToFlows(); invalid != 0 {
			t.Errorf("an answer that withholds %s: %v", field, first)
		}
		if _, invalid, first, _ := FromFlows([]flow.Flow{f}).toFlows(true); invalid != 1 || !strings.HasPrefix(first.Error(), "flow 0, field "+field+":") {
			t.Errorf("%d invalid, %v; want one, by its %s", invalid, first, field)
		}
	}
}

var addresses = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func TestFlowsRoundTrip(t *testing.T) {
	want := sampleFlows()
	message := FromFlows(want)
	if n := len(message.Endpoints); n != 2 {
		t.Errorf("%d endpoints on the wire, want those that flows share once", n)
	}
	b, err := proto.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	var read Flows
	if err := proto.Unmarshal(b, &read); err != nil {
		t.Fatal(err)
	}
	got, invalid, first, err := read.ToFlows()
	if err != nil || invalid != 0 {
		t.Fatalf("%d invalid flows: %v, %v", invalid, first, err)
	}
	if diff := cmp.Diff(want, got, addresses); diff != "" {
		t.Error(diff)
	}
	if got[0].Source != got[1].Source {
		t.Error("flows that share an endpoint get one each")
	}
}

// TestInvalidFlowsAreNamed: one bad flow costs itself only.
func TestInvalidFlowsAreNamed(t *testing.T) {
	for _, c := range []struct {
		field string
		spoil func(*Flows)
	}{
		{"src", func(x *Flows) { x.Src[1] = 99 }},
		{"dst", func(x *Flows) { x.Dst[1] = 99 }},
		{"protocol", func(x *Flows) { x.Protocol[1] = 256 }},
		{"port", func(x *Flows) { x.Port[1] = 65536 }},
		{"source_port", func(x *Flows) { x.SourcePort[1] = 1 << 20 }},
		{"start", func(x *Flows) { x.Start[1] -= 1 << 50; x.Start[2] += 1 << 50 }},
		{"duration", func(x *Flows) { x.Duration[1] = 1 << 60 }},
		{"verdict", func(x *Flows) { x.Verdict[1] = 9 }},
		{"direction", func(x *Flows) { x.Direction[1] = -1 }},
		{"reason", func(x *Flows) { x.Reason[1] = 300 }},
		{"tcp_flags", func(x *Flows) { x.TcpFlags[1] = 256 }},
		{"source", func(x *Flows) { x.Source[1] = 99 }},
		{"destination", func(x *Flows) { x.Destination[1] = 99 }},
		{"service", func(x *Flows) { x.Service[1] = 99 }},
		{"translated_src", func(x *Flows) { x.TranslatedSrc[1] = 99 }},
		{"policy", func(x *Flows) { x.Policy[1] = 99 }},
		{"expected", func(x *Flows) { x.Expected[1] = 9 }},
		{"assessment", func(x *Flows) { x.Assessment[1] = -1 }},
		{"caveat", func(x *Flows) { x.Caveat[1] = 99 }},
		{"sources", func(x *Flows) { x.Sources[1] = 256 }},
		{"cluster", func(x *Flows) { x.Cluster[1] = 99 }},
		{"node", func(x *Flows) { x.Node[1] = 99 }},
		{"named_before", func(x *Flows) { x.Named[1], x.NamedBefore[1] = true, -1<<62 }},
		{"named_for", func(x *Flows) { x.Named[1], x.NamedFor[1] = true, 1<<60 }},
	} {
		t.Run(c.field, func(t *testing.T) {
			x := FromFlows(sampleFlows())
			c.spoil(x)
			flows, invalid, first, err := x.ToFlows()
			if err != nil || invalid != 1 || len(flows) != 3 {
				t.Fatalf("%d flows, %d invalid, %v; want 3 and 1", len(flows), invalid, err)
			}
			if want := fmt.Sprintf("flow 1, field %s:", c.field); !strings.HasPrefix(first.Error(), want) {
				t.Errorf("error %q, want it to begin with %q", first, want)
			}
		})
	}
}

// TestBrokenTablesRefuseTheBatch: nothing in it can be trusted.
func TestBrokenTablesRefuseTheBatch(t *testing.T) {
	for _, c := range []struct {
		field string
		spoil func(*Flows)
	}{
		{"dst", func(x *Flows) { x.Dst = x.Dst[1:] }},
		{"tcp_flags", func(x *Flows) { x.TcpFlags = nil }},
		{"service", func(x *Flows) { x.Service = x.Service[1:] }},
		{"addresses[1]", func(x *Flows) { x.Addresses[1] = x.Addresses[1][1:] }},
		{"named", func(x *Flows) { x.Named = x.Named[1:] }},
		{"services[0]", func(x *Flows) { x.Services[0].Address = []byte{1} }},
	} {
		t.Run(c.field, func(t *testing.T) {
			x := FromFlows(sampleFlows())
			c.spoil(x)
			flows, _, _, err := x.ToFlows()
			if err == nil || len(flows) != 0 || !strings.HasPrefix(err.Error(), "field "+c.field+":") {
				t.Errorf("%d flows, error %v; want none, and one that names %s", len(flows), err, c.field)
			}
		})
	}
}

func sampleBatch() flow.Batch {
	return flow.Batch{
		Key:  flow.BatchKey{Cluster: "prod", Instance: "node-1", Epoch: 5, Sequence: 9},
		Node: "node-1", Scope: flow.ScopePod, Start: at(0), End: at(10),
		Flows: sampleFlows(),
		Gaps:  []flow.Gap{{Node: "node-1", Source: "nflog:100", Kind: flow.GapSequence, Start: at(1), End: at(2), Lost: 4, Detail: "why"}},
		Agent: flow.AgentStatus{Version: "1", Started: at(-5), Observations: 1, Malformed: 2, Connections: 3, Sources: []string{"conntrack"}, Notes: []string{"hubble is read"}, Limits: []string{"no bytes"}, Skew: -1500 * time.Millisecond},
	}
}

func TestBatchRoundTrip(t *testing.T) {
	want := sampleBatch()
	got, invalid, first, err := FromBatch(&want).ToBatch()
	if err != nil || invalid != 0 {
		t.Fatalf("%d invalid: %v, %v", invalid, first, err)
	}
	for i := range want.Flows { // a flow that names none is of the batch's cluster and node
		want.Flows[i].Cluster, want.Flows[i].Node = "prod", "node-1"
	}
	if diff := cmp.Diff(want, got, addresses); diff != "" {
		t.Error(diff)
	}
}

func TestABatchNeedsAKeyAndATime(t *testing.T) {
	for _, c := range []struct {
		field string
		spoil func(*Batch)
	}{
		{"key", func(b *Batch) { b.Key = nil }},
		{"key", func(b *Batch) { b.Key.Sequence = 0 }},
		{"key", func(b *Batch) { b.Node = "" }},
		{"end", func(b *Batch) { b.Start = b.End + 1 }},
		{"end", func(b *Batch) { b.Start, b.End = 0, 0 }},
		{"end", func(b *Batch) { b.Start = -1 << 60 }},
		{"end", func(b *Batch) { b.End = 1 << 60 }},
	} {
		batch := sampleBatch()
		m := FromBatch(&batch)
		c.spoil(m)
		if _, _, _, err := m.ToBatch(); err == nil || !strings.Contains(err.Error(), c.field) {
			t.Errorf("error %v, want one that names %s", err, c.field)
		}
	}
}

// TestInvalidGapsAreNamed: a time that no clock shows would spoil every answer
// about gaps.
func TestInvalidGapsAreNamed(t *testing.T) {
	for name, spoil := range map[string]func(*Gap){
		"start too early": func(g *Gap) { g.Start = -1 << 60 },
		"start too late":  func(g *Gap) { g.Start = 1 << 60 },
		"no end":          func(g *Gap) { g.End = 0 },
		"end too late":    func(g *Gap) { g.End = 1 << 60 },
	} {
		batch := sampleBatch()
		batch.Gaps = append(batch.Gaps, batch.Gaps[0], batch.Gaps[0])
		m := FromBatch(&batch)
		spoil(m.Gaps[1])
		got, invalid, first, err := m.ToBatch()
		if err != nil || invalid != 1 || len(got.Gaps) != 2 || len(got.Flows) != len(batch.Flows) {
			t.Errorf("%s: %d gaps and %d flows, %d invalid, %v", name, len(got.Gaps), len(got.Flows), invalid, err)
		}
		if first == nil || !strings.HasPrefix(first.Error(), "field gaps[1]:") {
			t.Errorf("%s: error %v", name, first)
		}
	}
}

func TestFilterRoundTrip(t *testing.T) {
	ends := flow.Ends{
		Namespaces: []string{"shop"}, Pods: []flow.PodPrefix{{Namespace: "shop", Name: "web"}},
		Workloads: []flow.WorkloadName{{Namespace: "shop", Kind: "Deployment", Name: "web"}},
		Prefixes:  []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
		Labels:    []flow.LabelTerm{{Key: "a", Op: flow.LabelNotIn, Values: []string{"b"}}},
	}
	s := flow.Selector{
		Either: ends, From: ends, To: ends, Ports: []uint16{80}, Protocols: []flow.Protocol{flow.SCTP}, Verdicts: []flow.Verdict{flow.VerdictDenied},
		Directions: []flow.Direction{flow.DirectionEgress}, Assessments: []flow.Assessment{flow.AssessmentUnenforced}, Nodes: []string{"n"}, Clusters: []string{"c"},
	}
	want := flow.Filter{Since: at(0), Until: at(1), Match: s, Not: s}
	got, err := ToFilter(FromFilter(want))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, addresses); diff != "" {
		t.Error(diff)
	}
	for field, bad := range map[string]*Selector{
		"ports": {Ports: []uint32{70000}}, "protocols": {Protocols: []uint32{256}}, "prefixes": {From: &Ends{Prefixes: []string{"10.0.0.0/33"}}},
	} {
		if _, err := ToFilter(&Filter{Not: bad}); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("error %v, want one that names %s", err, field)
		}
	}
}

func TestCoverageRoundTrip(t *testing.T) {
	want := flow.Coverage{Since: at(0), Until: at(60), Nodes: []flow.NodeCoverage{{
		Node: "n", Scope: flow.ScopePod, Covered: 50 * time.Second, Gaps: sampleBatch().Gaps, Limits: []string{"no bytes"},
	}}}
	if diff := cmp.Diff(want, ToCoverage(FromCoverage(want))); diff != "" {
		t.Error(diff)
	}
}

// FuzzBatch: whatever bytes come, a batch is refused or its flows are sound.
func FuzzBatch(f *testing.F) {
	b := sampleBatch()
	seed, err := proto.Marshal(FromBatch(&b))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, b []byte) {
		var m Batch
		if proto.Unmarshal(b, &m) != nil {
			return
		}
		batch, invalid, first, err := m.ToBatch()
		if (invalid > 0) != (first != nil) {
			t.Fatalf("%d invalid flows, the first being %v", invalid, first)
		}
		if err != nil && len(batch.Flows) > 0 {
			t.Fatalf("%d flows beside %v", len(batch.Flows), err)
		}
		for _, fl := range batch.Flows {
			if !fl.Src.IsValid() && fl.Source == nil || !fl.Dst.IsValid() && fl.Destination == nil || fl.End.Before(fl.Start) || fl.Verdict > flow.VerdictUnanswered {
				t.Fatalf("an impossible flow: %+v", fl)
			}
		}
	})
}
