package hubble

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/flowaudit/flowaudit/flow"
)

var update = flag.Bool("update", false, "write the golden file anew")

// published reads flows as Hubble's exporter and its users have published them.
func published(t testing.TB) (flows []*flowpb.Flow) {
	t.Helper()
	b, err := os.ReadFile("testdata/flows.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range bytes.Split(bytes.TrimSpace(b), []byte("\n")) {
		var m observerpb.GetFlowsResponse
		if err := protojson.Unmarshal(line, &m); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		flows = append(flows, m.GetFlow())
	}
	return flows
}

func TestFlows(t *testing.T) {
	var got strings.Builder
	for _, f := range published(t) {
		o := flow.Observation{Time: 1}
		ok, err := convert(f, &o)
		switch {
		case err != nil:
			fmt.Fprintln(&got, "error:", err)
		case !ok:
			fmt.Fprintln(&got, "-")
		default:
			fmt.Fprintln(&got, show(&o))
		}
	}
	const golden = "testdata/flows.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(got.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("go test ./agent/hubble -update renews it\n%s", diff)
	}
}

func show(o *flow.Observation) string {
	when := "when read"
	if o.Time != 1 {
		when = time.Unix(0, o.Time).UTC().Format(time.RFC3339Nano)
	}
	s := fmt.Sprintf("%s %s %s %s %d -> %s %d", when, o.Verdict, o.Protocol, o.Original.Src, o.Original.SrcPort, o.Original.Dst, o.Original.DstPort)
	if o.Protocol.IsICMP() {
		s += fmt.Sprintf(" type %d code %d", o.ICMPType, o.ICMPCode)
	}
	if o.Status&flow.StatusSeenReply != 0 {
		s += " replied"
	}
	s += fmt.Sprintf(" [%s] %s %v", strings.Join(flow.TCPFlagNames(o.TCPFlags), ","), o.Told.Direction, o.Told.Policies)
	for _, e := range []*flow.Endpoint{o.Told.Source, o.Told.Destination} {
		if e == nil {
			s += " -"
			continue
		}
		s += fmt.Sprintf(" %s:%s/%s workload=%s/%s node=%s %v", e.Kind, e.Namespace, e.Pod, e.Workload.Kind, e.Workload.Name, e.Node, e.Labels)
	}
	return s
}

func TestADropRepeatsTheVerdictBeforeIt(t *testing.T) {
	r := newRecent()
	ask := func(kind int32, port uint16, sec int64) bool {
		return r.repeats(&flowpb.Flow{EventType: &flowpb.CiliumEventType{Type: kind}}, &flow.Observation{
			Time: sec * int64(time.Second), Verdict: flow.VerdictDenied, Original: flow.Tuple{SrcPort: port},
		})
	}
	for i, c := range []struct {
		kind int32
		port uint16
		sec  int64
		want bool
	}{
		{eventVerdict, 1, 0, false},
		{eventDrop, 1, 0, true},     // told twice
		{eventDrop, 2, 0, false},    // verdicts are off
		{eventVerdict, 3, 0, false}, // its drop was lost, the next packet's is not its own
		{eventDrop, 3, 5, false},
		{eventVerdict, 4, 6, false},
		{eventVerdict, 4, 7, false},
		{eventDrop, 4, 7, true},
	} {
		if got := ask(c.kind, c.port, c.sec); got != c.want {
			t.Errorf("event %d: repeats = %t, want %t", i, got, c.want)
		}
	}
	for port := range uint16(2 * maxRecent) {
		ask(eventVerdict, port, 0)
	}
	if len(r.verdicts) > maxRecent {
		t.Errorf("%d verdicts are kept", len(r.verdicts))
	}
}

func BenchmarkConvert(b *testing.B) {
	f := published(b)[2]
	b.ReportAllocs()
	for b.Loop() {
		var o flow.Observation
		if _, err := convert(f, &o); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzConvert(f *testing.F) {
	for _, p := range published(f) {
		b, err := proto.Marshal(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var p flowpb.Flow
		if proto.Unmarshal(b, &p) != nil {
			return
		}
		var o flow.Observation
		ok, err := convert(&p, &o)
		if ok && err == nil && (!o.Original.Src.IsValid() || !o.Original.Dst.IsValid() || o.Verdict == flow.VerdictUnknown || o.Told == nil) {
			t.Errorf("%v is read as %+v", &p, o)
		}
	})
}
