package duckdb

import (
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/collector/store/storetest"
	"github.com/flowaudit/flowaudit/flow"
)

var update = flag.Bool("update", false, "write the golden answers to questions anew")

func open(t *testing.T, dir string, now func() time.Time) *Store {
	t.Helper()
	s, err := Open(t.Context(), Options{Dir: dir, Logger: slog.New(slog.DiscardHandler), Now: now})
	if err != nil {
		t.Fatal(err)
	}
	s.fresh.eager = true                // slow machines must not see old edges
	t.Cleanup(func() { _ = s.Close() }) // a test may have closed it
	return s
}

func TestStore(t *testing.T) { conforms(t, maxUnsummed) }

// Stores of one transaction a file of sums answer alike.
func TestStoreSummedUp(t *testing.T) { conforms(t, 1) }

func conforms(t *testing.T, unsummed uint64) {
	storetest.Run(t, func(t *testing.T) storetest.Fixture {
		dir := t.TempDir()
		var passed atomic.Int64
		now := func() time.Time { return storetest.T0.Add(time.Duration(passed.Load())) }
		s := open(t, dir, now)
		s.unsummed = unsummed
		return storetest.Fixture{
			Store: s, Update: *update,
			Advance: func(d time.Duration) { passed.Add(int64(d)) },
			Reopen: func(t *testing.T) store.Store {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				s := open(t, dir, now)
				s.unsummed = unsummed
				return s
			},
		}
	})
}

func TestFilesThatCannotBeUsedAreLeftAlone(t *testing.T) {
	dir := t.TempDir()
	now := func() time.Time { return storetest.T0 }
	for name, content := range map[string]string{"1600000000000.duckdb": "garbage", "notes.duckdb": "mine"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var log strings.Builder
	s, err := Open(t.Context(), Options{Dir: dir, Logger: slog.New(slog.NewTextHandler(&log, nil)), Now: now})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if !strings.Contains(log.String(), "1600000000000.duckdb") || !strings.Contains(log.String(), "notes.duckdb") {
		t.Errorf("the log does not name both files: %s", log.String())
	}
	if _, err := s.Append(t.Context(), []flow.Batch{{Key: flow.BatchKey{Instance: "n", Sequence: 1}, Node: "n"}}); err != nil {
		t.Error(err)
	}
	for name, content := range map[string]string{"1600000000000.duckdb": "garbage", "notes.duckdb": "mine"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != content {
			t.Errorf("%s is now %q (%v)", name, b, err)
		}
	}
}

func TestQueriesReachNothingElse(t *testing.T) {
	s := open(t, t.TempDir(), nil)
	secret := filepath.Join(t.TempDir(), "secret.csv")
	if err := os.WriteFile(secret, []byte("a\n1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, q := range []string{
		"SELECT * FROM read_csv(" + quote(secret) + ")",
		"COPY (SELECT 1) TO " + quote(secret),
		"INSTALL httpfs",
		"SET enable_external_access = true",
		"ATTACH " + quote(filepath.Join(t.TempDir(), "x.duckdb")),
	} {
		if _, err := s.db.ExecContext(t.Context(), q); err == nil {
			t.Errorf("%s: was allowed", q)
		}
	}
}

func TestBatchKeys(t *testing.T) {
	keys := make(batchKeys)
	for _, seq := range []uint64{5, 1, 3, 2, 4, 9, 7, 8, 3} {
		keys.add(flow.BatchKey{Instance: "n", Sequence: seq})
	}
	for seq := range uint64(11) {
		if got, want := keys.has(flow.BatchKey{Instance: "n", Sequence: seq}), seq >= 1 && seq <= 5 || seq >= 7 && seq <= 9; got != want {
			t.Errorf("sequence %d: %t, want %t", seq, got, want)
		}
	}
	if n := len(keys[flow.BatchKey{Instance: "n"}]); n != 2 {
		t.Errorf("%d ranges, want 2", n)
	}
}
