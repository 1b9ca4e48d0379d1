package duckdb

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/collector/store/storetest"
	"github.com/flowaudit/flowaudit/flow"
)

// The newest flows are the same whether they are held in memory or not.
func TestManyLastFlows(t *testing.T) {
	now := storetest.T0
	s := open(t, t.TempDir(), func() time.Time { return now })
	fill(t, s, &now)
	denied := flow.Filter{Match: flow.Selector{Verdicts: []flow.Verdict{flow.VerdictDenied}}}
	for name, filter := range map[string]flow.Filter{
		"all": {}, "denied": denied, "none": {Match: flow.Selector{Nodes: []string{"nowhere"}}},
		"early": {Until: storetest.T0.Add(time.Hour)}, "late": {Since: storetest.T0.Add(2 * time.Hour)},
	} {
		for _, n := range []int{1, 50, 3000, 1 << 40} {
			last := func(inMemory int) (starts []int64) {
				s.inMemory = inMemory
				err := s.Flows(t.Context(), store.FlowsRequest{Sight: flow.SeeAll(), Filter: filter, Last: n}, func(f flow.Flow) bool {
					starts = append(starts, f.Start.UnixMilli())
					return true
				})
				if err != nil {
					t.Fatal(err)
				}
				return starts
			}
			if d := cmp.Diff(last(1<<41), last(0)); d != "" {
				t.Errorf("%s, last %d: %s", name, n, d)
			}
		}
	}
}
