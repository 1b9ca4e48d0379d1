package kernel

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/flowaudit/flowaudit/flow"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
	"github.com/flowaudit/flowaudit/proto/zstd"
	"github.com/flowaudit/flowaudit/test/netlab"
)

// patience bounds how long a report may take that must come.
const patience = 30 * time.Second

var agentBinary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "flowaudit-kernel-")
	if err == nil {
		agentBinary = filepath.Join(dir, "flowaudit-agent")
		build := exec.Command("go", "build", "-o", agentBinary, "github.com/flowaudit/flowaudit/cmd/flowaudit-agent")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		build.Stderr = os.Stderr
		err = build.Run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "build the agent:", err)
		os.Exit(1)
	}
	zstd.Register()
	code := m.Run()
	_ = os.RemoveAll(dir) // a temporary directory
	os.Exit(code)
}

// sink is a collector that keeps what agents report.
type sink struct {
	flowauditv1.UnimplementedIngestServer
	t    *testing.T
	addr string

	mu      sync.Mutex
	changed chan struct{} // closed by the next report
	batches []flow.Batch
}

func newSink(t *testing.T) *sink {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &sink{t: t, addr: "unix:" + path, changed: make(chan struct{})}
	server := grpc.NewServer(grpc.MaxRecvMsgSize(64 << 20))
	flowauditv1.RegisterIngestServer(server, s)
	go func() { _ = server.Serve(l) }() // ends with Stop
	t.Cleanup(server.Stop)
	return s
}

func (s *sink) Report(stream flowauditv1.Ingest_ReportServer) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		b, invalid, first, err := m.ToBatch()
		if err != nil || invalid > 0 {
			s.t.Errorf("the agent's batch has %d invalid flows: %v, %v", invalid, first, err)
		}
		s.mu.Lock()
		s.batches = append(s.batches, b)
		close(s.changed)
		s.changed = make(chan struct{})
		s.mu.Unlock()
		if err := stream.Send(&flowauditv1.Ack{Key: m.Key}); err != nil {
			return err
		}
	}
}

// until waits for reports that satisfy want.
func (s *sink) until(what string, want func([]flow.Batch) bool) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	for {
		s.mu.Lock()
		batches, changed := slices.Clip(s.batches), s.changed
		s.mu.Unlock()
		if want(batches) {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			s.t.Fatalf("never reported: %s; reported were:\n%s", what, show(rows(batches, nil)))
		}
	}
}

// reported waits until an agent sends its first batch: its sources are open.
func (s *sink) reported(node string) {
	s.t.Helper()
	s.until("node "+node, func(all []flow.Batch) bool {
		return slices.ContainsFunc(all, func(b flow.Batch) bool { return b.Node == node })
	})
}

func (s *sink) all() []flow.Batch {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.batches)
}

// row is what a test expects of one flow key, over all windows and both nodes.
type row struct {
	Protocol    flow.Protocol
	Src, Dst    string
	Port        uint16
	Verdict     flow.Verdict
	Reason      flow.Reason
	Connections uint64
}

func (r row) String() string {
	return fmt.Sprintf("%s %s → %s:%d %s (%s) ×%d", r.Protocol, r.Src, r.Dst, r.Port, r.Verdict, r.Reason, r.Connections)
}

func show(all []row) string {
	var b strings.Builder
	for _, r := range all {
		fmt.Fprintln(&b, " ", r)
	}
	return b.String()
}

// flows are the merged flows that pass, in order of time.
func flows(batches []flow.Batch, pass func(*flow.Flow) bool) []flow.Flow {
	var all []flow.Flow
	for _, b := range batches {
		all = append(all, b.Flows...)
	}
	return slices.DeleteFunc(flow.Merge(all, 15*time.Second), func(f flow.Flow) bool { return pass != nil && !pass(&f) })
}

// rows sums the flows up.
func rows(batches []flow.Batch, pass func(*flow.Flow) bool) []row {
	sum := make(map[row]uint64)
	for _, f := range flows(batches, pass) {
		sum[row{Protocol: f.Protocol, Src: f.Src.String(), Dst: f.Dst.String(), Port: f.Port, Verdict: f.Verdict, Reason: f.Reason}] += f.Connections
	}
	var all []row
	for r, n := range sum {
		r.Connections = n
		if n > 0 { // a window in which a connection only went on counts none
			all = append(all, r)
		}
	}
	slices.SortFunc(all, func(a, b row) int { return cmp.Compare(a.String(), b.String()) })
	return all
}

// port selects the flows of one port.
func port(n uint16) func(*flow.Flow) bool {
	return func(f *flow.Flow) bool { return f.Port == n }
}

// agent is a running agent.
type agent struct {
	t    *testing.T
	cmd  *exec.Cmd
	log  bytes.Buffer
	done chan error
}

// startAgent runs an agent in a namespace. It is stopped with the test.
func startAgent(t *testing.T, ns *netlab.Namespace, s *sink, env []string, args ...string) *agent {
	t.Helper()
	args = append([]string{"--collector", s.addr, "--window", "1s", "--unanswered-after", "2s", "--dump-interval", "1s"}, args...)
	a := &agent{t: t, cmd: ns.Command(context.WithoutCancel(t.Context()), agentBinary, args...), done: make(chan error, 1)}
	a.cmd.Env = append(os.Environ(), env...)
	a.cmd.Stdout, a.cmd.Stderr = &a.log, &a.log
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { a.done <- a.cmd.Wait() }()
	t.Cleanup(func() {
		a.stop()
		if t.Failed() {
			t.Logf("the agent's log:\n%s", a.log.String())
		}
	})
	return a
}

// stop ends the agent as a node's shutdown does: it hands over what it has.
func (a *agent) stop() { a.end(syscall.SIGTERM, false) }

func (a *agent) end(signal syscall.Signal, fails bool) {
	a.t.Helper()
	if a.done == nil {
		return
	}
	_ = a.cmd.Process.Signal(signal) // it may have ended by itself, which Wait tells
	select {
	case err := <-a.done:
		if (err != nil) != fails {
			a.t.Errorf("agent ended with %v:\n%s", err, a.log.String())
		}
	case <-time.After(patience):
		a.t.Errorf("agent does not stop:\n%s", a.log.String())
		_ = a.cmd.Process.Kill() // the test has failed already
	}
	a.done = nil
}

// manifests names the pods of nodes as an API server would.
func manifests(t *testing.T, nodes map[string]*netlab.Node) string {
	t.Helper()
	var b strings.Builder
	fmt.Fprint(&b, "apiVersion: v1\nkind: Namespace\nmetadata: {name: lab}\n")
	for name, n := range nodes {
		for i, p := range n.Pods {
			fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s-%d, namespace: lab}\nspec: {nodeName: %s}\nstatus: {phase: Running, podIPs: [{ip: %q}, {ip: %q}]}\n",
				name, i+1, name, p.IPv4, p.IPv6)
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "lab.yaml"), []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// changedNow is closed by the next report.
func (s *sink) changedNow() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}
