package flow

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var update = flag.Bool("update", false, "write the golden files anew")

func at(seconds int) time.Time {
	return time.Date(2026, 3, 1, 12, 0, seconds, 345e6, time.UTC)
}

// everything is a flow with every field set.
func everything() Flow {
	return Flow{
		Key: Key{
			Protocol: TCP, Src: netip.MustParseAddr("10.1.0.1"), Dst: netip.MustParseAddr("10.1.0.3"), Port: 3306,
			Verdict: VerdictDenied, Direction: DirectionEgress,
		},
		Start: at(0), End: at(9), Cluster: "prod", Node: "node-1",
		Source: &Endpoint{
			Kind: EndpointPod, Namespace: "shop", Pod: "web-6d4b-x2", Workload: Workload{"Deployment", "web"}, Node: "node-1",
			Identity: 0x1f, Labels: map[string]string{"role": "web"},
		},
		Destination: &Endpoint{
			Kind: EndpointPod, Namespace: "shop", Pod: "db-0", Workload: Workload{"StatefulSet", "db"}, Node: "node-2",
			Candidates: []string{"shop/db-0"},
		},
		SourcePort: 40000, TranslatedSrc: netip.MustParseAddr("192.168.7.1"),
		Service: &Service{Addr: netip.MustParseAddr("10.96.0.33"), Port: 3306, Namespace: "shop", Name: "db"},
		Reason:  ReasonLogged, Expected: VerdictDenied, Assessment: AssessmentEnforced, Caveat: CaveatRecent,
		Policies: []PolicyRef{{Kind: "NetworkPolicy", Namespace: "shop", Name: "db-policy", Rule: "ingress[0]", Side: "ingress"}},
		Sources:  SourceNFLOG | SourceConntrack, Connections: 3,
		Sent: Counters{3, 180}, Received: Counters{2, 100}, Counted: true, TCPFlags: TCPSyn | TCPAck,
	}
}

func samples() []Flow {
	bare := Flow{Key: Key{Protocol: UDP, Src: netip.MustParseAddr("10.1.0.1"), Dst: netip.MustParseAddr("fd00::3"), Port: 53}, Start: at(1), End: at(1)}
	ping := bare
	ping.Protocol, ping.Port, ping.Verdict = ICMP, ICMPPort(8, 0), VerdictUnanswered
	outside := bare
	outside.Protocol, outside.Port = 47, 0
	outside.Destination = &Endpoint{Kind: EndpointOutside}
	outside.Source = &Endpoint{Kind: EndpointAPIServer}
	silent := bare
	silent.Counted = true // counted, and nothing moved: zero is said
	named := Flow{        // by a plugin that aggregates
		Key: Key{Protocol: TCP, Port: 80, Verdict: VerdictAllowed, Direction: DirectionIngress}, Start: at(1), End: at(2), Node: "node-1",
		Source:      &Endpoint{Kind: EndpointPod, Namespace: "shop", Workload: Workload{"Deployment", "web"}},
		Destination: &Endpoint{Kind: EndpointOutside, Workload: Workload{"Network", "pub"}},
		Service:     &Service{Port: 80, Namespace: "shop", Name: "db"}, Sources: SourceFelix | SourceHubble | SourceLog | SourceKernelLog,
	}
	pinged := ping
	pinged.Port = ICMPPort(ICMPUnknown, ICMPUnknown)
	return []Flow{everything(), bare, ping, outside, silent, named, pinged}
}

func TestJSON(t *testing.T) {
	var got bytes.Buffer
	for _, f := range samples() {
		b, err := json.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		got.Write(append(b, '\n'))
	}
	const golden = "testdata/flows.jsonl"
	if *update {
		if err := os.WriteFile(golden, got.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("go test ./flow -update renews it\n%s", diff)
	}
}

func TestJSONIsReadBack(t *testing.T) {
	for _, want := range samples() {
		b, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got Flow
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("%s\n%s", b, diff)
		}
	}
}

