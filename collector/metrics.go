package collector

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/monitor"
)

// metrics tells Prometheus about a collector, when it is scraped.
type metrics struct {
	*collector
	stats storeStats

	denied, unexplained, unenforced, flows, connections      *prometheus.Desc
	agents, nodes, watched, gaps, gapTime, lost              *prometheus.Desc
	batches, rejected, unnamed, ambiguous, failures          *prometheus.Desc
	waiting, waitingLimit, followers                         *prometheus.Desc
	up, storedFlows, bytes, oldest, slices                   *prometheus.Desc
	objects, forgotten, problems, synced, apiAway, clockSkew *prometheus.Desc
}

func newMetrics(c *collector) *metrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("flowaudit_"+name, help, labels, nil)
	}
	pair := []string{"cluster", "source_namespace", "source_workload", "destination_namespace", "destination_workload"}
	return &metrics{
		collector: c, stats: storeStats{store: c.Store},
		denied:      desc("denied_connections_total", "Attempts that were refused, by who tried to reach whom.", pair...),
		unexplained: desc("unexplained_connections_total", "Those of them that the policies allow.", pair...),
		unenforced:  desc("unenforced_connections_total", "Connections that the policies deny and that passed all the same.", pair...),
		flows:       desc("flows_total", "Flows stored, by what happened and what that is by the policies; two nodes may report one connection.", "verdict", "assessment"),
		connections: desc("connections_total", "Connections of these flows, each at one node only while both ends' nodes report.", "verdict", "assessment"),

		agents:  desc("collector_agents", "Agents heard of in the last day: reporting, or silent for more than a minute.", "scope", "state"),
		nodes:   desc("collector_node_last_report_timestamp_seconds", "When a batch of the node's agent was last stored.", "cluster", "node"),
		watched: desc("collector_watched_seconds_total", "Time covered by the batches of all agents: its rate is how many report.", "scope"),
		gaps:    desc("collector_gaps_total", "Times during which a node could not see everything, by why.", "kind"),
		gapTime: desc("collector_gap_seconds_total", "How long those times were together.", "kind"),
		lost:    desc("collector_lost_events_total", "Events known to be lost in them; where the number cannot be known, none is counted.", "kind"),

		batches:      desc("collector_batches_total", "Batches taken: stored, or duplicate, which an agent sent again.", "result"),
		rejected:     desc("collector_rejected_flows_total", "Flows that could not be used."),
		unnamed:      desc("collector_unnamed_flows_total", "Flows stored with an end that nobody could name."),
		ambiguous:    desc("collector_ambiguous_flows_total", "Flows stored with an end that could be one of several."),
		failures:     desc("store_append_failures_total", "Transactions of the store that failed; the agents send their batches again."),
		waiting:      desc("collector_waiting_batches", "Batches that wait for the store."),
		waitingLimit: desc("collector_waiting_batches_limit", "Batches from which on agents are held back."),
		followers:    desc("collector_followers", "Askers that follow flows live."),

		up:          desc("store_up", "1 if the store answers."),
		storedFlows: desc("store_flows", "Flows kept."),
		bytes:       desc("store_bytes", "What the store takes on disk."),
		oldest:      desc("store_oldest_timestamp_seconds", "When the oldest flow that is kept began; 0 if there is none."),
		slices:      desc("store_slices", "Files of the store, or partitions."),

		objects:   desc("collector_cluster_objects", "Objects of the cluster that are known.", "kind"),
		forgotten: desc("collector_forgotten_holders_total", "Former holders of addresses that were forgotten for lack of room: flows of then may have no name."),
		problems:  desc("collector_cluster_problems", "What is wrong with those objects, or keeps them from being read, as flowaudit status lists it."),
		synced:    desc("collector_cluster_synced", "1 once the cluster's objects are known, also where none are asked for."),
		apiAway:   desc("collector_api_server_away", "1 while the API server cannot be reached; 0 also where none is asked."),
		clockSkew: desc("collector_clock_skew_seconds", "How far the API server's clock is ahead of this one; 0 if it was not measured."),
	}
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		m.denied, m.unexplained, m.unenforced, m.flows, m.connections, m.agents, m.nodes, m.watched, m.gaps, m.gapTime, m.lost,
		m.batches, m.rejected, m.unnamed, m.ambiguous, m.failures, m.waiting, m.waitingLimit, m.followers,
		m.up, m.storedFlows, m.bytes, m.oldest, m.slices, m.objects, m.forgotten, m.problems, m.synced, m.apiAway, m.clockSkew,
	} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	m.collectMeasures(out)
	m.collectAgents(out)
	m.collectStore(out)
	m.collectCluster(out)
	counter(out, m.rejected, m.ingest.rejected.Load())
	counter(out, m.unnamed, m.ingest.unnamed.Load())
	counter(out, m.ambiguous, m.ingest.ambiguous.Load())
	gauge(out, m.waiting, float64(len(m.committer.waiting)))
	gauge(out, m.waitingLimit, float64(cap(m.committer.waiting)))
	gauge(out, m.followers, float64(m.hub.count()))
}

