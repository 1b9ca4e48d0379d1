package clickhouse

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/collector/store/storetest"
	"github.com/flowaudit/flowaudit/flow"
)

func now() time.Time { return storetest.T0 }

// batchOf is a batch of generated flows, some of them refused.
func batchOf(sequence uint64, flows int) flow.Batch {
	b := flow.Batch{
		Key: flow.BatchKey{Cluster: "c", Instance: "n", Epoch: 1, Sequence: sequence}, Node: "n", Start: storetest.T0, End: storetest.T0.Add(10 * time.Second),
		Gaps: []flow.Gap{{Node: "n", Kind: flow.GapOverrun, Start: storetest.T0, End: storetest.T0, Lost: sequence}},
	}
	b.Flows = storetest.NewGenerator(sequence).Flows(flows, storetest.T0, 10*time.Second)
	return b
}

// sums are what may not count twice.
type sums struct{ flows, denied, edges, batches, gaps int64 }

// add adds what a batch brings, once.
func (s *sums) add(b *flow.Batch) {
	for _, f := range b.Flows {
		s.flows += int64(f.Connections)
		s.edges += int64(f.Connections)
		if f.Verdict == flow.VerdictDenied {
			s.denied += int64(f.Connections)
		}
	}
	s.batches++
	s.gaps += int64(len(b.Gaps))
}

func sumsOf(t *testing.T, s *Store) (out sums) {
	t.Helper()
	for target, text := range map[*int64]string{
		&out.flows: "SELECT sum(connections) FROM flows", &out.denied: "SELECT sum(connections) FROM flows WHERE verdict = 'denied'",
		&out.edges: "SELECT sum(connections) FROM edges", &out.batches: "SELECT count() FROM coverage", &out.gaps: "SELECT count() FROM gaps",
	} {
		rows, err := s.SQL(t.Context(), flow.SeeAll(), text, 1)
		if err != nil {
			t.Fatal(err)
		}
		*target = rows.Rows[0][0].(int64)
	}
	return out
}

// onBoth runs a test on the old server and on today's.
func onBoth(t *testing.T, test func(t *testing.T, url string)) {
	t.Run("old", func(t *testing.T) { test(t, newDatabase(t, shared.old)) })
	t.Run("today", func(t *testing.T) { test(t, newDatabase(t, shared.today)) })
}

// TestADeadCollectorsBatchCountsOnce: wherever the first collector dies, the
// second one's copy is the one that counts.
func TestADeadCollectorsBatchCountsOnce(t *testing.T) {
	onBoth(t, func(t *testing.T, url string) {
		first, second := open(t, url, now), open(t, url, now)
		other := batchOf(100, 50)
		if _, err := first.Append(t.Context(), []flow.Batch{other}); err != nil {
			t.Fatal(err)
		}
		want := sumsOf(t, first)
		for sequence, dies := range []func(claims []claim){
			func([]claim) {},
			func(claims []claim) { half(t, first, claims) },
			func(claims []claim) { whole(t, first, claims) },
			func(claims []claim) { whole(t, first, claims); rest(t, first, claims) },
		} {
			b := batchOf(uint64(sequence+1), 50)
			claims, _, err := first.newClaims(t.Context(), []flow.Batch{b})
			if err != nil || len(claims) != 1 {
				t.Fatal(len(claims), err)
			}
			if err := first.writeClaims(t.Context(), claims, 0); err != nil {
				t.Fatal(err)
			}
			dies(claims)
			for try := range 2 {
				duplicate, err := second.Append(t.Context(), []flow.Batch{b})
				if err != nil || duplicate[0] != (try == 1) {
					t.Fatalf("batch %d, try %d: duplicate %v, %v", sequence+1, try, duplicate, err)
				}
			}
			want.add(&b)
			if got := sumsOf(t, second); got != want {
				t.Errorf("after batch %d: %+v, want %+v", sequence+1, got, want)
			}
		}
	})
}

func half(t *testing.T, s *Store, claims []claim) {
	b := *claims[0].batch
	b.Flows = b.Flows[:len(b.Flows)/2]
	whole(t, s, []claim{{&b, claims[0].copy}})
}

func whole(t *testing.T, s *Store, claims []claim) {
	t.Helper()
	slot := s.slot(now())
	rows := s.rowsOf(slot, claims)
	if err := errors.Join(s.appendKeys(t.Context(), slot, rows), s.appendFlows(t.Context(), rows), s.touch(t.Context(), rows.parts)); err != nil {
		t.Fatal(err)
	}
}

func rest(t *testing.T, s *Store, claims []claim) {
	if err := s.appendRest(t.Context(), s.slot(now()), claims); err != nil {
		t.Fatal(err)
	}
}

// TestCollectorsAtOnce: three collectors write the same batches at the same
// time, while somebody asks.
func TestCollectorsAtOnce(t *testing.T) {
	onBoth(t, func(t *testing.T, url string) { collectorsAtOnce(t, 0, func(*Store) {}, url, url, url) })
}

