package crash

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
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
	log     io.Writer
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
func startServer(t *testing.T) *clickhousetest.Server {
	t.Helper()
	server, err := clickhousetest.Start(clickhousetest.Options{Dir: t.TempDir()})
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

// TestWhoeverIsKilled: three collectors share a server. While agents send, one
// collector is killed and comes back, then the server, again and again for the
// soak. Afterwards everything that was acknowledged counts once.
func TestWhoeverIsKilled(t *testing.T) {
	server := startServer(t)
	dir := t.TempDir()
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	var all [collectors]*process
	var addresses []string
	for i := range all {
		address := fmt.Sprintf("unix:%s/%d.sock", dir, i)
		addresses = append(addresses, address)
		all[i] = &process{t: t, address: address, url: server.URL("flowaudit"), log: log}
		all[i].start()
		t.Cleanup(all[i].kill)
	}
	// All are there before anyone is killed: they make the tables at once.
	for _, a := range addresses {
		until(t, func(ctx context.Context) error { _, err := askSQL(ctx, a, "SELECT 1"); return err })
	}
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
