package duckdb

import (
	"database/sql"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
)

// made makes a DuckDB file of SQL.
func made(t *testing.T, path, text string) {
	t.Helper()
	db, err := sql.Open("duckdb", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), text); err != nil {
		t.Fatalf("make %s: %v", path, err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func readText(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Files of a version before become today's, keep what they hold, and take
// part in every answer; that is done once.
func TestOlderFilesAreConverted(t *testing.T) {
	dir := t.TempDir()
	made(t, filepath.Join(dir, "1700000000000.duckdb"), readText(t, "testdata/slice-1.sql"))
	made(t, filepath.Join(dir, "edges-202311.duckdb"), readText(t, "testdata/month-1.sql"))
	now := func() time.Time { return time.UnixMilli(1700000060000) }
	for _, when := range []string{"converted", "opened again"} {
		s := open(t, dir, now)
		var flows []string
		err := s.Flows(t.Context(), store.FlowsRequest{Sight: flow.SeeAll()}, func(f flow.Flow) bool {
			flows = append(flows, fmt.Sprintf("%s %s %d ×%d %s", f.Verdict, f.Source.Pod, f.Port, f.Connections, f.Assessment))
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		want := []string{"allowed web-1 5432 ×3 allowed", "denied web-1 22 ×2 enforced", "allowed web-1 5432 ×4 allowed"}
		if d := cmp.Diff(want, flows); d != "" {
			t.Errorf("%s: flows %s", when, d)
		}
		for question, want := range map[string]string{
			"assessments":        "[[n1 allowed  2 7] [n1 enforced  1 2]]",
			"denied-by-policy":   "[[shop/db 2 1 1 2023-11-14 22:13:22 +0000 UTC]]",
			"leaves-cluster":     "[[shop web 203.0.113.7 443 tcp allowed 8 80 800 2023-11-14 21:00:00 +0000 UTC 2023-11-14 21:01:40 +0000 UTC]]",
			"coverage-gaps":      "[[n1 conntrack overrun 2023-11-14 22:13:22 +0000 UTC 2023-11-14 22:13:23 +0000 UTC 9 the socket was full]]",
			"flows-of-address":   "3 rows",
			"denied-over-time":   "1 rows",
			"denied-by-source":   "1 rows",
			"cross-namespace":    "0 rows",
			"holders-of-address": "1 rows",
		} {
			arguments := map[string]string{"since": "2023-11-14T20:00:00Z"}
			if strings.HasSuffix(question, "address") {
				arguments["address"] = "10.0.0.1"
			}
			rows, err := s.Query(t.Context(), flow.SeeAll(), question, arguments)
			if got := fmt.Sprint(rows.Rows); err != nil || got != want && fmt.Sprintf("%d rows", len(rows.Rows)) != want {
				t.Errorf("%s: %s: %s (%v), want %s", when, question, got, err, want)
			}
		}
		duplicate, err := s.Append(t.Context(), []flow.Batch{{Key: flow.BatchKey{Cluster: "c", Instance: "n1", Epoch: 5, Sequence: 1}, Node: "n1"}})
		if err != nil || !duplicate[0] {
			t.Errorf("%s: a batch that it has is new: %v", when, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// What a newer version wrote is not read by guess, nor left out: the store
// does not open, and changes nothing.
func TestNewerFilesAreRefused(t *testing.T) {
	for name, steps := range map[string]steps{"1700000000000.duckdb": sliceSteps, "edges-202311.duckdb": monthSteps, "denied-202311.duckdb": sliceSteps, "timeline.duckdb": timelineSteps, "documents.duckdb": documentSteps} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), name)
			made(t, path, fmt.Sprintf("CREATE TABLE migration (version UINTEGER, time TIMESTAMP); INSERT INTO migration VALUES (%d, now()::TIMESTAMP)", len(steps)+1))
			before := readText(t, path)
			_, err := Open(t.Context(), Options{Dir: filepath.Dir(path), Logger: slog.New(slog.DiscardHandler)})
			if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "use a newer collector") {
				t.Errorf("error %v, want one that names the file and says what to do", err)
			}
			if readText(t, path) != before {
				t.Error("the file has changed")
			}
		})
	}
}
