package storetest

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
)

func documents(t *testing.T, s Fixture) {
	put := func(s store.Store, kind, id string, at int, body string) {
		t.Helper()
		if err := s.Put(t.Context(), []store.Document{{Kind: kind, ID: id, Time: minute(at), Body: []byte(body)}}); err != nil {
			t.Fatal(err)
		}
	}
	check := func(s store.Store, what, kind string, since time.Time, want ...string) {
		t.Helper()
		var got []string
		err := s.Documents(t.Context(), kind, since, func(d store.Document) bool {
			got = append(got, fmt.Sprintf("%s %d %s", d.ID, int(d.Time.Sub(T0).Minutes()), d.Body))
			return true
		})
		if d := cmp.Diff(want, got); err != nil || d != "" {
			t.Errorf("%s: %v %s", what, err, d)
		}
	}
	check(s, "nothing was kept", "alert", time.Time{})
	put(s, "alert", "a", 1, "one")
	put(s, "alert", "b", 2, "it's \\ \x00 bytes")
	put(s, "silence", "a", 3, "other kind")
	put(s, "alert", "a", 4, "two")
	put(s, "alert", "a", 4, "three")
	put(s, "alert", "a", 3, "late")
	check(s, "the latest counts, of these the last", "alert", time.Time{}, "b 2 it's \\ \x00 bytes", "a 4 three")
	check(s, "of a time", "alert", minute(3), "a 4 three")
	again := s.Reopen(t)
	check(again, "after a restart", "silence", time.Time{}, "a 3 other kind")
	put(again, store.ShortLived, "x", 5, "soon gone")
	put(again, store.ShortLived, "y", 5+3*60, "not yet")
	if err := again.Discard(t.Context(), store.ShortLived, minute(5+2*60)); err != nil {
		t.Fatal(err)
	}
	check(again, "what is short-lived goes", store.ShortLived, time.Time{}, "y 185 not yet")
	if err := again.Discard(t.Context(), "alert", minute(100*24*60)); err != nil {
		t.Fatal(err)
	}
	check(again, "what is old goes", "alert", time.Time{})
	check(again, "and nothing else", "silence", time.Time{}, "a 3 other kind")
	n := 0
	if err := again.Put(t.Context(), nil); err != nil {
		t.Error(err)
	}
	put(again, "silence", "b", 4, "")
	if err := again.Documents(t.Context(), "silence", time.Time{}, func(store.Document) bool { n++; return false }); err != nil || n != 1 {
		t.Errorf("%d documents were given after the first was enough, %v", n, err)
	}
}

// edgeHours adds up what a store tells by the hour, of some edges.
func edgeHours(t *testing.T, s Fixture) {
	g := NewGenerator(5)
	for seq := range uint64(6) {
		must(t, s, batch(seq+1, g.Flows(60, T0.Add(time.Duration(seq)*40*time.Minute), 40*time.Minute)...))
		s.Advance(40 * time.Minute)
	}
	request := store.EdgesRequest{Sight: flow.SeeAll(), Until: T0.Add(1000 * time.Hour)}
	keep := func(e *flow.Edge) bool { return e.Verdict != flow.VerdictAllowed }
	want := allEdges(t, s, time.Time{}, request.Until)
	for k, e := range want {
		if !keep(&e) {
			delete(want, k)
		}
	}
	got := make(map[flow.EdgeKey]flow.Edge)
	type hour struct {
		key  flow.EdgeKey
		hour time.Time
	}
	hours := make(map[hour]bool)
	err := s.EdgeHours(t.Context(), request, keep, func(e *flow.Edge) bool {
		known, ok := got[e.EdgeKey]
		if !ok {
			known = *e
			known.Hours = 0
		} else {
			known.Join(e)
		}
		if h := (hour{e.EdgeKey, e.First.Truncate(flow.EdgeHour)}); !hours[h] {
			hours[h] = true
			known.Hours++
		}
		got[e.EdgeKey] = known
		return true
	})
	if d := edgeDiff(want, got); err != nil || d != "" {
		t.Errorf("%v %s", err, d)
	}
	n := 0
	if err := s.EdgeHours(t.Context(), request, keep, func(*flow.Edge) bool { n++; return false }); err != nil || n != 1 {
		t.Errorf("%d hours were given after the first was enough, %v", n, err)
	}
}
