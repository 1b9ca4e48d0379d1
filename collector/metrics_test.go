package collector

import (
	"flag"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/monitor/monitortest"
)

var update = flag.Bool("update", false, "write the list of metrics anew")

// registry is what a collector's metrics are read from.
func (r *running) registry(t *testing.T) *prometheus.Registry {
	t.Helper()
	return newMetrics(r.collector).subject().Metrics.(*prometheus.Registry)
}

// podOf is a pod of a workload.
func podOf(node, namespace, kind, name, pod string) *flow.Endpoint {
	return &flow.Endpoint{Kind: flow.EndpointPod, Node: node, Namespace: namespace, Pod: pod, Workload: flow.Workload{Kind: kind, Name: name}}
}

// between is a flow from one end to another, judged.
func between(src, dst *flow.Endpoint, v flow.Verdict, a flow.Assessment, connections uint64) flow.Flow {
	f := flowTo(80, v)
	f.Source, f.Destination, f.Assessment, f.Connections = src, dst, a, connections
	return f
}

// counts lists the pairs that a collector tells apart.
func counts(m *measures) map[string]pairCounts {
	out := make(map[string]pairCounts)
	p := m.snapshot(time.Now()).pairs
	p.each(func(k workloadPair, c pairCounts) {
		c.seen = time.Time{}
		out[fmt.Sprintf("%s %s/%s > %s/%s", k.cluster, k.source.namespace, k.source.label(), k.destination.namespace, k.destination.label())] = c
	})
	return out
}

// TestRefusalsCountByWorkload: a rollout makes no new series.
func TestRefusalsCountByWorkload(t *testing.T) {
	web, again := podOf("node-1", "shop", "Deployment", "web", "web-1"), podOf("node-1", "shop", "Deployment", "web", "web-2")
	db, bare := podOf("node-2", "shop", "StatefulSet", "db", "db-0"), podOf("node-1", "ops", "Pod", "debug", "debug")
	outside := &flow.Endpoint{Kind: flow.EndpointOutside}
	m := newMeasures(100)
	m.stored([]flow.Batch{batchOf(1,
		between(web, db, flow.VerdictDenied, flow.AssessmentEnforced, 3),
		between(again, db, flow.VerdictDenied, flow.AssessmentUnexplained, 4),
		between(bare, nil, flow.VerdictDenied, flow.AssessmentEnforced, 1),
		between(outside, web, flow.VerdictAllowed, flow.AssessmentUnenforced, 5),
		between(web, outside, flow.VerdictAllowed, flow.AssessmentAllowed, 9),
		between(web, outside, flow.VerdictUnanswered, flow.AssessmentEnforced, 9),
		between(web, db, flow.VerdictDenied, flow.AssessmentEnforced, 0), // counters of an earlier window
	)})
	want := map[string]pairCounts{
		"c shop/Deployment/web > shop/StatefulSet/db": {denied: 7, unexplained: 4},
		"c ops/Pod > /unknown":                        {denied: 1},
		"c /outside > shop/Deployment/web":            {unenforced: 5},
	}
	if got := counts(m); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestPairsBeyondTheLimit: they count as of others, and those not seen for a
// day make room.
func TestPairsBeyondTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMeasures(2)
		from := func(i int) flow.Batch {
			return batchOf(1, between(podOf("node-1", "n", "Deployment", fmt.Sprint(i), "p"), nil, flow.VerdictDenied, 0, 1))
		}
		for i := range 1000 {
			m.stored([]flow.Batch{from(i)})
		}
		got := counts(m)
		if len(got) != 3 || got["other other/other > other/other"].denied != 998 || got["c n/Deployment/1 > /unknown"].denied != 1 {
			t.Errorf("after a thousand workloads: %v", got)
		}
		time.Sleep(pairMemory / 2) // the bubble's
		m.stored([]flow.Batch{from(1)})
		time.Sleep(pairMemory/2 + time.Minute)
		m.stored([]flow.Batch{from(7)})
		got = counts(m)
		if len(got) != 3 || got["c n/Deployment/7 > /unknown"].denied != 1 || got["c n/Deployment/1 > /unknown"].denied != 2 {
			t.Errorf("a day later: %v", got)
		}
	})
}

// TestAConnectionThatTwoNodesReportCountsOnce: at the destination's, unless
// that one is silent.
func TestAConnectionThatTwoNodesReportCountsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMeasures(10)
		web, db := podOf("node-1", "shop", "Deployment", "web", "web-1"), podOf("node-2", "shop", "StatefulSet", "db", "db-0")
		passed := func(node string, n uint64) flow.Batch {
			return batchFrom(node, 1, between(web, db, flow.VerdictAllowed, flow.AssessmentUnenforced, n))
		}
		const pair = "c shop/Deployment/web > shop/StatefulSet/db"
		m.stored([]flow.Batch{passed("node-1", 1)}) // nobody knows of node-2 yet
		m.stored([]flow.Batch{passed("node-2", 10), passed("node-1", 100)})
		if got := counts(m)[pair].unenforced; got != 11 {
			t.Errorf("%d connections, want 11", got)
		}
		time.Sleep(2 * silence) // the bubble's
		m.stored([]flow.Batch{passed("node-1", 1000)})
		if got := counts(m)[pair].unenforced; got != 1011 {
			t.Errorf("%d connections after node-2 went silent, want 1011", got)
		}
	})
}

