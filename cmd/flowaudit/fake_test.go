package main

import (
	"context"
	"errors"
	"flag"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"

	"github.com/flowaudit/flowaudit/agent"
	"github.com/flowaudit/flowaudit/flow"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
	"github.com/flowaudit/flowaudit/proto/zstd"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv("FLOWAUDIT_TEST_MAIN") != "" {
		main() // a test runs this binary as the command
		return
	}
	zstd.Register()
	os.Exit(m.Run())
}

// collector answers as a test says, and notes what it was asked.
type collector struct {
	flowauditv1.UnimplementedQueryServer
	observe  []*flowauditv1.ObserveResponse
	run      []*flowauditv1.RunResponse
	list     *flowauditv1.ListResponse
	status   *flowauditv1.StatusResponse
	err      error // at the end of an answer
	hang     bool  // the answer has no end
	recorded *recorded
	objects  map[int64][][]byte // by the time that is asked for; 0 is now
	limits   []string
	alerts   alertsFake

	mu       sync.Mutex
	observed *flowauditv1.ObserveRequest
	ran      *flowauditv1.RunRequest
	asked    *flowauditv1.SelectRequest
}

func (c *collector) Observe(req *flowauditv1.ObserveRequest, stream flowauditv1.Query_ObserveServer) error {
	c.mu.Lock()
	c.observed = req
	c.mu.Unlock()
	for _, m := range c.observe {
		if err := stream.Send(m); err != nil {
			return err
		}
	}
	if c.hang {
		<-stream.Context().Done()
	}
	return c.err
}

func (c *collector) Run(req *flowauditv1.RunRequest, stream flowauditv1.Query_RunServer) error {
	c.mu.Lock()
	c.ran = req
	c.mu.Unlock()
	for _, m := range c.run {
		if err := stream.Send(m); err != nil {
			return err
		}
	}
	return c.err
}

func (c *collector) Select(req *flowauditv1.SelectRequest, stream flowauditv1.Query_SelectServer) error {
	c.mu.Lock()
	c.asked = req
	c.mu.Unlock()
	for _, m := range c.run {
		if err := stream.Send(m); err != nil {
			return err
		}
	}
	return c.err
}

func (c *collector) List(context.Context, *flowauditv1.ListRequest) (*flowauditv1.ListResponse, error) {
	return c.list, c.err
}

func (c *collector) Status(context.Context, *flowauditv1.StatusRequest) (*flowauditv1.StatusResponse, error) {
	return c.status, c.err
}

// listen serves until the test ends, and returns the address.
func (c *collector) listen(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "flowaudit") // a test's own directory has its name, which is no URL
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "c.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	flowauditv1.RegisterQueryServer(s, c)
	flowauditv1.RegisterAlertsServer(s, c.alerts)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return "unix:" + path
}

// here is where and when the commands of tests run.
var here = time.Date(2026, 3, 1, 13, 0, 0, 0, time.FixedZone("CET", 3600))

// result is what a command leaves behind.
type result struct {
	stdout, stderr string
	code           int
}

// flowaudit runs the command against a collector; without one, against what
// args and env say.
func flowaudit(t *testing.T, c *collector, env map[string]string, args ...string) result {
	t.Helper()
	if c != nil {
		env = map[string]string{"FLOWAUDIT_SERVER": c.listen(t)}
	}
	var stdout, stderr strings.Builder
	code := run(t.Context(), environment{
		name: "flowaudit", args: args, stdout: &stdout, stderr: &stderr,
		getenv: func(name string) string { return env[name] }, now: func() time.Time { return here },
		inspect: func() (agent.Node, error) { return agent.Node{}, errors.New("this is no node") },
	})
	return result{stdout.String(), stderr.String(), code}
}

// golden compares with testdata/NAME.txt.
func golden(t *testing.T, name, got string) {
	t.Helper()
	if filepath.Ext(name) == "" {
		name += ".txt"
	}
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v: go test ./cmd/flowaudit -update writes it", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs; go test ./cmd/flowaudit -update writes it anew:\n%s", path, diff)
	}
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// at is a moment shortly before here.
func at(seconds float64) time.Time {
	return time.Date(2026, 3, 1, 11, 0, 0, 0, time.UTC).Add(time.Duration(seconds * float64(time.Second)))
}

