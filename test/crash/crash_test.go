package crash

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flowaudit/flowaudit/collector/store/clickhouse/clickhousetest"
)

const (
	collectors = 3
	agents     = 5
	// shortLoad is how long agents send in one round, in which one collector
	// and then the server is killed.
	shortLoad = 6 * time.Second
	// patience bounds how long what is left may take.
	patience = 2 * time.Minute
)

var collectorBinary string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "flowaudit-crash-")
	if err == nil {
		defer os.RemoveAll(dir)
		collectorBinary = filepath.Join(dir, "flowaudit-collector")
		build := exec.Command("go", "build", "-o", collectorBinary, "github.com/flowaudit/flowaudit/cmd/flowaudit-collector")
		build.Stderr = os.Stderr
		err = build.Run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "build the collector:", err)
		return 1
	}
	return m.Run()
}

// process is a collector.
type process struct {
	t       *testing.T
	cmd     *exec.Cmd
	address string
	url     string
	log     *os.File
}

// said is what collectors have logged.
func (p *process) said() string {
	p.t.Helper()
	b, err := os.ReadFile(p.log.Name())
	if err != nil {
		p.t.Fatal(err)
	}
	return string(b)
}

func (p *process) start() {
	p.t.Helper()
	_ = os.Remove(p.address[len("unix:"):]) // one that was killed leaves its socket
	p.cmd = exec.Command(collectorBinary, "--listen", p.address, "--retain", "0")
	p.cmd.Env = append(os.Environ(), "FLOWAUDIT_STORE="+p.url)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	_ = p.cmd.Wait()
}

// startServer starts Debian's server.
func startServer(t *testing.T, o clickhousetest.Options) *clickhousetest.Server {
	t.Helper()
	server, err := clickhousetest.Start(o)
	switch {
	case errors.Is(err, exec.ErrNotFound) && os.Getenv("CI") == "":
		t.Skip("the server is not installed: make test installs it")
	case err != nil:
		t.Fatal(err)
	}
	t.Cleanup(server.Kill)
	return server
}

// load is how long agents send, in whole rounds.
func load(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("FLOWAUDIT_SOAK")
	if text == "" {
		return shortLoad
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("FLOWAUDIT_SOAK: %v", err)
	}
	return d.Round(shortLoad)
}

// startCollectors starts collectors that share a server. All are there before
// it returns: they make the tables at once.
func startCollectors(t *testing.T, server *clickhousetest.Server, n int) (all []*process, addresses []string) {
	t.Helper()
	dir := t.TempDir()
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	for i := range n {
		p := &process{t: t, address: fmt.Sprintf("unix:%s/%d.sock", dir, i), url: server.URL("flowaudit"), log: log}
		p.start()
		t.Cleanup(p.kill)
		all, addresses = append(all, p), append(addresses, p.address)
	}
	for _, a := range addresses {
		until(t, func(ctx context.Context) error { _, err := askSQL(ctx, a, "SELECT 1"); return err })
	}
	return all, addresses
}

// TestWhoeverIsKilled: three collectors share a server. While agents send, one
// collector is killed and comes back, then the server, again and again for the
// soak. Afterwards everything that was acknowledged counts once.
func TestWhoeverIsKilled(t *testing.T) {
	server := startServer(t, clickhousetest.Options{Dir: t.TempDir()})
	all, addresses := startCollectors(t, server, collectors)
	ctx, end := context.WithTimeout(t.Context(), load(t))
	defer end()
	var group sync.WaitGroup
	var senders [agents]*agent
	for i := range senders {
		senders[i] = &agent{number: i, collectors: addresses}
		group.Go(func() { senders[i].run(ctx, t) })
	}
	for round := 0; ctx.Err() == nil; round++ {
		victim := all[round%collectors]
		wait(ctx, shortLoad/4)
		victim.kill()
		wait(ctx, shortLoad/4)
		server.Kill()
		wait(ctx, shortLoad/8)
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
		victim.start()
		wait(ctx, shortLoad/4)
	}
	group.Wait()
	var want totals
	var breaks int
	for _, a := range senders {
		want.plus(a.acknowledged)
		breaks += a.breaks
	}
	t.Logf("%+v in %d batches' worth of flows, %d breaks", want, want.Batches, breaks)
	if want.Batches < agents || breaks == 0 {
		t.Errorf("%d batches were stored, and %d streams broke: nothing was tested", want.Batches, breaks)
	}
	compare(t, addresses, want)
}

