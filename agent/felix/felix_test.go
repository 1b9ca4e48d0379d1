package felix

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/proto/goldmane"
)

var update = flag.Bool("update", false, "write the golden file anew")

// refused is a flow as Felix reports it: a Kubernetes policy isolates the
// destination, and the end of its tier refuses.
func refused() *goldmane.Flow {
	return &goldmane.Flow{
		StartTime: 1_700_000_000, EndTime: 1_700_000_015, PacketsIn: 3, BytesIn: 180, NumConnectionsStarted: 2,
		SourceLabels: []string{"app=web", "pod-template-hash=6d4b75cb6d"}, DestLabels: []string{"app=db", "controller-revision-hash=db-1"},
		Key: &goldmane.FlowKey{
			SourceName: "web-6d4b75cb6d-*", SourceNamespace: "shop", SourceType: goldmane.EndpointType_WorkloadEndpoint,
			DestName: "db-*", DestNamespace: "shop", DestType: goldmane.EndpointType_WorkloadEndpoint, DestPort: 3306,
			DestServiceName: "db", DestServiceNamespace: "shop", DestServicePort: 3306, DestServicePortName: "-",
			Proto: "tcp", Reporter: goldmane.Reporter_Dst, Action: goldmane.Action_Deny,
			Policies: &goldmane.PolicyTrace{EnforcedPolicies: []*goldmane.PolicyHit{
				{Kind: goldmane.PolicyKind_GlobalNetworkPolicy, Name: "first", Tier: "security", Action: goldmane.Action_Pass},
				{Kind: goldmane.PolicyKind_EndOfTier, Tier: "default", Action: goldmane.Action_Deny, Trigger: &goldmane.PolicyHit{
					Kind: goldmane.PolicyKind_NetworkPolicy, Namespace: "shop", Name: "knp.default.db", Tier: "default",
				}},
			}},
		},
	}
}

// samples are flows of every kind.
func samples() []*goldmane.Flow {
	allowed := refused()
	allowed.Key.Action, allowed.Key.Reporter, allowed.PacketsOut, allowed.BytesOut = goldmane.Action_Allow, goldmane.Reporter_Src, 5, 400
	allowed.Key.DestType, allowed.Key.DestName, allowed.Key.DestNamespace, allowed.DestLabels = goldmane.EndpointType_Network, "pub", "-", nil
	allowed.Key.DestServiceName = "-"
	allowed.Key.Policies.EnforcedPolicies = []*goldmane.PolicyHit{{Kind: goldmane.PolicyKind_CalicoNetworkPolicy, Namespace: "shop", Name: "out", RuleIndex: 2, Action: goldmane.Action_Allow}}
	half := proto.Clone(allowed).(*goldmane.Flow) // no reply
	half.PacketsIn, half.BytesIn = 0, 0
	half.Key.DestType, half.Key.DestName = goldmane.EndpointType_NetworkSet, "partners"
	host := refused()
	host.Key.Action, host.Key.Proto, host.EndTime = goldmane.Action_Allow, "icmp", 0
	host.Key.SourceType, host.Key.SourceName, host.Key.SourceNamespace, host.SourceLabels = goldmane.EndpointType_HostEndpoint, "worker-2", "-", nil
	host.Key.Policies.EnforcedPolicies = []*goldmane.PolicyHit{
		{Kind: goldmane.PolicyKind_ClusterNetworkPolicyAdminTier, Name: "admin", Action: goldmane.Action_Allow},
		{Kind: goldmane.PolicyKind_Profile, Name: "kns.shop", Action: goldmane.Action_Allow},
	}
	return []*goldmane.Flow{refused(), allowed, half, host}
}

func TestFlowsArriveAsOurs(t *testing.T) {
	var got bytes.Buffer
	for _, g := range samples() {
		f, err := convert(g, "worker-1")
		if err != nil {
			t.Fatal(err)
		}
		f.Node = "worker-1"
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
		t.Errorf("go test ./agent/felix -update renews it\n%s", diff)
	}
}

