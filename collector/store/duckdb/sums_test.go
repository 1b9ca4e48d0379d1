package duckdb

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/collector/store/storetest"
	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/queries"
)

// fill stores flows of a generated cluster that start over three hours, in
// closed slices and an open one, with late ones among them.
func fill(t *testing.T, s *Store, now *time.Time) {
	t.Helper()
	g := storetest.NewGenerator(1)
	for i := range 36 {
		*now = storetest.T0.Add(time.Duration(i) * 5 * time.Minute)
		flows := g.Flows(500, *now, 5*time.Minute)
		for j := range flows {
			f := &flows[j]
			f.Assessment = flow.Assess(f.Verdict, flow.VerdictAllowed)
			f.Expected = flow.VerdictAllowed
			if j%7 == 0 {
				f.Connections = 0
			}
			if j%50 == 0 {
				f.Start = f.Start.Add(-70 * time.Minute)
			}
			f.Policies = []flow.PolicyRef{{Namespace: f.Destination.Namespace, Name: "p"}}
		}
		if _, err := s.Append(t.Context(), []flow.Batch{{Key: flow.BatchKey{Instance: "n", Sequence: uint64(i)}, Node: "n", Flows: flows}}); err != nil {
			t.Fatal(err)
		}
	}
}

// answer asks a question with other SQL in the place of the totals.
func answer(ctx context.Context, t *testing.T, s *Store, q queries.Question, since time.Time, totals string) [][]any {
	t.Helper()
	text := strings.NewReplacer("$since", "$1", "$limit", "1000000", "$hosts", "1", "$ports", "1", "$seconds", "300").Replace(q.With(func(table string) string {
		if table == queries.Totals {
			return strings.ReplaceAll(totals, "FROM flows", "FROM ("+s.view("flows", 0)+")")
		}
		return ""
	}))
	rows, err := s.db.QueryContext(ctx, text, since.UnixMilli())
	if err != nil {
		t.Fatalf("%s: %v", q.Name, err)
	}
	defer rows.Close()
	out, err := readRows(rows, 1_000_000)
	if err != nil {
		t.Fatalf("%s: %v", q.Name, err)
	}
	return out.Rows
}

func TestTotalsSayTheSameAsFlows(t *testing.T) {
	now := storetest.T0
	s := open(t, t.TempDir(), func() time.Time { return now })
	s.unsummed = 1800 // some flows wait
	fill(t, s, &now)
	for _, since := range []time.Duration{
		-2 * time.Hour, 0, time.Millisecond, 31*time.Minute + 7*time.Second, time.Hour, 119*time.Minute + 59*time.Second, 2 * time.Hour,
		150*time.Minute + time.Second, 179*time.Minute + 30*time.Second, 10 * time.Hour,
	} {
		since := storetest.T0.Add(since)
		conn, end, err := s.reading(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		totals, err := s.totals(t.Context(), conn, max(0, since.UnixMilli()))
		end()
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range queries.All() {
			if !queries.Reads(q.SQL, queries.Totals) || q.Name == "enforcement" || q.Name == "unused-rules" { // the one shows any of several flows, the other reads rules
				continue
			}
			if d := cmp.Diff(answer(t.Context(), t, s, q, since, "(SELECT *, 1 AS flows FROM flows)"), answer(t.Context(), t, s, q, since, totals)); d != "" {
				t.Fatalf("%s since %s: flows and totals differ (-flows +totals): %s", q.Name, since, d)
			}
		}
	}
}

// Sums are made anew where their file is lost or garbage, and for slices that
// were closed without them.
func TestSumsAreMadeAnew(t *testing.T) {
	dir := t.TempDir()
	now := storetest.T0
	s := open(t, dir, func() time.Time { return now })
	s.unsummed = 1
	fill(t, s, &now)
	want := ask(t, s)
	for _, damage := range []string{
		"DELETE FROM " + s.slices[0].name + ".hour",
		"DROP TABLE " + s.last().sums.name + ".upto",
	} {
		if _, err := s.db.ExecContext(t.Context(), damage); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	again, err := Open(t.Context(), Options{Dir: dir, Logger: slog.New(slog.NewTextHandler(&log, nil)), Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if d := cmp.Diff(want, ask(t, again)); d != "" {
		t.Error(d)
	}
	if !again.slices[0].summed || again.last().sums == nil {
		t.Errorf("the first slice is summed: %t; sums of the last: %v; log: %s", again.slices[0].summed, again.last().sums, log.String())
	}
}

func ask(t *testing.T, s *Store) store.Rows {
	t.Helper()
	rows, err := s.Query(t.Context(), flow.SeeAll(), "assessments", map[string]string{"since": "2000-01-01"})
	if err != nil || len(rows.Rows) == 0 {
		t.Fatal(rows, err)
	}
	return rows
}