func (m *metrics) collectMeasures(out chan<- prometheus.Metric) {
	x := m.measures.snapshot(time.Now())
	x.pairs.each(func(k workloadPair, c pairCounts) {
		labels := []string{k.cluster, k.source.namespace, k.source.label(), k.destination.namespace, k.destination.label()}
		counter(out, m.denied, c.denied, labels...)
		counter(out, m.unexplained, c.unexplained, labels...)
		counter(out, m.unenforced, c.unenforced, labels...)
	})
	for v := range verdicts {
		for a := range assessments {
			counter(out, m.flows, x.flows[v][a], v.String(), a.String())
			counter(out, m.connections, x.connections[v][a], v.String(), a.String())
		}
	}
	for k := range gapKinds {
		counter(out, m.gaps, x.gaps[k].count, k.String())
		counterSeconds(out, m.gapTime, x.gaps[k].time, k.String())
		counter(out, m.lost, x.gaps[k].lost, k.String())
	}
	for scope, d := range x.watched {
		counterSeconds(out, m.watched, d, flow.Scope(scope).String())
	}
	for k, last := range x.nodes {
		gauge(out, m.nodes, seconds(last), k.cluster, k.node)
	}
	counter(out, m.batches, x.batches, "stored")
	counter(out, m.batches, x.duplicates, "duplicate")
	counter(out, m.failures, x.failures)
}

func (m *metrics) collectAgents(out chan<- prometheus.Metric) {
	var count [flow.ScopePod + 1][2]float64 // reporting, silent
	for _, r := range m.collector.agents.list() {
		state := 0
		if time.Since(r.lastSeen) > silence {
			state = 1
		}
		count[min(r.scope, flow.ScopePod)][state]++
	}
	for scope, states := range count {
		gauge(out, m.agents, states[0], flow.Scope(scope).String(), "reporting")
		gauge(out, m.agents, states[1], flow.Scope(scope).String(), "silent")
	}
}

func (m *metrics) collectStore(out chan<- prometheus.Metric) {
	s, err := m.stats.get()
	gauge(out, m.up, number(err == nil))
	if err != nil {
		return // what it holds is not known
	}
	gauge(out, m.storedFlows, float64(s.Flows))
	gauge(out, m.bytes, float64(s.Bytes))
	gauge(out, m.slices, float64(s.Slices))
	gauge(out, m.oldest, seconds(s.Oldest))
}

func (m *metrics) collectCluster(out chan<- prometheus.Metric) {
	known := m.index.Stats()
	for kind, n := range map[string]int{
		"namespaces": known.Namespaces, "nodes": known.Nodes, "pods": known.Pods, "services": known.Services, "policies": known.Policies,
	} {
		gauge(out, m.objects, float64(n), kind)
	}
	counter(out, m.forgotten, known.Forgotten)
	problems, away, skew := len(known.Problems), false, time.Duration(0)
	if m.watch != nil {
		w := m.watch.Status()
		problems, away, skew = problems+len(w.Problems), w.Away, w.Skew
	}
	gauge(out, m.problems, float64(problems))
	gauge(out, m.synced, number(m.unsynced() == nil))
	gauge(out, m.apiAway, number(away))
	gauge(out, m.clockSkew, skew.Seconds())
}

func counter(out chan<- prometheus.Metric, d *prometheus.Desc, n uint64, labels ...string) {
	out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
}

func counterSeconds(out chan<- prometheus.Metric, d *prometheus.Desc, t time.Duration, labels ...string) {
	out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, t.Seconds(), labels...)
}

func gauge(out chan<- prometheus.Metric, d *prometheus.Desc, v float64, labels ...string) {
	out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixNano()) / 1e9
}

// subject is what the collector tells of itself over HTTP.
func (m *metrics) subject() monitor.Subject {
	registry := monitor.NewRegistry("flowaudit-collector", m.Version)
	registry.MustRegister(m, newAlertMetrics(m.alerting), m.measures.lag, m.measures.append)
	return monitor.Subject{Metrics: registry, Ready: []monitor.Check{
		{Name: "cluster", Fault: m.unsynced},
		{Name: "store", Fault: func() error {
			_, err := m.stats.get()
			return errors.Join(err, m.measures.writable())
		}},
	}}
}

// unsynced says what is not known of the cluster yet.
func (m *metrics) unsynced() error {
	select {
	case <-m.ready:
	default:
		return errors.New("its objects are being listed")
	}
	if m.watch == nil {
		return nil
	}
	select {
	case <-m.watch.Synced():
		return nil
	default:
		return fmt.Errorf("its objects could not be listed yet: %v", m.watch.Status().Problems)
	}
}

// storeStats asks the store what it holds, so often at most that nobody who
// scrapes or probes can keep it busy.
type storeStats struct {
	store store.Store

	mu    sync.Mutex
	asked time.Time
	stats store.Stats
	err   error
}

const (
	statsInterval = 15 * time.Second
	statsTimeout  = 5 * time.Second
)

func (s *storeStats) get() (store.Stats, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.asked.IsZero() && time.Since(s.asked) < statsInterval {
		return s.stats, s.err
	}
	ctx, cancel := context.WithTimeout(context.Background(), statsTimeout)
	defer cancel()
	s.stats, s.err = s.store.Stats(ctx)
	s.asked = time.Now()
	return s.stats, s.err
}