func TestFlowsThatCannotBe(t *testing.T) {
	for want, spoil := range map[string]func(*goldmane.Flow){
		"no key":                func(g *goldmane.Flow) { g.Key = nil },
		`"x" is no protocol`:    func(g *goldmane.Flow) { g.Key.Proto = "x" },
		"port 70000":            func(g *goldmane.Flow) { g.Key.DestPort = 70000 },
		"not of this age":       func(g *goldmane.Flow) { g.StartTime = 5 },
		"an end has no type":    func(g *goldmane.Flow) { g.Key.DestType = 0 },
		"no reporter":           func(g *goldmane.Flow) { g.Key.Reporter = 0 },
		"want 0 to 65535":       func(g *goldmane.Flow) { g.Key.DestPort = -1 },
		"times 1 to 1700000015": func(g *goldmane.Flow) { g.StartTime = 1 },
	} {
		g := refused()
		spoil(g)
		if _, err := convert(g, "n"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
}

// server is a source that runs, and what it reported.
type server struct {
	options Options
	flows   chan flow.Flow
	gaps    chan flow.Gap
	said    *bytes.Buffer
	source  *Source
	stop    func()
}

func newServer(t *testing.T) *server {
	s := &server{flows: make(chan flow.Flow, 1000), gaps: make(chan flow.Gap, 100), said: &bytes.Buffer{}}
	s.options = Options{
		Node: "worker-1", Path: filepath.Join(t.TempDir(), "flows", "flows.sock"), Allowed: true, StateDir: t.TempDir(),
		Report: func(flows []flow.Flow) {
			for _, f := range flows {
				s.flows <- f
			}
		},
		Lost: func(g flow.Gap) { s.gaps <- g }, Logger: slog.New(slog.NewTextHandler(s.said, nil)),
	}
	return s
}

func (s *server) run(t *testing.T) {
	t.Helper()
	source, err := Open(s.options)
	if err != nil {
		t.Fatal(err)
	}
	s.source = source
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- source.Run(ctx) }()
	s.stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// connect is Felix's side: it sends flows, and waits for each receipt.
func (s *server) connect(t *testing.T, flows ...*goldmane.Flow) (end func()) {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+s.options.Path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := goldmane.NewFlowCollectorClient(conn).Connect(t.Context(), grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range flows {
		if err := stream.Send(&goldmane.FlowUpdate{Flow: g}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	return func() { _ = conn.Close() }
}

func TestFelixConnectsAgainAndCountsOnce(t *testing.T) {
	s := newServer(t)
	s.run(t)
	later := refused()
	later.StartTime, later.EndTime = later.StartTime+15, later.EndTime+15
	end := s.connect(t, refused(), later)
	end()
	// It sends again what it still has, also to an agent that was restarted.
	end = s.connect(t, refused(), later)
	end()
	s.stop()
	s.run(t)
	last := refused()
	last.StartTime += 30
	end = s.connect(t, refused(), later, last)
	end()
	s.stop()
	close(s.flows)
	var starts []int64
	for f := range s.flows {
		starts = append(starts, f.Start.Unix())
	}
	if want := []int64{1_700_000_000, 1_700_000_015, 1_700_000_030}; !cmp.Equal(starts, want) {
		t.Errorf("flows from %v, want %v", starts, want)
	}
	if _, err := os.Stat(s.options.Path); err == nil {
		t.Error("the socket was left behind")
	}
}

func TestWhereConntrackSeesOnlyRefusalsAreTaken(t *testing.T) {
	s := newServer(t)
	s.options.Allowed = false
	s.run(t)
	s.connect(t, samples()...)()
	s.stop()
	if f := <-s.flows; len(s.flows) > 0 || f.Verdict != flow.VerdictDenied {
		t.Errorf("%d more flows; the first is %s", len(s.flows), f.Verdict)
	}
}

func TestFlowsThatCannotBeReadAreCountedAndShownOnce(t *testing.T) {
	s := newServer(t)
	s.run(t)
	s.connect(t, &goldmane.Flow{}, nil, refused())()
	s.stop()
	if n := s.source.Malformed(); n != 2 || len(s.flows) != 1 || strings.Count(s.said.String(), "cannot be read") != 1 {
		t.Errorf("%d malformed, %d flows, said %q", n, len(s.flows), s.said)
	}
}

func TestASocketThatAnotherServesIsLeftAlone(t *testing.T) {
	s := newServer(t)
	s.run(t)
	if _, err := Open(s.options); err == nil || !strings.Contains(err.Error(), "another program serves") {
		t.Errorf("error %v, want one that says so", err)
	}
	s.connect(t, refused())() // the first still serves
	s.stop()
	// What a killed program left behind is no one's.
	if err := os.WriteFile(s.options.Path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.run(t)
	s.stop()
}

func TestADirectoryThatCannotBeMadeIsSaidPlainly(t *testing.T) {
	s := newServer(t)
	if err := os.WriteFile(filepath.Dir(s.options.Path), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(s.options); err == nil || !strings.Contains(err.Error(), "mount /var/run/calico") {
		t.Errorf("error %v, want one that says what to do", err)
	}
	if _, err := Open(Options{}); err == nil {
		t.Error("opened without options")
	}
}

func TestTheTimeWithoutFelixIsAGap(t *testing.T) {
	s := newServer(t)
	synctest.Test(t, func(t *testing.T) {
		source := &Source{o: s.options, seen: &seen{flows: make(map[uint64]int64)}}
		ctx, cancel := context.WithCancel(t.Context())
		go source.watch(ctx)
		time.Sleep(2*patience + time.Second)
		source.connected.Store(1)
		time.Sleep(2 * patience)
		cancel()
		synctest.Wait()
	})
	if len(s.gaps) != 2 {
		t.Fatalf("%d gaps, want one for each time without Felix", len(s.gaps))
	}
	a, b := <-s.gaps, <-s.gaps
	if a.Kind != flow.GapSource || a.End.Sub(a.Start) != patience || !b.Start.Equal(a.End) {
		t.Errorf("gaps %+v and %+v", a, b)
	}
	if strings.Count(s.said.String(), "flowLogsLocalReporter") != 1 {
		t.Errorf("said %q, want the switch once", s.said)
	}
}

func TestWhatWasSeenIsForgottenInTime(t *testing.T) {
	s := &seen{flows: make(map[uint64]int64)}
	now := time.Unix(1_700_000_000, 0)
	if !s.first(refused(), now) || s.first(refused(), now) {
		t.Error("a flow is new once")
	}
	dir := t.TempDir()
	if err := s.save(dir, now.Add(felixMemory/2)); err != nil {
		t.Fatal(err)
	}
	again, err := loadSeen(dir)
	if err != nil || again.first(refused(), now) {
		t.Errorf("it was not kept: %v", err)
	}
	if err := s.save(dir, now.Add(2*felixMemory)); err != nil || len(s.flows) != 0 {
		t.Errorf("%d flows are remembered, %v", len(s.flows), err)
	}
	if err := os.WriteFile(filepath.Join(dir, seenFile), []byte("null"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := loadSeen(dir); err == nil || s.flows == nil {
		t.Errorf("a damaged file: %v, %v", s, err)
	}
}

func FuzzConvert(f *testing.F) {
	for _, g := range samples() {
		b, err := proto.Marshal(g)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var g goldmane.Flow
		if proto.Unmarshal(b, &g) != nil {
			return
		}
		got, err := convert(&g, "n")
		if err == nil && (got.End.Before(got.Start) || got.Source == nil || got.Destination == nil || got.Verdict > flow.VerdictDenied) {
			t.Errorf("%v is read as %+v", &g, got)
		}
	})
}
