package collector

import (
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/kube"
)

func newTestTimeline(t *testing.T, m *memory) *timeline {
	t.Helper()
	h, err := newHistory()
	if err != nil {
		t.Fatal(err)
	}
	return newTimeline(m, h, "c", slog.New(slog.DiscardHandler))
}

func labelled(at time.Time, namespace, labels string) flow.Change {
	return flow.Change{Time: at, Kind: flow.ChangeNamespace, Name: namespace, Object: []byte(labels)}
}

// team is a namespace's label team at a time.
func (t *timeline) team(namespace string, at time.Time) string {
	return t.history.at(at).Namespaces()[namespace]["team"]
}

func TestTheTimelineIsStoredAndJudgedBy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		l := newTestTimeline(t, m)
		if _, err := l.restore(t.Context(), time.Now()); err != nil {
			t.Fatal(err)
		}
		go l.run(t.Context())
		now := time.Now()
		l.changed(labelled(now.Add(-time.Hour), "shop", `{"team":"a"}`))
		if got := l.team("shop", now); got != "" {
			t.Errorf("team %q is judged by before all is told", got)
		}
		l.settled()
		if got := l.team("shop", now.Add(-2*time.Hour)); got != "a" {
			t.Errorf("team %q of a time that nothing is known of, want what was found", got)
		}
		l.changed(labelled(now.Add(time.Minute), "shop", `{"team":"b"}`))
		if before, after := l.team("shop", now), l.team("shop", now.Add(time.Hour)); before != "a" || after != "b" {
			t.Errorf("team %q before and %q after the change", before, after)
		}
		synctest.Wait()
		if len(m.changes) != 2 || m.changes[0].Cluster != "c" {
			t.Errorf("stored are %+v", m.changes)
		}
		// A change that cannot be read harms no other.
		l.changed(labelled(now.Add(2*time.Minute), "shop", `broken`))
		l.changed(labelled(now.Add(3*time.Minute), "bank", `{"team":"c"}`))
		if got := l.team("bank", now.Add(time.Hour)); got != "c" {
			t.Errorf("team %q after a change that cannot be read", got)
		}
	})
}

func TestARestartedCollectorKnowsWhatWasBefore(t *testing.T) {
	now := time.Now()
	stored := labelled(now.Add(-2*time.Hour), "shop", `{"team":"a"}`)
	stored.Cluster = "c"
	foreign := labelled(now.Add(-2*time.Hour), "bank", `{"team":"z"}`)
	foreign.Cluster = "other"
	l := newTestTimeline(t, &memory{changes: []flow.Change{stored, foreign}})
	if _, err := l.restore(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	// Found in any order: who told it last is not who changed it last.
	l.changed(labelled(now.Add(-10*time.Minute), "bank", `{"team":"q"}`))
	l.changed(labelled(now.Add(-20*time.Minute), "shop", `{"team":"b"}`))
	l.settled()
	for _, c := range []struct {
		namespace string
		ago       time.Duration
		want      string
	}{
		{"shop", time.Hour, "a"}, {"shop", 15 * time.Minute, "b"}, {"bank", 15 * time.Minute, ""}, {"bank", time.Minute, "q"},
	} {
		if got := l.team(c.namespace, now.Add(-c.ago)); got != c.want {
			t.Errorf("team of %s %s ago is %q, want %q", c.namespace, c.ago, got, c.want)
		}
	}
}

// Nobody tells when a policy went that was deleted while no collector ran: what
// it decides alone is not certain until then.
func TestWhatWentWhileNoCollectorRan(t *testing.T) {
	now := time.Now()
	stored := labelled(now.Add(-2*time.Hour), "shop", `{"team":"a"}`)
	stored.Cluster = "c"
	l := newTestTimeline(t, &memory{changes: []flow.Change{stored}})
	known, err := l.restore(t.Context(), now)
	if err != nil {
		t.Fatal(err)
	}
	x := kube.New(kube.Options{Changed: l.changed})
	x.Remember(known)
	x.Replace(&kube.Objects{}, now)
	l.settled()
	if got := l.team("shop", now.Add(time.Second)); got != "" {
		t.Errorf("team %q of a namespace that is gone", got)
	}
	if got := l.team("shop", now.Add(-time.Hour)); got != "a" {
		t.Errorf("team %q before it was found to be gone", got)
	}
	for ago, want := range map[time.Duration]int{time.Hour: 2, time.Second: 2, 0: 1} {
		at := now.Add(-ago)
		if got := len(l.history.within(at, at)); got != want {
			t.Errorf("%s before it was found %d states are possible, want %d", ago, got, want)
		}
	}
	if c := l.waiting[0]; len(l.waiting) != 1 || !c.Deleted || c.Kind != flow.ChangeNamespace || c.Name != "shop" || !c.Time.Equal(now) {
		t.Errorf("to be stored are %+v", l.waiting)
	}
}

func TestAStoreThatIsAwayGetsTheChangesLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{recordErr: errors.New("disk full")}
		l := newTestTimeline(t, m)
		l.settled()
		go l.run(t.Context())
		l.changed(labelled(time.Now(), "shop", `{}`))
		synctest.Wait()
		l.changed(labelled(time.Now(), "bank", `{}`))
		m.mu.Lock()
		m.recordErr = nil
		m.mu.Unlock()
		time.Sleep(retryInterval + time.Second)
		synctest.Wait()
		m.mu.Lock()
		defer m.mu.Unlock()
		if len(m.changes) != 2 || m.changes[0].Name != "shop" || m.changes[1].Name != "bank" {
			t.Errorf("stored are %+v, want both in their order", m.changes)
		}
	})
}
