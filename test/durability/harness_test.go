package durability

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
	"github.com/flowaudit/flowaudit/proto/zstd"
	"github.com/flowaudit/flowaudit/test/netlab"
)

// patience bounds how long something may take that must come.
const patience = 90 * time.Second

var binaries string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "flowaudit-crash-")
	if err == nil {
		binaries = dir
		for name, cgo := range map[string]string{"flowaudit-agent": "0", "flowaudit-collector": "1"} {
			build := exec.Command("go", "build", "-o", filepath.Join(dir, name), "github.com/flowaudit/flowaudit/cmd/"+name)
			build.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
			build.Stderr = os.Stderr
			if err == nil {
				err = build.Run()
			}
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "build the programs:", err)
		os.Exit(1)
	}
	zstd.Register()
	code := m.Run()
	_ = os.RemoveAll(dir) // a temporary directory
	os.Exit(code)
}

// program is one that can be killed and started again.
type program struct {
	t    *testing.T
	name string
	make func() *exec.Cmd
	cmd  *exec.Cmd
	done chan error
	log  logBuffer
}

// logBuffer keeps what a program says over all of its runs.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (p *program) start() {
	p.t.Helper()
	p.cmd = p.make()
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatalf("start %s: %v", p.name, err)
	}
	p.done = make(chan error, 1)
	go func(cmd *exec.Cmd, done chan error) { done <- cmd.Wait() }(p.cmd, p.done)
}

// kill ends it as a crash does.
func (p *program) kill() {
	p.t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		p.t.Errorf("kill %s: it has ended by itself: %v", p.name, err)
	}
	<-p.done
	p.done = nil
}

// stop ends it as a shutdown does.
func (p *program) stop() {
	p.t.Helper()
	if p.done == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself, which Wait tells
	select {
	case err := <-p.done:
		if err != nil {
			p.t.Errorf("%s ended with %v", p.name, err)
		}
	case <-time.After(patience):
		p.t.Errorf("%s does not stop", p.name)
		_ = p.cmd.Process.Kill() // the test has failed already
	}
	p.done = nil
}

func newProgram(t *testing.T, name string, make func() *exec.Cmd) *program {
	p := &program{t: t, name: name, make: make}
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			log := p.log.String()
			t.Logf("the end of what %s said:\n%s", name, log[max(0, len(log)-20_000):])
		}
	})
	return p
}

// collector makes a collector on a socket.
func collector(t *testing.T, socket, data string) *program {
	return newProgram(t, "collector", func() *exec.Cmd {
		return exec.Command(filepath.Join(binaries, "flowaudit-collector"), "--listen", "unix:"+socket, "--data", data)
	})
}

// agent makes an agent that reads what the lab logs.
func agent(t *testing.T, l *lab, socket, state string, args ...string) *program {
	args = append([]string{
		"--collector", "unix:" + socket, "--node-name", "n1", "--conntrack=false", "--window", "1s",
		"--nflog-group", "100=denied", "--nflog-group", "101=allowed", "--state-dir", state,
	}, args...)
	return newProgram(t, "agent", func() *exec.Cmd {
		return l.Command(context.WithoutCancel(t.Context()), filepath.Join(binaries, "flowaudit-agent"), args...)
	})
}

// lab is a namespace whose datagrams to 10.99.0.0/16 are logged: refused ones
// to odd ports, allowed ones to even ones.
type lab struct{ *netlab.Namespace }

func newLab(t *testing.T) *lab {
	t.Helper()
	netlab.NeedRoot(t)
	n, err := netlab.New("crash")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := n.Batch("addr add 10.98.0.1/32 dev lo", "route add 10.99.0.0/16 dev lo src 10.98.0.1"); err != nil {
		t.Fatal(err)
	}
	if err := n.NFT("table inet lab {\n chain o {\n type filter hook output priority 0;\n" +
		" ip daddr 10.99.0.0/16 udp dport & 1 == 1 log group 100 queue-threshold 20 drop\n ip daddr 10.99.0.0/16 log group 101 queue-threshold 20 drop\n }\n}"); err != nil {
		t.Fatal(err)
	}
	return &lab{n}
}

// dial opens a connection to a collector.
func dial(t *testing.T, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // nothing is sent on it any more
	return conn
}

// until waits for a condition.
func until(t *testing.T, what string, want func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !want(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// answers waits until a collector takes connections.
func answers(t *testing.T, socket string) {
	t.Helper()
	until(t, "the collector answers", func() bool {
		c, err := net.Dial("unix", socket)
		if err != nil {
			return false
		}
		_ = c.Close()
		return true
	})
}

// size sums the files of a directory.
func size(t *testing.T, dir string) (total int64) {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, "*.spool"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if info, err := os.Stat(f); err == nil { // it may be gone by now
			total += info.Size()
		}
	}
	return total
}

// drained waits until a spool holds no batch.
func drained(t *testing.T, spool string) {
	t.Helper()
	until(t, "the spool is empty", func() bool { return size(t, spool) < 64 })
}

// rows asks a collector.
func rows(t *testing.T, conn *grpc.ClientConn, sql string) [][]any {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stream, err := flowauditv1.NewQueryClient(conn).Select(ctx, &flowauditv1.SelectRequest{Query: sql, MaxRows: 100_000}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	var all [][]any
	for {
		m, err := stream.Recv()
		if err != nil {
			if strings.Contains(err.Error(), "EOF") {
				return all
			}
			t.Fatalf("%s: %v", sql, err)
		}
		for _, r := range m.GetRows() {
			all = append(all, r.AsSlice())
		}
	}
}
