package storetest

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
)

func minute(n int) time.Time { return T0.Add(time.Duration(n) * time.Minute) }

// became is a change of a policy; an empty spec deletes it.
func became(at int, name, spec string) flow.Change {
	c := flow.Change{Time: minute(at), Cluster: "c", Kind: flow.ChangePolicy, Namespace: "shop", Name: name, Author: "kubectl", Object: []byte(spec)}
	if spec == "" {
		c.Deleted, c.Object = true, nil
	}
	return c
}

func record(t *testing.T, s store.Store, changes ...flow.Change) {
	t.Helper()
	if err := s.Record(t.Context(), changes); err != nil {
		t.Fatal(err)
	}
}

// told lists a part of the timeline as "minute name object".
func told(t *testing.T, s store.Store, since, until time.Time) []string {
	t.Helper()
	var out []string
	err := s.Timeline(t.Context(), flow.SeeAll(), since, until, func(c flow.Change) bool {
		object := string(c.Object)
		if c.Deleted {
			object = "gone"
		}
		out = append(out, fmt.Sprintf("%d %s %s %s", int(c.Time.Sub(T0).Minutes()), c.Kind, c.Name, object))
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func timeline(t *testing.T, s Fixture) {
	if got := told(t, s, time.Time{}, minute(99)); len(got) != 0 {
		t.Errorf("an empty timeline tells %q", got)
	}
	labels := flow.Change{Time: minute(1), Cluster: "c", Kind: flow.ChangeNamespace, Name: "shop", Object: []byte(`{"team":"a"}`)}
	record(t, s, became(1, "db", "v1"), labels, became(3, "web", "w1"))
	record(t, s, became(4, "db", "v1"), became(5, "db", "v2"), became(6, "web", ""), became(7, "never-was", ""))
	check := func(s store.Store, what string, since, until time.Time, want ...string) {
		t.Helper()
		got := told(t, s, since, until)
		slices.Sort(got)
		slices.Sort(want)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", what, d)
		}
	}
	check(s, "everything, without what says nothing new", time.Time{}, minute(99),
		"1 policy db v1", "1 namespace shop {\"team\":\"a\"}", "3 policy web w1", "5 policy db v2", "6 policy web gone")
	check(s, "the state at a moment, then what follows", minute(4), minute(5),
		"1 policy db v1", "1 namespace shop {\"team\":\"a\"}", "3 policy web w1", "5 policy db v2")
	check(s, "what is gone is not part of the state", minute(7), minute(99), "1 namespace shop {\"team\":\"a\"}", "5 policy db v2")
	again := s.Reopen(t)
	record(t, again, became(8, "db", "v2"), became(9, "web", "w1"))
	check(again, "a restart tells nothing twice, and what comes back is told", minute(8), minute(99),
		"1 namespace shop {\"team\":\"a\"}", "5 policy db v2", "9 policy web w1")
	if _, err := again.Retain(t.Context(), store.Retention{Since: minute(8)}); err != nil {
		t.Fatal(err)
	}
	check(again, "retention keeps how it was", time.Time{}, minute(99),
		"1 namespace shop {\"team\":\"a\"}", "5 policy db v2", "9 policy web w1")
	n := 0
	if err := again.Timeline(t.Context(), flow.SeeAll(), time.Time{}, minute(99), func(flow.Change) bool { n++; return false }); err != nil || n != 1 {
		t.Errorf("%d changes were given after the first was enough, %v", n, err)
	}
}