// sampleFlows has one flow of each kind that looks different.
func sampleFlows() []flow.Flow {
	web := &flow.Endpoint{
		Kind: flow.EndpointPod, Namespace: "shop", Pod: "web-6d4b75cb6d-x2x9q", Workload: flow.Workload{Kind: "Deployment", Name: "web"},
		Node: "node-1", Identity: 31, Labels: map[string]string{"role": "web", "app": "shop"},
	}
	db := &flow.Endpoint{Kind: flow.EndpointPod, Namespace: "shop", Pod: "db-0", Workload: flow.Workload{Kind: "StatefulSet", Name: "db"}, Node: "node-2"}
	key := func(p flow.Protocol, src, dst string, port uint16, v flow.Verdict, d flow.Direction) flow.Key {
		return flow.Key{Protocol: p, Src: addr(src), Dst: addr(dst), Port: port, Verdict: v, Direction: d}
	}
	return []flow.Flow{
		{
			Key:   key(flow.TCP, "10.1.0.1", "10.1.0.3", 3306, flow.VerdictDenied, flow.DirectionEgress),
			Start: at(0.049), End: at(3), Cluster: "prod", Node: "node-1", Source: web, Destination: db, SourcePort: 60752,
			Service: &flow.Service{Addr: addr("10.96.0.33"), Port: 3306, Namespace: "shop", Name: "db"},
			Reason:  flow.ReasonLogged, Expected: flow.VerdictDenied, Assessment: flow.AssessmentEnforced,
			Policies: []flow.PolicyRef{{Kind: "NetworkPolicy", Namespace: "shop", Name: "db-policy", Side: "ingress"}},
			Sources:  flow.SourceNFLOG, Connections: 3, Counted: true, Sent: flow.Counters{Packets: 3, Bytes: 180}, TCPFlags: flow.TCPSyn,
		},
		{
			Key:   key(flow.TCP, "fd00:1::1", "fd00:1::3", 8080, flow.VerdictAllowed, flow.DirectionEgress),
			Start: at(1), End: at(9), Cluster: "prod", Node: "node-1", Source: web, Destination: db, SourcePort: 50394,
			Service: &flow.Service{Addr: addr("fd00:96::1"), Port: 80},
			Reason:  flow.ReasonReply, Sources: flow.SourceConntrack, Connections: 1, Counted: true,
			Sent: flow.Counters{Packets: 10, Bytes: 1023}, Received: flow.Counters{Packets: 2000, Bytes: 3 << 20},
		},
		{
			Key:   key(flow.TCP, "10.1.0.9", "10.1.0.3", 3306, flow.VerdictAllowed, flow.DirectionIngress),
			Start: at(2), End: at(2), Cluster: "prod", Node: "node-2", Source: &flow.Endpoint{Kind: flow.EndpointAmbiguous}, Destination: db, SourcePort: 40000,
			Reason: flow.ReasonConfirmed, Expected: flow.VerdictDenied, Assessment: flow.AssessmentUnenforced, Sources: flow.SourceConntrack, Connections: 1,
		},
		{
			Key:   key(flow.UDP, "10.1.0.1", "192.0.2.7", 53, flow.VerdictUnanswered, flow.DirectionEgress),
			Start: at(4), End: at(4), Node: "node-1", Source: web, Destination: &flow.Endpoint{Kind: flow.EndpointOutside}, SourcePort: 5353,
			Reason: flow.ReasonNoReply, Connections: 2, Counted: true, Sent: flow.Counters{Packets: 2, Bytes: 120},
		},
		{
			Key:   key(flow.ICMP, "192.168.7.1", "10.1.0.3", flow.ICMPPort(8, 0), flow.VerdictUnknown, flow.DirectionUnknown),
			Start: at(5), End: at(5), Source: &flow.Endpoint{Kind: flow.EndpointNode, Node: "node-1"}, Connections: 1,
		},
	}
}

// coverageOf is the coverage of the hour before here, one node an argument.
func coverageOf(nodes ...flow.NodeCoverage) *flowauditv1.Coverage {
	return flowauditv1.FromCoverage(flow.Coverage{Since: here.Add(-time.Hour), Until: here, Nodes: nodes})
}

var wholeHour = flow.NodeCoverage{Node: "node-1", Covered: time.Hour}

// answering gives the sample flows and their coverage.
func answering() *collector {
	return &collector{observe: []*flowauditv1.ObserveResponse{
		{Flows: flowauditv1.FromFlows(sampleFlows()[:2])}, {Flows: flowauditv1.FromFlows(sampleFlows()[2:])}, {Coverage: coverageOf(wholeHour)},
	}}
}
