package collector

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/collector/store/duckdb"
	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy/history/historytest"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

func TestRulesAreTriedOnWhatIsStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		edge := func(f flow.Flow, ago time.Duration) *flow.Edge {
			f.Start = now.Add(-ago)
			f.End = f.Start
			b := flow.NewEdgeBuilder()
			b.Add([]flow.Flow{f})
			return b.Edges()[0]
		}
		s := &memory{}
		s.edges = []*flow.Edge{edge(refusedFlow(3306), 50*time.Hour)}
		for p := range 50 {
			s.edges = append(s.edges, edge(refusedFlow(uint16(p+1)), 20*time.Hour))
		}
		r := serve(t, s)
		defer r.close(t)
		test := func(req *flowauditv1.TestRulesRequest) (*flowauditv1.TestRulesResponse, string) {
			got, err := r.alertsClient().TestRules(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			var rules []string
			for _, a := range got.GetAlerts() {
				rules = append(rules, a.GetRule())
			}
			return got, strings.Join(rules, " ")
		}
		got, rules := test(&flowauditv1.TestRulesRequest{})
		if rules != "first-denied port-scan" || got.GetEdges() != 51 || got.GetEdgeHours() != 51 {
			t.Errorf("%s fired, of %d edges and %d hours", rules, got.GetEdges(), got.GetEdgeHours())
		}
		if _, rules = test(&flowauditv1.TestRulesRequest{Cluster: "other"}); rules != "" {
			t.Errorf("%s fired in another cluster", rules)
		}
		got, rules = test(&flowauditv1.TestRulesRequest{Rules: "default_rules: false\nrules: [{name: mine, match: {port: ['3306']}, group: [edge], new: denial}, {name: bad}]"})
		if rules != "mine" || len(got.GetProblems()) != 1 || len(got.GetRules()) != 1 || got.GetRules()[0].GetFired() != 1 {
			t.Errorf("%s fired, %v", rules, got)
		}
	})
}

// BenchmarkTestRules is a month: 20,000 edges and 3 million edge-hours, as
// suggestion and replay are measured by, in a store on disk.
func BenchmarkTestRules(b *testing.B) {
	now := historytest.Begin()
	s, err := duckdb.Open(b.Context(), duckdb.Options{Dir: b.TempDir(), Logger: slog.New(slog.DiscardHandler), Now: func() time.Time { return now }})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	hours := fill(b, s, &now)
	c, err := newCollector(Options{Log: slog.New(slog.DiscardHandler), Store: s, Alerts: AlertOptions{Queue: b.TempDir()}}, &authenticator{proofs: []Proof{ProofNone}})
	if err != nil {
		b.Fatal(err)
	}
	var got *flowauditv1.TestRulesResponse
	for b.Loop() {
		got, err = c.alerts().TestRules(b.Context(), &flowauditv1.TestRulesRequest{Since: historytest.Begin().UnixMilli(), Until: historytest.End().UnixMilli()})
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(got.GetEdges()), "edges")
	b.ReportMetric(float64(hours), "edge-hours")
	b.ReportMetric(float64(len(got.GetAlerts())), "alerts")
}

// fill stores the large history, a flow an edge and hour.
func fill(b *testing.B, s store.Store, now *time.Time) (hours int) {
	b.Helper()
	in := historytest.Large(1, 20_000).Input
	if err := s.Record(b.Context(), in.Changes); err != nil {
		b.Fatal(err)
	}
	var flows []flow.Flow
	var sequence uint64
	flush := func() {
		sequence++
		batch := flow.Batch{
			Key: flow.BatchKey{Cluster: "c", Instance: "n1", Sequence: sequence}, Node: "n1", Flows: flows,
			Start: historytest.Begin().Add(time.Duration(sequence-1) * 20 * time.Hour), End: historytest.Begin().Add(time.Duration(sequence) * 20 * time.Hour),
		}
		if _, err := s.Append(b.Context(), []flow.Batch{batch}); err != nil {
			b.Fatal(err)
		}
		*now = now.Add(2 * time.Hour)
		flows = flows[:0]
	}
	ends := make(map[string]netip.Addr)
	for _, e := range in.Edges {
		f := *edgeFlow(e)
		f.Source.Pod, f.Destination.Pod = e.Source.Workload.Name, e.Destination.Workload.Name
		for _, side := range []struct {
			end  *flow.EdgeEnd
			addr *netip.Addr
		}{{&e.Source, &f.Src}, {&e.Destination, &f.Dst}} {
			if name := fmt.Sprint(side.end.Identity); side.end.Identity != 0 {
				if !ends[name].IsValid() {
					ends[name] = netip.AddrFrom4([4]byte{10, 1, byte(len(ends) >> 8), byte(len(ends))})
				}
				*side.addr = ends[name]
			}
		}
		f.Node, f.Connections = "n1", e.Connections/uint64(e.Hours)+1
		for h := range e.Hours {
			f.Start = e.First.Add(time.Duration(h) * time.Hour)
			f.End = f.Start.Add(30 * time.Minute)
			flows = append(flows, f)
			if hours++; len(flows) == 100_000 {
				flush()
			}
		}
	}
	flush()
	flush()
	return hours
}
