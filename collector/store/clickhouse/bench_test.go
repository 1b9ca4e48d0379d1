package clickhouse

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/flowaudit/flowaudit/collector/store/clickhouse/clickhousetest"
	"github.com/flowaudit/flowaudit/collector/store/storetest"
	"github.com/flowaudit/flowaudit/flow"
)

// group is what the collector commits at once when it is busy.
const group = 200_000

// BenchmarkAppend: an operation is a group of flows, from memory to durable.
// bare inserts the same columns with the driver alone.
func BenchmarkAppend(b *testing.B) {
	for name, p := range map[string]*clickhousetest.Server{"old": shared.old, "today": shared.today} {
		if p == nil {
			continue
		}
		g := storetest.NewGenerator(1)
		var groups [][]flow.Flow
		for i := range 5 {
			groups = append(groups, g.Flows(group, storetest.T0.Add(time.Duration(i)*10*time.Second), 10*time.Second))
		}
		for _, what := range []string{"store", "bare"} {
			b.Run(name+"/"+what, func(b *testing.B) {
				s, err := Open(b.Context(), Options{
					URL: p.URL(fmt.Sprintf("bench%d", databases.Add(1))), Logger: slog.New(slog.DiscardHandler), Pace: -1, Now: now,
				})
				if err != nil {
					b.Fatal(err)
				}
				defer s.Close()
				var sequence uint64
				for b.Loop() {
					flows := groups[sequence%5]
					sequence++
					if what == "store" {
						appendGroup(b, s, sequence, flows)
					} else {
						insertBare(b, s, flows)
					}
				}
				b.ReportMetric(float64(b.N)*group/b.Elapsed().Seconds(), "flows/s")
				reportDisk(b, s)
			})
		}
	}
}

func appendGroup(b *testing.B, s *Store, sequence uint64, flows []flow.Flow) {
	const batchFlows = 8192
	var batches []flow.Batch
	for n := 0; len(flows) > 0; n++ {
		size := min(batchFlows, len(flows))
		batches = append(batches, flow.Batch{
			Key: flow.BatchKey{Cluster: "c", Instance: fmt.Sprintf("n%d", n), Epoch: 1, Sequence: sequence}, Node: "n",
			Start: storetest.T0, End: storetest.T0.Add(10 * time.Second), Flows: flows[:size],
		})
		flows = flows[size:]
	}
	if _, err := s.Append(b.Context(), batches); err != nil {
		b.Fatal(err)
	}
}

func insertBare(b *testing.B, s *Store, flows []flow.Flow) {
	if err := s.appendFlows(b.Context(), s.rowsOf(1, []claim{{&flow.Batch{Flows: flows}, 1}})); err != nil {
		b.Fatal(err)
	}
}

// reportDisk says what a flow takes once parts are merged.
func reportDisk(b *testing.B, s *Store) {
	for _, table := range []string{"flow", "key"} {
		if err := s.conn.Exec(b.Context(), fmt.Sprintf("OPTIMIZE TABLE %s FINAL", table)); err != nil {
			b.Fatal(err)
		}
	}
	var bytes, rows uint64
	if err := s.conn.QueryRow(b.Context(), `SELECT sum(bytes_on_disk), sumIf(rows, table = 'flow') FROM system.parts
		WHERE active AND database = currentDatabase() AND table IN ('flow', 'key', 'batch', 'covered')`).Scan(&bytes, &rows); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(bytes)/float64(rows), "bytes/flow")
}