func TestJSONNamesWhatCannotBeRead(t *testing.T) {
	good, err := json.Marshal(everything())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ old, new, want string }{
		{`"denied"`, `"perhaps"`, `parse verdict "perhaps"`},
		{`"tcp"`, `"tcq"`, `parse protocol "tcq"`},
		{`"10.1.0.3"`, `"10.1.0.300"`, `10.1.0.300`},
		{`"egress"`, `"sideways"`, `direction: unknown value "sideways"`},
		{`"enforced"`, `"maybe"`, `assessment: unknown value "maybe"`},
		{`"logged"`, `"heard"`, `reason: unknown value "heard"`},
		{`"2026-03-01T12:00:00.345Z"`, `"noon"`, `noon`},
		{`"000000000000001f"`, `"xyz"`, `xyz`},
	} {
		var f Flow
		err := json.Unmarshal([]byte(strings.Replace(string(good), c.old, c.new, 1)), &f)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one that names %s", c.new, err, c.want)
		}
	}
}

func FuzzJSON(f *testing.F) {
	for _, s := range samples() {
		b, err := json.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var a, again Flow
		if json.Unmarshal(b, &a) != nil {
			return
		}
		first, err := json.Marshal(a)
		if err != nil {
			return // a year beyond 9999
		}
		if err := json.Unmarshal(first, &again); err != nil {
			t.Fatalf("%s cannot be read back: %v", first, err)
		}
		second, err := json.Marshal(again)
		if err != nil || !bytes.Equal(first, second) {
			t.Fatalf("changes when read back (%v):\n%s\n%s", err, first, second)
		}
	})
}

func TestParsing(t *testing.T) {
	verdicts := map[string]Verdict{
		"denied": VerdictDenied, "DROPPED": VerdictDenied, "deny": VerdictDenied, "Drop": VerdictDenied, "rejected": VerdictDenied,
		"allowed": VerdictAllowed, "FORWARDED": VerdictAllowed, "allow": VerdictAllowed, "accepted": VerdictAllowed,
		"unanswered": VerdictUnanswered, "Unknown": VerdictUnknown,
	}
	for s, want := range verdicts {
		if got, err := ParseVerdict(s); err != nil || got != want {
			t.Errorf("ParseVerdict(%q) is %v, %v", s, got, err)
		}
	}
	protocols := map[string]Protocol{"TCP": TCP, "udp": UDP, "Sctp": SCTP, "icmp": ICMP, "ICMPv4": ICMP, "icmpv6": ICMPv6, "47": 47, "255": 255}
	for s, want := range protocols {
		if got, err := ParseProtocol(s); err != nil || got != want {
			t.Errorf("ParseProtocol(%q) is %v, %v", s, got, err)
		}
	}
	for p := range 256 {
		if got, err := ParseProtocol(Protocol(p).String()); err != nil || got != Protocol(p) {
			t.Errorf("protocol %d is written %s and read as %d, %v", p, Protocol(p), got, err)
		}
	}
	for name, err := range map[string]error{
		"verdict": second(ParseVerdict("maybe")), "protocol": second(ParseProtocol("256")), "empty protocol": second(ParseProtocol("")),
		"direction": second(ParseDirection("up")), "assessment": second(ParseAssessment("so-so")),
	} {
		if err == nil || !strings.Contains(err.Error(), "want ") {
			t.Errorf("%s: error %v, want one that says what is possible", name, err)
		}
	}
	if d, err := ParseDirection("Ingress"); err != nil || d != DirectionIngress {
		t.Errorf("ParseDirection(Ingress) is %v, %v", d, err)
	}
	if a, err := ParseAssessment("UNENFORCED"); err != nil || a != AssessmentUnenforced {
		t.Errorf("ParseAssessment(UNENFORCED) is %v, %v", a, err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestTheZeroVerdictIsUnknown(t *testing.T) {
	var f Flow
	if f.Verdict.String() != "unknown" || f.Expected.String() != "unknown" {
		t.Errorf("an empty flow is %s, expected %s", f.Verdict, f.Expected)
	}
}
