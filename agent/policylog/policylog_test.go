package policylog

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flowaudit/flowaudit/flow"
)

var update = flag.Bool("update", false, "write the golden files anew")

// parsers makes each parser new, by the name of its log in testdata.
func parsers() map[string]Parser {
	return map[string]Parser{
		"weave": Weave{}, "antrea": Antrea{}, "ovn": OVN{}, "gke": GKE{}, "aws": NewAWS(),
		"kube-network-policies": &KubeNetworkPolicies{},
		"kernel":                NewKernel(CalicoLogPrefix, flow.VerdictDenied),
		"container":             &Container{Parser: Weave{}},
	}
}

// TestLogs reads each log of testdata, lines as the plugins and their users
// have published them, into one line an answer.
func TestLogs(t *testing.T) {
	for name, p := range parsers() {
		t.Run(name, func(t *testing.T) {
			log, err := os.ReadFile("testdata/" + name + ".log")
			if err != nil {
				t.Fatal(err)
			}
			var got strings.Builder
			for _, line := range bytes.Split(bytes.TrimSuffix(log, []byte("\n")), []byte("\n")) {
				fmt.Fprintln(&got, answer(p, line))
			}
			golden := "testdata/" + name + ".golden"
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
				t.Errorf("go test ./agent/policylog -update renews it\n%s", diff)
			}
		})
	}
}

// answer shows what a parser makes of a line.
func answer(p Parser, line []byte) string {
	o := flow.Observation{Time: 1}
	ok, err := p.Parse(line, &o)
	switch {
	case err != nil:
		return "error: " + err.Error()
	case !ok:
		return "-"
	}
	when := "when read"
	if o.Time != 1 {
		when = time.Unix(0, o.Time).UTC().Format("2006-01-02T15:04:05.999999999Z")
	}
	s := fmt.Sprintf("%s %s %s %s %s %d -> %s %d", when, o.Source, o.Verdict, o.Protocol, o.Original.Src, o.Original.SrcPort, o.Original.Dst, o.Original.DstPort)
	if o.Protocol.IsICMP() {
		s += fmt.Sprintf(" type %d code %d", o.ICMPType, o.ICMPCode)
	}
	if o.TCPFlags != 0 {
		s += " " + strings.Join(flow.TCPFlagNames(o.TCPFlags), ",")
	}
	if o.Size != 0 {
		s += fmt.Sprintf(" %d bytes", o.Size)
	}
	if told := o.Told; told != nil {
		s += fmt.Sprintf(" %s %v packets=%d", told.Direction, told.Policies, told.Packets)
		for _, e := range []*flow.Endpoint{told.Source, told.Destination} {
			if e == nil {
				s += " -"
				continue
			}
			s += fmt.Sprintf(" %s:%s/%s%s", e.Kind, e.Namespace, e.Pod, e.Node)
		}
	}
	return s
}

func BenchmarkParse(b *testing.B) {
	for name, p := range parsers() {
		log, err := os.ReadFile("testdata/" + name + ".log")
		if err != nil {
			b.Fatal(err)
		}
		line, _, _ := bytes.Cut(log, []byte("\n"))
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				o := flow.Observation{Time: 1}
				if _, err := p.Parse(line, &o); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestAVerdictIsJoinedWithTheLastPacketOfItsID(t *testing.T) {
	k := &KubeNetworkPolicies{}
	packet := func(id int, port int) []byte {
		return fmt.Appendf(nil, `{"ts":1720777151838,"msg":"Evaluating packet","id":%d,"packet":{"SrcIP":"10.0.0.1","DstIP":"10.0.0.2","Proto":"TCP","SrcPort":1,"DstPort":%d}}`, id, port)
	}
	verdict := func(id int) (flow.Observation, bool, error) {
		var o flow.Observation
		ok, err := k.Parse(fmt.Appendf(nil, `{"msg":"Packet denied by ingress policy","id":%d}`, id), &o)
		return o, ok, err
	}
	var o flow.Observation
	for _, line := range [][]byte{packet(7, 80), packet(8, 81), packet(7, 82)} { // it began anew
		if ok, err := k.Parse(line, &o); ok || err != nil {
			t.Fatalf("a packet without its verdict: %t, %v", ok, err)
		}
	}
	if o, ok, err := verdict(7); !ok || err != nil || o.Original.DstPort != 82 || o.Told.Direction != flow.DirectionIngress {
		t.Errorf("%+v, %t, %v; want the later packet", o, ok, err)
	}
	if _, ok, err := verdict(7); ok || !errors.Is(err, errKubeNetPolAlone) {
		t.Errorf("%t, %v: a packet has one verdict", ok, err)
	}
	if _, err := k.Parse(packet(8+maxPackets, 83), &o); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := verdict(8); ok || !errors.Is(err, errKubeNetPolAlone) {
		t.Errorf("%t, %v: the packet was too long ago", ok, err)
	}
}

func TestABrokenLineIsPutTogetherWithinLimits(t *testing.T) {
	c := &Container{Parser: Weave{}}
	part := []byte("2021-05-12T02:47:12.5Z stderr P " + strings.Repeat("x", maxLine/2))
	var o flow.Observation
	for range 2 {
		if ok, err := c.Parse(part, &o); ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	if ok, err := c.Parse(part, &o); ok || err == nil {
		t.Errorf("%t, %v: want an error, the line is too long", ok, err)
	}
	if len(c.part) != 0 {
		t.Error("the rest of it waits")
	}
}

func FuzzParse(f *testing.F) {
	for name := range parsers() {
		log, err := os.ReadFile("testdata/" + name + ".log")
		if err != nil {
			f.Fatal(err)
		}
		for _, line := range bytes.Split(log, []byte("\n")) {
			f.Add(line)
		}
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		for name, p := range parsers() {
			var o flow.Observation
			ok, err := p.Parse(line, &o)
			if ok && err == nil && (!o.Original.Src.IsValid() || o.Original.Src.Is4() != o.Original.Dst.Is4() || o.Event != flow.EventPacket || o.Verdict > flow.VerdictDenied) {
				t.Errorf("%s reads %q as %+v", name, line, o)
			}
		}
	})
}