// TestMetricsOfACollector: over what agents bring, and what goes wrong.
func TestMetricsOfACollector(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fails := false
		s := &memory{onAppend: func([]flow.Batch) error {
			if fails {
				return errDisk
			}
			return nil
		}}
		c := serveWith(t, s, Options{Alerts: AlertOptions{Alertmanagers: []string{"http://127.0.0.1:1"}}})
		defer c.close(t)
		b := batchOf(1, denied(3)...)
		b.End = b.Start.Add(10 * time.Second)
		b.Gaps = []flow.Gap{{Node: "node-1", Kind: flow.GapOverrun, Start: b.Start, End: b.Start.Add(2 * time.Second), Lost: 9}}
		time.Sleep(20 * time.Second) // the bubble's
		c.keep(t, b)
		c.keep(t, b)
		r := c.registry(t)
		monitortest.Shows(t, r, fmt.Sprintf(`flowaudit_flows_total{assessment="unknown",verdict="denied"} 3
			flowaudit_connections_total{assessment="unknown",verdict="denied"} 3
			flowaudit_denied_connections_total{cluster="c",destination_namespace="",destination_workload="unknown",source_namespace="",source_workload="unknown"} 3
			flowaudit_collector_agents{scope="node",state="reporting"} 1
			flowaudit_collector_agents{scope="node",state="silent"} 0
			flowaudit_collector_agents{scope="pod",state="silent"} 0
			flowaudit_collector_node_last_report_timestamp_seconds{cluster="c",node="node-1"} %v
			flowaudit_collector_watched_seconds_total{scope="node"} 10
			flowaudit_collector_gaps_total{kind="overrun"} 1
			flowaudit_collector_gap_seconds_total{kind="overrun"} 2
			flowaudit_collector_lost_events_total{kind="overrun"} 9
			flowaudit_collector_batches_total{result="stored"} 1
			flowaudit_collector_batches_total{result="duplicate"} 1
			flowaudit_collector_report_lag_seconds_count 1
			flowaudit_collector_report_lag_seconds_sum 10
			flowaudit_store_append_seconds_count 2
			flowaudit_store_append_failures_total 0
			flowaudit_store_up 1
			flowaudit_store_flows 3
			flowaudit_store_bytes 7
			flowaudit_collector_cluster_synced 1
			flowaudit_alerts_firing{rule="first-denied",severity="warning"} 0
			flowaudit_alerts_leader 1
			flowaudit_alerts_config_problems 0
			flowaudit_collector_waiting_batches_limit 64`, float64(time.Now().UnixNano())/1e9))
		monitortest.Lint(t, r)
		monitortest.Document(t, r, "../docs/metrics.md", "collector", *update)

		fails = true
		stream := c.report(t)
		send(t, stream, batchOf(2, denied(1)...))
		if _, err := stream.Recv(); err == nil {
			t.Fatal("acknowledged")
		}
		monitortest.Shows(t, r, `flowaudit_store_append_failures_total 1`)
		if got := faults(c); got != "store: "+errDisk.Error() {
			t.Errorf("not ready for %q", got)
		}
		time.Sleep(2 * silence)
		if got := faults(c); got != "" {
			t.Errorf("two minutes later, and nobody reports, not ready for %q", got)
		}
		monitortest.Shows(t, r, `flowaudit_collector_agents{scope="node",state="silent"} 1`)
	})
}

// faults are why a collector is not ready.
func faults(c *running) string {
	var out []string
	for _, check := range newMetrics(c.collector).subject().Ready {
		if err := check.Fault(); err != nil {
			out = append(out, check.Name+": "+err.Error())
		}
	}
	return strings.Join(out, "; ")
}

func TestACollectorThatDoesNotKnowTheClusterIsNotReady(t *testing.T) {
	c, err := newCollector(Options{Log: slog.New(slog.DiscardHandler), Store: &memory{}, Cluster: "c"}, &authenticator{proofs: []Proof{ProofNone}})
	if err != nil {
		t.Fatal(err)
	}
	if got := faults(&running{collector: c}); got != "cluster: its objects are being listed" {
		t.Errorf("not ready for %q", got)
	}
	close(c.ready)
	if got := faults(&running{collector: c}); got != "" {
		t.Errorf("not ready for %q", got)
	}
}

// BenchmarkMeasure: what counting adds to storing a flow.
func BenchmarkMeasure(b *testing.B) {
	const size = 1000
	for name, share := range map[string]int{"allowed": size, "one in ten refused": 10, "refused": 1} {
		b.Run(name, func(b *testing.B) {
			flows := make([]flow.Flow, size)
			for i := range flows {
				v := flow.VerdictAllowed
				if i%share == share-1 {
					v = flow.VerdictDenied
				}
				flows[i] = between(podOf("node-1", "shop", "Deployment", fmt.Sprint("web-", i%100), "p"), podOf("node-2", "shop", "StatefulSet", "db", "p"), v, flow.AssessmentAllowed, 1)
			}
			m := newMeasures(2000)
			batches := []flow.Batch{batchOf(1, flows...)}
			b.ReportAllocs()
			for b.Loop() {
				m.stored(batches)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/size, "ns/flow")
		})
	}
}
