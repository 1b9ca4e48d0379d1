package ledger_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/flowaudit/flowaudit/collector/ledger"
	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/collector/store/duckdb"
	"github.com/flowaudit/flowaudit/collector/store/storetest"
	"github.com/flowaudit/flowaudit/evidence"
	"github.com/flowaudit/flowaudit/flow"
)

// The environment of the test's own program when it is the one to be killed.
const (
	killedDir = "FLOWAUDIT_TEST_LEDGER"
	killedKey = "FLOWAUDIT_TEST_LEDGER_KEY"
	killedAt  = "FLOWAUDIT_TEST_LEDGER_FROM"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(killedDir); dir != "" {
		if err := appendUntilKilled(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func open(dir string, key *evidence.Key) (*ledger.Ledger, store.Store, error) {
	log := slog.New(slog.DiscardHandler)
	s, err := duckdb.Open(context.Background(), duckdb.Options{Dir: dir, Logger: log})
	if err != nil {
		return nil, nil, err
	}
	return ledger.New(ledger.Options{Key: key, Store: s, Collector: "collector", Log: log}), s, nil
}

// batches are those of two agents at a number, ten flows each.
func batches(g *storetest.Generator, number uint64) (out []flow.Batch) {
	at := storetest.T0.Add(time.Duration(number) * time.Second)
	for _, instance := range []string{"a", "b"} {
		out = append(out, flow.Batch{
			Key: flow.BatchKey{Cluster: "c", Instance: instance, Epoch: 1, Sequence: number}, Node: instance, Start: at, End: at.Add(time.Second), Flows: g.Flows(10, at, time.Second),
		})
	}
	return out
}

// appendUntilKilled appends as long as it lives, and says what it has acknowledged.
func appendUntilKilled(dir string) error {
	text, err := os.ReadFile(os.Getenv(killedKey))
	if err != nil {
		return err
	}
	key, err := evidence.ParseKey(text)
	if err != nil {
		return err
	}
	from, err := strconv.ParseUint(os.Getenv(killedAt), 10, 64)
	if err != nil {
		return err
	}
	l, _, err := open(dir, key)
	if err != nil {
		return err
	}
	g := storetest.NewGenerator(from)
	for n := from; ; n++ {
		if _, err := l.Append(context.Background(), batches(g, n)); err != nil {
			return err
		}
		fmt.Println(n)
	}
}

// A collector is killed at some moment and started again, with the batches that
// it has not acknowledged sent again: each batch is proven once.
func TestKilledCollectorsLoseNoEvidence(t *testing.T) {
	dir := t.TempDir()
	private, public, err := evidence.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	keyFile := filepath.Join(dir, "key")
	if err := os.WriteFile(keyFile, private, 0o600); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	var next uint64 = 1
	const rounds = 6
	for round := range rounds {
		next = kill(t, data, keyFile, next, round*5+1)
	}
	key, err := evidence.ParseKey(private)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := evidence.ParsePublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	l, s, err := open(data, key)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := l.Append(t.Context(), batches(storetest.NewGenerator(next), next)); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := l.Export(t.Context(), &out, evidence.Scope{Everyone: true}); err != nil {
		t.Fatal(err)
	}
	got, err := evidence.Verify(bytes.NewReader(out.Bytes()), int64(out.Len()), pub)
	if err != nil {
		t.Fatal(err)
	}
	if want := 2 * next; got.Batches != want || got.Agents != 2 {
		t.Errorf("%d batches of %d agents are proven, want %d of 2", got.Batches, got.Agents, want)
	}
}

// kill lets a collector acknowledge some batches and kills it while it goes on.
// It returns the first number that is not acknowledged.
func kill(t *testing.T, data, keyFile string, from uint64, acknowledged int) uint64 {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), killedDir+"="+data, killedKey+"="+keyFile, killedAt+"="+strconv.FormatUint(from, 10))
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	next, lines := from, bufio.NewScanner(stdout)
	for range acknowledged {
		if !lines.Scan() {
			t.Fatal("the collector ended by itself")
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for more := true; more; more = lines.Scan() { // what it said before it died
		if n, err := strconv.ParseUint(lines.Text(), 10, 64); err == nil {
			next = n + 1
		}
	}
	_ = cmd.Wait() // it was killed
	return next
}

// BenchmarkAppend stores groups of flows with and without evidence.
func BenchmarkAppend(b *testing.B) {
	private, _, err := evidence.GenerateKey()
	if err != nil {
		b.Fatal(err)
	}
	key, err := evidence.ParseKey(private)
	if err != nil {
		b.Fatal(err)
	}
	const flows = 10_000
	for _, proven := range []bool{false, true} {
		b.Run(map[bool]string{false: "off", true: "on"}[proven], func(b *testing.B) {
			l, s, err := open(b.TempDir(), key)
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			var to interface {
				Append(context.Context, []flow.Batch) ([]bool, error)
			} = s
			if proven {
				to = l
			}
			g := storetest.NewGenerator(1)
			made := g.Flows(flows, storetest.T0, 10*time.Second)
			var n uint64
			for b.Loop() {
				n++
				batch := flow.Batch{Key: flow.BatchKey{Cluster: "c", Instance: "a", Epoch: 1, Sequence: n}, Node: "a", Start: storetest.T0, End: storetest.T0.Add(time.Second), Flows: made}
				if _, err := to.Append(b.Context(), []flow.Batch{batch}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*flows), "ns/flow")
		})
	}
}
