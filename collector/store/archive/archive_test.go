package archive

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/collector/store/duckdb"
	"github.com/flowaudit/flowaudit/collector/store/storetest"
	"github.com/flowaudit/flowaudit/flow"
)

var quiet = slog.New(slog.DiscardHandler)

func open(t *testing.T) store.Store {
	t.Helper()
	s, err := duckdb.Open(t.Context(), duckdb.Options{Dir: t.TempDir(), Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() }) // a test may have closed it
	return s
}

// day0 is the first day of the filled store.
var day0 = storetest.T0.UTC().Truncate(Day)

// filled is a store with two days and a part of the third.
func filled(t *testing.T) store.Store {
	t.Helper()
	s := open(t)
	g := storetest.NewGenerator(9)
	for i := range 5 {
		start := day0.Add(time.Duration(i) * Day / 2)
		b := flow.Batch{
			Key: flow.BatchKey{Cluster: "c", Instance: "uid", Epoch: 1, Sequence: uint64(i + 1)}, Node: "n", Start: start, End: start.Add(time.Hour), Flows: g.Flows(3000, start, Day/2),
			Gaps: []flow.Gap{{Node: "n", Source: "conntrack", Kind: flow.GapOverrun, Start: start, End: start.Add(time.Second), Lost: 3, Detail: "x"}},
		}
		b.Agent.Limits = []string{"sees little"}
		b.Flows = append(b.Flows, b.Flows[0]) // the same twice
		odd := b.Flows[1]
		odd.Source, odd.Destination = nil, &flow.Endpoint{Kind: flow.EndpointAmbiguous, Candidates: []string{"a/b", "c/d"}}
		odd.Service = &flow.Service{Namespace: "n", Name: "s"}
		odd.Policies = []flow.PolicyRef{{Kind: "NetworkPolicy", Namespace: "a", Name: "b", Rule: "ingress[0]", Side: "ingress"}}
		b.Flows = append(b.Flows, odd)
		if _, err := s.Append(t.Context(), []flow.Batch{b}); err != nil {
			t.Fatal(err)
		}
	}
	changes := []flow.Change{
		{Time: day0, Cluster: "c", Kind: flow.ChangePolicy, Namespace: "shop", Name: "db", Author: "kubectl", Object: []byte("{}")},
		{Time: day0.Add(time.Hour), Cluster: "c", Kind: flow.ChangePolicy, Namespace: "shop", Name: "db", Deleted: true},
	}
	if err := s.Record(t.Context(), changes); err != nil {
		t.Fatal(err)
	}
	return s
}

func wholeDays(t *testing.T, s store.Store) []time.Time {
	t.Helper()
	days, err := Days(t.Context(), s, day0.Add(2*Day+time.Hour))
	if err != nil || len(days) != 2 {
		t.Fatal(days, err)
	}
	return days
}

func timelineOf(t *testing.T, s store.Store) (out []flow.Change) {
	t.Helper()
	if err := s.Timeline(t.Context(), flow.SeeAll(), time.Time{}, day0.Add(9*Day), func(c flow.Change) bool { out = append(out, c); return true }); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestCopy: also after a break, and again.
func TestCopy(t *testing.T) {
	from, to := filled(t), open(t)
	days := wholeDays(t, from)
	if err := Verify(t.Context(), from, to, days); err == nil || !strings.Contains(err.Error(), days[0].Format(time.DateOnly)+" differs") {
		t.Errorf("before copying: %v", err)
	}
	if err := Copy(t.Context(), from, to, days[:1], quiet); err != nil { // then a break
		t.Fatal(err)
	}
	for range 2 {
		if err := Copy(t.Context(), from, to, days, quiet); err != nil {
			t.Fatal(err)
		}
		if err := Verify(t.Context(), from, to, days); err != nil {
			t.Error(err)
		}
	}
	if d := cmp.Diff(timelineOf(t, from), timelineOf(t, to), cmp.Comparer(time.Time.Equal)); d != "" {
		t.Error(d)
	}
	sum, err := SumOf(t.Context(), to, days[1])
	if err != nil || sum.Flows != 2*3002 || sum.Watched != 2*time.Hour || sum.Gaps != 2 {
		t.Errorf("sum %+v, %v", sum, err)
	}
}

func TestParquetAndBack(t *testing.T) {
	from, to := filled(t), open(t)
	days := wholeDays(t, from)
	f := Folder{filepath.Join(t.TempDir(), "archive")}
	for range 2 {
		if err := f.Export(t.Context(), from, days, quiet); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := f.Days(); err != nil || len(got) != 2 || !got[0].Equal(days[0]) {
		t.Errorf("days %v, %v", got, err)
	}
	if err := Verify(t.Context(), from, f, days); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := f.Import(t.Context(), to, quiet); err != nil {
			t.Fatal(err)
		}
		if err := Verify(t.Context(), from, to, days); err != nil {
			t.Error(err)
		}
	}
	if d := cmp.Diff(timelineOf(t, from), timelineOf(t, to), cmp.Comparer(time.Time.Equal)); d != "" {
		t.Error(d)
	}
	path := filepath.Join(f.day(days[0]), flowsFile)
	if err := os.WriteFile(path, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := f.Import(t.Context(), to, quiet); err == nil || !strings.Contains(err.Error(), "import "+days[0].Format(time.DateOnly)) {
		t.Errorf("a damaged file: %v", err)
	}
}
