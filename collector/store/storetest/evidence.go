package storetest

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/evidence"
	"github.com/flowaudit/flowaudit/flow"
)

// proven: the line that a flow is proven by is the same when the store gives
// the flow back, and the store knows which batches it has.
func proven(t *testing.T, s Fixture) {
	full := sample()
	bare := flow.Flow{Key: flow.Key{Protocol: flow.TCP, Src: full.Src, Dst: full.Dst, Port: 1}, Start: T0.Add(time.Second), End: T0.Add(time.Hour), Node: "n1"}
	unnamed := bare
	unnamed.Port, unnamed.Source, unnamed.Service = 2, &flow.Endpoint{Workload: flow.Workload{Kind: "Job", Name: "x"}}, &flow.Service{Port: 9}
	// Times in between milliseconds, and an end before the start.
	odd := bare
	odd.Port, odd.Start, odd.End = 3, T0.Add(1500*time.Microsecond), T0
	flows := append(NewGenerator(5).Flows(500, T0, 10*time.Second), full, bare, unnamed, odd)
	first, second := batch(1, flows...), batch(2)
	must(t, s, first)
	keys := []flow.BatchKey{first.Key, second.Key}
	if got, err := s.Stored(t.Context(), keys); err != nil || !slices.Equal(got, []bool{true, false}) {
		t.Errorf("stored %v, %v: want the first only", got, err)
	}
	check := func(s store.Store) {
		t.Helper()
		var want, got []string
		for i := range flows {
			want = append(want, string(evidence.AppendFlow(nil, &flows[i])))
		}
		err := s.Reports(t.Context(), T0.Add(-time.Hour), T0.Add(time.Hour), func(f flow.Flow) bool {
			got = append(got, string(evidence.AppendFlow(nil, &f)))
			return true
		})
		slices.Sort(want)
		slices.Sort(got)
		if d := cmp.Diff(want, got); err != nil || d != "" {
			t.Errorf("%v: flows come back with other lines: %s", err, d)
		}
	}
	check(s)
	reopened := s.Reopen(t)
	check(reopened)
	if got, err := reopened.Stored(t.Context(), keys); err != nil || !slices.Equal(got, []bool{true, false}) {
		t.Errorf("stored %v, %v after a restart: want the first only", got, err)
	}
	if st, err := reopened.Stats(t.Context()); err != nil || st.Arrived.IsZero() || st.Arrived.After(T0) {
		t.Errorf("%+v, %v: all that arrived is kept", st, err)
	}
}