// collectorsAtOnce opens a store for each URL; settled returns when all servers
// have the same, and lag is how long an answer may then miss what it was itself
// summed up from: a replica has a sum's rows a moment after the word that they
// are there.
func collectorsAtOnce(t *testing.T, lag time.Duration, settled func(*Store), urls ...string) {
	const batches = 12
	var want sums
	for sequence := range uint64(batches) {
		b := batchOf(sequence+1, 30)
		want.add(&b)
	}
	var group sync.WaitGroup
	stores := make([]*Store, len(urls))
	opened := make(chan struct{})
	var opening sync.WaitGroup
	for i, url := range urls { // they make the database at once, too
		opening.Add(1)
		group.Go(func() {
			var err error
			stores[i], err = Open(t.Context(), Options{URL: url, Logger: quiet(), Now: now, Pace: -1, Slice: time.Hour})
			opening.Done()
			if err != nil {
				t.Error(err)
				return
			}
			<-opened
			for sequence := range uint64(batches) {
				if _, err := stores[i].Append(t.Context(), []flow.Batch{batchOf(sequence+1, 30)}); err != nil {
					t.Error(err)
				}
				if err := stores[i].Edges(t.Context(), store.EdgesRequest{Sight: flow.SeeAll(), Until: storetest.T0}, func(*flow.Edge) bool { return true }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	opening.Wait()
	close(opened)
	group.Wait()
	if t.Failed() {
		t.FailNow()
	}
	for _, s := range stores {
		settled(s)
		s.eager = true
		got := sumsOf(t, s)
		for last := time.Now().Add(lag); got != want && time.Now().Before(last); got = sumsOf(t, s) {
			time.Sleep(100 * time.Millisecond)
		}
		if got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestASchemaNewerThanThis(t *testing.T) {
	onBoth(t, func(t *testing.T, url string) {
		s := open(t, url, now)
		if err := s.conn.Exec(t.Context(), fmt.Sprintf("INSERT INTO migration (version, time) SELECT %d, now()", len(steps())+1)); err != nil {
			t.Fatal(err)
		}
		_, err := Open(t.Context(), Options{URL: url, Logger: quiet()})
		if err == nil || !strings.Contains(err.Error(), "use a newer collector") {
			t.Errorf("error %v", err)
		}
	})
}

// TestViewsOfVersion1: they are made anew, also when two collectors do it.
func TestViewsOfVersion1(t *testing.T) {
	onBoth(t, func(t *testing.T, url string) {
		s := open(t, url, now)
		if _, err := s.Append(t.Context(), []flow.Batch{batchOf(1, 1)}); err != nil {
			t.Fatal(err)
		}
		statements, err := s.viewsAnew()
		if err != nil {
			t.Fatal(err)
		}
		old := []string{"DROP TABLE flows", "CREATE VIEW flows AS SELECT 1 AS start_ms"}
		for _, q := range slices.Concat(old, statements, statements) {
			if err := s.conn.Exec(t.Context(), q); err != nil {
				t.Fatalf("%s: %v", q, err)
			}
		}
		rows, err := s.SQL(t.Context(), flow.SeeAll(), "SELECT refused_at FROM flows", 10)
		if err != nil || len(rows.Rows) != 1 {
			t.Errorf("%+v, %v", rows, err)
		}
	})
}

func TestCapabilities(t *testing.T) {
	for version, want := range map[string]string{"18.14.19": "18.16 is the oldest", "none": "cannot be read", "18.16.1": "", "24.3.1.1": ""} {
		s, err := capabilities(version)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", version, err, want)
		}
		if modern := s.major > 20; modern != s.dictionaries || modern != s.codecs || modern != s.milliseconds {
			t.Errorf("%s: %+v", version, s)
		}
	}
}

func TestURLs(t *testing.T) {
	for url, want := range map[string]string{
		"clickhouse://u:p@h:9000/f?cluster=x":     "",
		"clickhouse://h":                          "",
		"clickhouse://u:p%zz@h":                   "cannot be read",
		"clickhouse://h/a-b":                      `"a-b" is no name of a database`,
		"clickhouse://h/f?cluster=x%60%3B%20x":    "no name of a cluster",
		"clickhouse://h/f?secure=perhaps":         "secure",
		"clickhouse://u:pass%20word@h:9000/f?x=1": "",
	} {
		o, cluster, err := parseURL(url)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", url, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "p%zz") {
			t.Errorf("the error shows the password: %v", err)
		}
		if url == "clickhouse://u:p@h:9000/f?cluster=x" && (cluster != "x" || o.Auth.Database != "f" || len(o.Settings) != 0) {
			t.Errorf("%s: cluster %q, %+v", url, cluster, o)
		}
	}
}

// TestScanSQL: what is inside of quotes and comments is no word.
func TestScanSQL(t *testing.T) {
	for text, want := range map[string]string{
		"SELECT a.b FROM `x y`, \"Z\" -- file(\n": "select a . b from x y , z",
		`SELECT 'it''s \' file(' || 1.5 /* ; */`:  "select | | 1 . 5",
		"SELECT 1 # file(":                        "select 1",
		"select 'x":                               "a quote does not end", "select /* x": "a comment does not end", "select $1": "$ is not allowed",
		"select `x": "a quote does not end",
	} {
		words, err := scanSQL(text)
		var got []string
		for _, w := range words {
			got = append(got, w.text)
		}
		if err != nil {
			got = []string{err.Error()}
		}
		if !strings.Contains(strings.Join(got, " "), want) {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

func FuzzScanSQL(f *testing.F) {
	f.Add("SELECT 'a' FROM `b` -- c\n/* d */")
	f.Fuzz(func(_ *testing.T, text string) {
		if words, err := scanSQL(text); err == nil {
			_ = checkWords(words, []string{"file"}, []string{"system"})
		}
	})
}
