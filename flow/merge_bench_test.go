package flow_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// BenchmarkMergeOnePair: an operation is a hundred thousand reports of one
// pair within one window, as flows of single connections are.
func BenchmarkMergeOnePair(b *testing.B) {
	const reports = 100_000
	for _, test := range []struct {
		name    string
		nodes   int
		verdict flow.Verdict
	}{{"one node, allowed", 1, flow.VerdictAllowed}, {"two nodes, allowed", 2, flow.VerdictAllowed}, {"two nodes, unanswered", 2, flow.VerdictUnanswered}} {
		b.Run(test.name, func(b *testing.B) {
			made := make([]flow.Flow, reports)
			for i := range made {
				made[i] = flow.Flow{
					Key: flow.Key{
						Protocol: flow.TCP, Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"), Port: 80, Verdict: test.verdict,
					},
					Node: fmt.Sprint(i % test.nodes), SourcePort: uint16(i / test.nodes), Connections: 1,
					Start: time.UnixMilli(int64(i / 10)), End: time.UnixMilli(int64(i/10) + 5),
				}
			}
			for b.Loop() {
				m := flow.NewMerger(15*time.Second, func(flow.Flow) bool { return true })
				for _, f := range made {
					m.Add(f)
				}
				m.Close()
			}
		})
	}
}