// compare compares what was acknowledged with what each collector answers.
func compare(t *testing.T, addresses []string, want totals) {
	t.Helper()
	for _, a := range addresses {
		var got totals
		until(t, func(ctx context.Context) (err error) {
			if got, err = ask(ctx, a); err == nil && got.Edges < want.Edges {
				err = fmt.Errorf("edges are not summed up yet: %+v, want %+v", got, want) // newest ones may be a little old
			}
			return err
		})
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("collector at %s (-acknowledged +stored):\n%s", a, diff)
		}
	}
}

const (
	diskSize = 128 << 20
	// diskLeft is too little for an insert.
	diskLeft = 1 << 20
)

// TestAFullDisk: a server without room takes nothing, the agents are told, and
// nothing is lost when there is room again.
func TestAFullDisk(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.Mkdir(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, fmt.Sprintf("size=%d", diskSize)); err != nil {
		if os.Getenv("CI") == "" && errors.Is(err, syscall.EPERM) {
			t.Skip("mounting a disk needs root")
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(disk, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	server := startServer(t, clickhousetest.Options{Dir: t.TempDir(), Data: filepath.Join(disk, "data")})
	all, addresses := startCollectors(t, server, 1)
	ctx, end := context.WithCancel(t.Context())
	defer end()
	a := &agent{number: 1, collectors: addresses}
	ended := make(chan struct{})
	go func() { a.run(ctx, t); close(ended) }()
	until(t, func(context.Context) error { return a.has(1) })
	ballast := filepath.Join(disk, "ballast")
	fill(t, disk, ballast)
	until(t, func(context.Context) error {
		if broke := a.broke(); !strings.Contains(broke, "store batch") || !strings.Contains(strings.ToLower(broke), "space") {
			return fmt.Errorf("the agent was told %q", broke)
		}
		return nil
	})
	if said := all[0].said(); !strings.Contains(said, "batch was not stored, its agent will send it again") {
		t.Errorf("the collector does not tell:\n%s", said)
	}
	held := a.stored().Batches
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	until(t, func(context.Context) error { return a.has(held + 3) })
	end()
	<-ended
	compare(t, addresses, a.stored())
}

// fill writes a file that takes all of a disk but diskLeft, or all of it where
// the server took some meanwhile.
func fill(t *testing.T, disk, file string) {
	t.Helper()
	var s syscall.Statfs_t
	if err := syscall.Statfs(disk, &s); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, make([]byte, max(0, int64(s.Bavail)*s.Bsize-diskLeft)), 0o600); err != nil && !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}

// ask reads what is stored.
func ask(ctx context.Context, collector string) (totals, error) {
	var out totals
	for text, to := range map[string]*int64{
		"SELECT sum(connections) FROM flows": &out.Connections, "SELECT sum(connections) FROM flows WHERE verdict = 'denied'": &out.Denied,
		"SELECT sum(connections) FROM edges": &out.Edges, "SELECT count() FROM coverage": &out.Batches, "SELECT count() FROM gaps": &out.Gaps,
	} {
		values, err := askSQL(ctx, collector, text)
		if err != nil {
			return out, err
		}
		if len(values) != 1 {
			return out, fmt.Errorf("%s: %d values", text, len(values))
		}
		*to = int64(values[0])
	}
	return out, nil
}

// until tries until it works.
func until(t *testing.T, try func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		err := try(ctx)
		if err == nil {
			return
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal(err)
		}
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
