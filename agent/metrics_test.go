package agent

import (
	"context"
	"errors"
	"flag"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/monitor"
	"github.com/flowaudit/flowaudit/monitor/monitortest"
)

var update = flag.Bool("update", false, "write the list of metrics anew")

// idle is a source that is open and silent.
type idle string

func (i idle) Name() string                { return string(i) }
func (idle) Run(ctx context.Context) error { <-ctx.Done(); return nil }
func (idle) Malformed() uint64             { return 3 }

// watched is an agent on two sources, of which one cannot be opened.
func watched(t *testing.T) *metrics {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	o := DefaultOptions()
	o.Log, o.Node, o.MaxQueue, o.Collector.Address = log, "n1", 5, "c:4245"
	a := &agent{Options: o, inbox: newInbox(), queue: newQueue("c", "n1", 7, o.MaxQueue), limits: []string{"no bytes"}}
	a.sources = newSources([]opener{
		{"conntrack", func() (source, error) { return idle("conntrack"), nil }},
		{"nflog:100", func() (source, error) { return nil, errors.New("somebody else reads the group") }},
	}, a.inbox.lost, log)
	if _, err := a.sources.start(); err != nil {
		t.Fatal(err)
	}
	a.loop = newLoop(loopOptions{}, newScene(nil).table, a.inbox, nil)
	a.pulse = a.loop.pulse
	return newMetrics(a, &stream{queue: a.queue, log: log})
}

// shows compares some metrics, written as a scrape has them.
func shows(t *testing.T, m *metrics, want string) {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(m)
	monitortest.Shows(t, r, want)
}

func flows(verdict flow.Verdict, n int) []flow.Flow {
	out := make([]flow.Flow, n)
	for i := range out {
		out[i] = flow.Flow{Key: flow.Key{Verdict: verdict}, Connections: 2}
	}
	return out
}

func TestMetricsOfWhatBatchesTold(t *testing.T) {
	m := watched(t)
	now := time.Now()
	for _, b := range []*flow.Batch{
		{Flows: append(flows(flow.VerdictDenied, 2), flows(flow.VerdictAllowed, 1)...), Start: now.Add(-20 * time.Second), End: now.Add(-10 * time.Second)},
		{
			Flows: flows(flow.VerdictDenied, 1), Start: now, End: now,
			Gaps: []flow.Gap{{Kind: flow.GapOverrun, Start: now, End: now.Add(3 * time.Second), Lost: 40}, {Kind: flow.GapOverrun, Start: now, End: now, Lost: 2}, {Kind: 250}},
		},
	} {
		m.tally.add(b)
		m.queue.put(b)
	}
	shows(t, m, `flowaudit_agent_flows_total{verdict="denied"} 3
		flowaudit_agent_flows_total{verdict="allowed"} 1
		flowaudit_agent_flows_total{verdict="unanswered"} 0
		flowaudit_agent_connections_total{verdict="denied"} 6
		flowaudit_agent_gaps_total{kind="overrun"} 2
		flowaudit_agent_gaps_total{kind="unknown"} 1
		flowaudit_agent_gap_seconds_total{kind="overrun"} 3
		flowaudit_agent_lost_events_total{kind="overrun"} 42
		flowaudit_agent_queue_batches 2
		flowaudit_agent_queue_flows 4
		flowaudit_agent_shed_flows_total 0`)
	m.queue.put(&flow.Batch{Flows: flows(flow.VerdictDenied, 2)})
	shows(t, m, `flowaudit_agent_shed_flows_total 1`)
}

func TestTheOldestBatchThatWaits(t *testing.T) {
	q := newQueue("c", "n1", 7, 100)
	now := time.Now()
	if age, _ := q.behind(now); age != 0 {
		t.Errorf("an empty queue is %s behind", age)
	}
	q.put(&flow.Batch{End: now.Add(-time.Minute)})
	q.put(&flow.Batch{End: now})
	if age, _ := q.behind(now); age != time.Minute {
		t.Errorf("%s behind, want a minute", age)
	}
}

func TestMetricsOfTheTable(t *testing.T) {
	m := watched(t)
	s := &scene{table: m.loop.table}
	s.refuse(0, far, web, 1000, 80)
	s.refuse(0, far, web, 1000, 81)
	m.pulse.tell(s.table, time.Now())
	shows(t, m, `flowaudit_agent_observations_total 2
		flowaudit_agent_window_flows 2
		flowaudit_agent_connections 0
		flowaudit_agent_connections_limit 1.048576e+06
		flowaudit_agent_malformed_messages_total{source="conntrack"} 3
		flowaudit_agent_source_open{source="conntrack"} 1
		flowaudit_agent_source_open{source="nflog:100"} 0
		flowaudit_agent_limits 1`)
}

// TestHealthOfTheLoop: one that has stood still for a minute does not come back.
func TestHealthOfTheLoop(t *testing.T) {
	m := watched(t)
	if err := m.alive(); err != nil {
		t.Errorf("before the loop runs: %v", err)
	}
	m.pulse.tell(m.loop.table, time.Now().Add(-maxStill/2))
	if err := m.alive(); err != nil {
		t.Errorf("after half a minute: %v", err)
	}
	m.pulse.tell(m.loop.table, time.Now().Add(-2*maxStill))
	if err := m.alive(); err == nil || !strings.Contains(err.Error(), "the table has not moved for 2m") {
		t.Errorf("after two minutes: %v", err)
	}
}

func TestReadyNamesSourcesAndTheCollector(t *testing.T) {
	m := watched(t)
	faults := func() (out []string) {
		for _, c := range m.subject().Ready {
			if err := c.Fault(); err != nil {
				out = append(out, c.Name+": "+err.Error())
			}
		}
		return out
	}
	if got := strings.Join(faults(), "; "); got != "sources: not read: nflog:100; collector: no stream to c:4245 is open" {
		t.Error(got)
	}
	m.sources.put("nflog:100", idle("nflog:100"))
	m.stream.connected.Store(true)
	if got := faults(); got != nil {
		t.Error(got)
	}
}

func TestMetricsAreDocumentedAndClean(t *testing.T) {
	m := watched(t)
	r := monitor.NewRegistry("flowaudit-agent", "1")
	r.MustRegister(m)
	monitortest.Lint(t, r)
	monitortest.Document(t, r, "../docs/metrics.md", "agent", *update)
}
