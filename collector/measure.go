package collector

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/flowaudit/flowaudit/flow"
)

// measures counts what is stored. The committer tells it each group of batches
// once, after it is durable.
type measures struct {
	lag, append prometheus.Histogram

	mu sync.Mutex
	counted
}

// counted is what measures counts.
type counted struct {
	flows       [verdicts][assessments]uint64
	connections [verdicts][assessments]uint64
	gaps        [gapKinds]gapMeasure
	watched     [flow.ScopePod + 1]time.Duration
	nodes       map[nodeKey]time.Time // last report of each agent that looks at a node
	pairs       pairs
	batches     uint64
	duplicates  uint64
	failures    uint64
	failed      time.Time // when storing last failed; zero if it worked since
	failure     error
}

const (
	verdicts    = flow.VerdictUnanswered + 1
	assessments = flow.AssessmentUnanswered + 1
	gapKinds    = flow.GapNames + 1
)

// gapMeasure is what the gaps of one kind come to.
type gapMeasure struct {
	count, lost uint64
	time        time.Duration
}

// nodeKey is a node: their names are unique in one cluster only.
type nodeKey struct{ cluster, node string }

const (
	// maxMeasuredNodes bounds the nodes that are told one by one.
	maxMeasuredNodes = 10_000
	// silence is for how long an agent may say nothing until it counts as silent.
	silence = time.Minute
	// failureMemory is how long after a failure to store the collector is not
	// ready. It must end by itself: without agents nothing is stored.
	failureMemory = 30 * time.Second
)

func newMeasures(maxPairs int) *measures {
	histogram := func(name, help string, buckets ...float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
	}
	return &measures{
		lag: histogram("flowaudit_collector_report_lag_seconds", "From the end of what a batch covers until it is stored, by both machines' clocks.",
			.25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800),
		append: histogram("flowaudit_store_append_seconds", "How long one transaction of the store takes.",
			.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60),
		counted: counted{nodes: make(map[nodeKey]time.Time), pairs: newPairs(maxPairs)},
	}
}

// snapshot copies what was counted, so that a slow scrape holds up nobody.
func (m *measures) snapshot(now time.Time) counted {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forget(now)
	c := m.counted
	c.nodes, c.pairs = maps.Clone(c.nodes), c.pairs.clone()
	return c
}

// stored counts batches that are durable.
func (m *measures) stored(batches []flow.Batch) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.batches += uint64(len(batches))
	for i := range batches {
		b := &batches[i]
		m.heard(b, now)
		for j := range b.Flows {
			m.flow(b, &b.Flows[j], now)
		}
		for j := range b.Gaps {
			m.gap(&b.Gaps[j])
		}
	}
}

// heard counts what a batch says of its node.
func (m *measures) heard(b *flow.Batch, now time.Time) {
	m.lag.Observe(max(0, now.Sub(b.End).Seconds()))
	scope := min(b.Scope, flow.ScopePod)
	m.watched[scope] += max(0, b.End.Sub(b.Start))
	k := nodeKey{b.Key.Cluster, b.Node}
	if _, known := m.nodes[k]; scope == flow.ScopeNode && (known || len(m.nodes) < maxMeasuredNodes) {
		m.nodes[k] = now
	}
}

func (m *measures) flow(b *flow.Batch, f *flow.Flow, now time.Time) {
	v, a := f.Verdict, f.Assessment
	if v >= verdicts {
		v = flow.VerdictUnknown
	}
	if a >= assessments {
		a = flow.AssessmentUnknown
	}
	m.flows[v][a]++
	if f.Verdict != flow.VerdictDenied && m.toldThere(b, f, now) {
		return
	}
	m.connections[v][a] += f.Connections
	m.pairs.add(b.Key.Cluster, f, now)
}

// toldThere reports whether the destination's node tells of the same
// connections, where they count then. A refusal only one node sees.
func (m *measures) toldThere(b *flow.Batch, f *flow.Flow, now time.Time) bool {
	d := f.Destination
	if d == nil || d.Kind != flow.EndpointPod || d.Node == "" || d.Node == b.Node {
		return false
	}
	last, known := m.nodes[nodeKey{b.Key.Cluster, d.Node}]
	return known && now.Sub(last) <= silence
}

func (m *measures) gap(g *flow.Gap) {
	k := g.Kind
	if k >= gapKinds {
		k = flow.GapUnknown
	}
	m.gaps[k].count++
	m.gaps[k].lost += g.Lost
	m.gaps[k].time += max(0, g.End.Sub(g.Start))
}

// forget drops the nodes that have been silent for as long as agents are remembered.
func (m *measures) forget(now time.Time) {
	for k, last := range m.nodes {
		if now.Sub(last) > agentMemory {
			delete(m.nodes, k)
		}
	}
}

// writable says why batches could not be stored a moment ago.
func (m *measures) writable() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed.IsZero() || time.Since(m.failed) > failureMemory {
		return nil
	}
	return m.failure
}

// measuredAppender measures a store.
type measuredAppender struct {
	appender
	*measures
}

// Append implements appender.
func (s measuredAppender) Append(ctx context.Context, batches []flow.Batch) ([]bool, error) {
	began := time.Now()
	duplicate, err := s.appender.Append(ctx, batches)
	now := time.Now()
	s.append.Observe(now.Sub(began).Seconds())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed, s.failure = time.Time{}, nil
	if err != nil {
		s.failures++
		s.failed, s.failure = now, err
	}
	for _, d := range duplicate {
		if d {
			s.duplicates++
		}
	}
	return duplicate, err
}
