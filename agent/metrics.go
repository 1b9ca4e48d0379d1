package agent

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/flowaudit/flowaudit/monitor"
)

// metrics tells Prometheus about an agent. It asks the parts when it is
// scraped, so that nothing is counted twice and the hot path does nothing for it.
type metrics struct {
	*agent
	stream *stream

	observations, malformed, contradicted, open        *prometheus.Desc
	connections, connectionsLimit, window, windowLimit *prometheus.Desc
	flows, told, gaps, gapTime, lost                   *prometheus.Desc
	queueBatches, queueFlows, queueLimit, shed, oldest *prometheus.Desc
	spool, spoolLimit                                  *prometheus.Desc
	connected, acknowledged, acknowledgedAt, rejected  *prometheus.Desc
	apiAway, apiSkew, limits                           *prometheus.Desc
}

func newMetrics(a *agent, s *stream) *metrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("flowaudit_agent_"+name, help, labels, nil)
	}
	return &metrics{
		agent: a, stream: s,
		observations: desc("observations_total", "Packets and connection events read from the sources."),
		malformed:    desc("malformed_messages_total", "Messages of a source that could not be decoded.", "source"),
		contradicted: desc("contradicted_total", "Logged refusals of packets that conntrack confirmed, which are no refusals."),
		open:         desc("source_open", "1 where the source is read, 0 where it could not be opened or has ended.", "source"),

		connections:      desc("connections", "Live connections that are kept apart."),
		connectionsLimit: desc("connections_limit", "How many live connections may be kept apart (--max-connections)."),
		window:           desc("window_flows", "Flows of the window that is open."),
		windowLimit:      desc("window_flows_limit", "Flows from which on a window closes early (--max-flows)."),

		flows:   desc("flows_total", "Flows given to the queue, by what happened.", "verdict"),
		told:    desc("connections_total", "Connections and attempts of the flows given to the queue, by what happened.", "verdict"),
		gaps:    desc("gaps_total", "Times during which not everything was seen, by why.", "kind"),
		gapTime: desc("gap_seconds_total", "How long those times were together.", "kind"),
		lost:    desc("lost_events_total", "Events known to be lost in them; where the number cannot be known, none is counted.", "kind"),

		queueBatches: desc("queue_batches", "Batches in memory that the collector has not acknowledged."),
		queueFlows:   desc("queue_flows", "Flows of those batches."),
		queueLimit:   desc("queue_flows_limit", "Flows in memory from which on the oldest are dropped (--max-queue)."),
		shed:         desc("shed_flows_total", "Flows dropped because the collector was away too long, or lost in a damaged spool; each is told in a gap."),
		oldest:       desc("queue_oldest_seconds", "Age of the oldest batch that is not acknowledged; 0 if none waits."),

		spool:      desc("spool_bytes", "What waits on disk."),
		spoolLimit: desc("spool_bytes_limit", "Bytes from which on the oldest is dropped (--spool-size); 0 without a spool."),

		connected:      desc("collector_connected", "1 while a stream to the collector is open."),
		acknowledged:   desc("acknowledged_batches_total", "Batches that the collector has acknowledged."),
		acknowledgedAt: desc("last_acknowledgement_timestamp_seconds", "When the collector last acknowledged a batch; 0 before the first."),
		rejected:       desc("rejected_flows_total", "Flows that the collector could not use."),

		apiAway: desc("api_server_away", "1 while the API server that names pods cannot be reached; 0 also where none is asked."),
		apiSkew: desc("clock_skew_seconds", "How far the API server's clock is ahead of the node's; 0 if it was not measured."),
		limits:  desc("limits", "What this agent cannot see by its nature, as flowaudit status lists it."),
	}
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(out chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, out) }

// Collect implements prometheus.Collector.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	m.collectSources(out)
	m.collectFlows(out)
	m.collectQueue(out)
	s := m.status()
	away := false
	if m.watch != nil {
		away = m.watch.Status().Away
	}
	gauge(out, m.apiAway, number(away))
	gauge(out, m.apiSkew, s.Skew.Seconds())
	gauge(out, m.limits, float64(len(s.Limits)))
}

func (m *metrics) collectSources(out chan<- prometheus.Metric) {
	counter(out, m.observations, float64(m.pulse.observations.Load()))
	counter(out, m.contradicted, float64(m.pulse.contradicted.Load()))
	malformed := m.sources.malformedBySource()
	for _, o := range m.sources.openers {
		counter(out, m.malformed, float64(malformed[o.name]), o.name)
		gauge(out, m.open, number(m.sources.get(o.name) != nil), o.name)
	}
	gauge(out, m.connections, float64(m.pulse.connections.Load()))
	gauge(out, m.connectionsLimit, float64(m.MaxConnections))
	gauge(out, m.window, float64(m.pulse.flows.Load()))
	gauge(out, m.windowLimit, float64(m.MaxFlows))
}

func (m *metrics) collectFlows(out chan<- prometheus.Metric) {
	flows, connections, gaps := m.tally.told()
	for v := range verdicts {
		counter(out, m.flows, float64(flows[v]), v.String())
		counter(out, m.told, float64(connections[v]), v.String())
	}
	for k := range gapKinds {
		counter(out, m.gaps, float64(gaps[k].count), k.String())
		counter(out, m.gapTime, gaps[k].time.Seconds(), k.String())
		counter(out, m.lost, float64(gaps[k].lost), k.String())
	}
}

func (m *metrics) collectQueue(out chan<- prometheus.Metric) {
	batches, flows, _ := m.queue.waiting()
	oldest, shed := m.queue.behind(time.Now())
	gauge(out, m.queueBatches, float64(batches))
	gauge(out, m.queueFlows, float64(flows))
	gauge(out, m.queueLimit, float64(m.MaxQueue))
	bytes, limit := m.queue.onDisk()
	gauge(out, m.spool, float64(bytes))
	gauge(out, m.spoolLimit, float64(limit))
	gauge(out, m.oldest, oldest.Seconds())
	counter(out, m.shed, float64(shed))
	gauge(out, m.connected, number(m.stream.connected.Load()))
	counter(out, m.acknowledged, float64(m.stream.acknowledged.Load()))
	counter(out, m.rejected, float64(m.stream.rejected.Load()))
	gauge(out, m.acknowledgedAt, float64(m.stream.acknowledgedAt.Load())/1e9)
}

func counter(out chan<- prometheus.Metric, d *prometheus.Desc, v float64, labels ...string) {
	out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
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

// subject is what the agent tells of itself over HTTP.
func (m *metrics) subject() monitor.Subject {
	registry := monitor.NewRegistry("flowaudit-agent", m.Version)
	registry.MustRegister(m)
	return monitor.Subject{Metrics: registry, Alive: m.alive, Ready: []monitor.Check{
		{Name: "sources", Fault: m.sources.closed}, {Name: "collector", Fault: m.away},
	}}
}

func (m *metrics) alive() error {
	if d := m.pulse.still(time.Now()); d > 0 {
		return fmt.Errorf("the table has not moved for %s", d.Truncate(time.Second))
	}
	return nil
}

func (m *metrics) away() error {
	if !m.stream.connected.Load() {
		return fmt.Errorf("no stream to %s is open", m.Collector.Address)
	}
	return nil
}

// closed names the sources that are not read.
func (s *sources) closed() error {
	var names []string
	for _, o := range s.openers {
		if s.get(o.name) == nil {
			names = append(names, o.name)
		}
	}
	if len(names) > 0 {
		return errors.New("not read: " + strings.Join(names, ", "))
	}
	return nil
}
