package conntrack

import (
	"math"
	"testing"
	"time"

	ctnetlink "github.com/ti-mo/conntrack"

	"github.com/flowaudit/flowaudit/flow"
)

func TestAFullTableIsAGap(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	var gaps []flow.Gap
	var stats []ctnetlink.Stats
	s := &Source{o: Options{Node: "n1", Lost: func(g flow.Gap) { gaps = append(gaps, g) }}, stats: func() ([]ctnetlink.Stats, error) { return stats, nil }}
	for i, c := range []struct {
		name  string
		stats []ctnetlink.Stats
		lost  uint64
	}{
		{"what was before the agent is not its gap", []ctnetlink.Stats{{Drop: 5}, {Drop: 3}}, 0},
		{"nothing new", []ctnetlink.Stats{{Drop: 5}, {Drop: 3}}, 0},
		{"dropped on two processors", []ctnetlink.Stats{{Drop: 9}, {Drop: 4}}, 5},
		{"two packets of one connection raced", []ctnetlink.Stats{{Drop: 10, InsertFailed: 1}, {Drop: 4}}, 0},
		{"both", []ctnetlink.Stats{{Drop: 14, InsertFailed: 2}, {Drop: 4}}, 3},
		{"clashes that dropped nothing", []ctnetlink.Stats{{Drop: 14, InsertFailed: 9}, {Drop: 4}}, 0},
		{"up to the counter's end", []ctnetlink.Stats{{Drop: math.MaxUint32, InsertFailed: 9}, {Drop: 0}}, math.MaxUint32 - 18},
		{"it wraps", []ctnetlink.Stats{{Drop: 1, InsertFailed: 9}, {Drop: 0}}, 2},
	} {
		gaps, stats = nil, c.stats
		if err := s.tellFull(now.Add(time.Duration(i) * time.Second)); err != nil {
			t.Fatal(err)
		}
		switch {
		case c.lost == 0 && len(gaps) > 0:
			t.Errorf("%s: gaps %+v", c.name, gaps)
		case c.lost > 0 && (len(gaps) != 1 || gaps[0].Lost != c.lost || gaps[0].Kind != flow.GapTable || gaps[0].Source != "conntrack" || gaps[0].End.Sub(gaps[0].Start) != time.Second):
			t.Errorf("%s: gaps %+v, want one of a second, %d lost", c.name, gaps, c.lost)
		}
	}
}
