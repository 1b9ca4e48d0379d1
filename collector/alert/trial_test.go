package alert

import (
	"fmt"
	"testing"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// trial runs rules over what add puts in, of ten days.
func trial(t *testing.T, rules string, add func(w *world, tr *Trial), changes []flow.Change, gaps []flow.Gap) []string {
	t.Helper()
	w := &world{t: t, now: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)}
	c := Parse([]byte(rules))
	if len(c.Problems) > 0 {
		t.Fatal(c.Problems)
	}
	tr := NewTrial(c, w, w.now, 1)
	add(w, tr)
	var out []string
	for _, a := range tr.Run(changes, gaps, w.now.Add(240*time.Hour)) {
		out = append(out, fmt.Sprintf("%s %s %s %s>%s", a.Started.Sub(w.now).Truncate(time.Minute), a.Rule, a.State, a.From, a.To))
	}
	return out
}

func TestATrialSaysWhatWouldHaveFired(t *testing.T) {
	begin := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	hour := func(tr *Trial, f flow.Flow, at, last time.Duration, n uint64) {
		if beginning, _ := tr.Wants(&f); beginning {
			tr.Add(Past{Flow: &f, First: begin.Add(at), Last: begin.Add(last), Connections: n})
		}
	}
	got := trial(t, "", func(w *world, tr *Trial) {
		hour(tr, w.to("shop/web", "shop/db", 3306), 0, 24*time.Hour, 9)
		hour(tr, w.to("shop/web", "203.0.113.7", 443), time.Hour, time.Hour, 9) // learned
		hour(tr, w.to("shop/web", "198.51.100.7", 443), 50*time.Hour, 50*time.Hour, 9)
		hour(tr, w.denied("shop/web", "shop/api", 80), 60*time.Hour, 60*time.Hour, 1)
		hour(tr, w.denied("shop/web", "shop/api", 80), 90*time.Hour, 90*time.Hour, 1)
		for p := range 100 {
			hour(tr, w.denied("ops/x", "shop/api", uint16(p+1)), 70*time.Hour, 70*time.Hour, 1)
		}
		// A thousand refusals in an hour are no hundred a minute, five times as many within ten are.
		hour(tr, w.denied("shop/web", "shop/api", 80), 100*time.Hour, 101*time.Hour, 1000)
		hour(tr, w.denied("shop/web", "shop/api", 80), 102*time.Hour, 102*time.Hour+10*time.Minute, 5000)
	}, nil, []flow.Gap{{Node: "n1", Kind: flow.GapOverrun, Start: begin.Add(110 * time.Hour), End: begin.Add(110 * time.Hour)}})
	want := []string{
		"50h0m0s new-edge-outside resolved shop/web>-", "60h0m0s first-denied resolved shop/web>shop/api", "70h0m0s port-scan resolved ops/x>shop/api",
		"102h0m0s denial-rate resolved shop/web>-", "110h0m0s coverage-lost resolved ->-",
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestATrialKnowsTheChangesOfThatTime(t *testing.T) {
	begin := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	change := flow.Change{Time: begin.Add(99 * time.Hour), Kind: flow.ChangePolicy, Namespace: "shop", Name: "db", Author: "ada"}
	got := trial(t, "", func(w *world, tr *Trial) {
		f := w.denied("shop/web", "shop/db", 3306)
		tr.Add(Past{Flow: &f, First: change.Time.Add(time.Minute), Last: change.Time.Add(2 * time.Minute), Connections: 8})
	}, []flow.Change{change}, nil)
	if fmt.Sprint(got) != "[99h1m0s denied-after-change resolved ->-]" {
		t.Errorf("%q", got)
	}
}
