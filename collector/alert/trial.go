package alert

import (
	"cmp"
	"slices"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// Past is what was recorded of an edge at a time.
type Past struct {
	// Flow holds all but the times and the count. It is shared.
	Flow        *flow.Flow
	First, Last time.Time
	Connections uint64
}

// Trial runs rules over the past.
type Trial struct {
	engine *Engine
	now    time.Time
	events []Past
	fired  map[firing]Alert
	// spread says that a rule counts connections of such flows.
	spread map[*candidates]bool
}

type firing struct {
	id      string
	started int64
}

// NewTrial begins at a time. Of the time since then a share was watched, as if
// it were spread evenly.
func NewTrial(c *Config, j Judge, since time.Time, watched float64) *Trial {
	t := &Trial{engine: NewEngine(c, j), now: since, fired: make(map[firing]Alert), spread: make(map[*candidates]bool)}
	t.engine.nodes.oldest, t.engine.nodes.share = since, watched
	for v := range verdictCount {
		for a := range assessmentCount {
			for k := range kindCount {
				c := &t.engine.table[v][a][k]
				t.spread[c] = slices.ContainsFunc(c.rules, func(r *compiled) bool { return r.Count != nil && r.Count.Of == "connections" })
			}
		}
	}
	return t
}

// Learn takes in an edge from before.
func (t *Trial) Learn(e *flow.Edge) { t.engine.Learn(e) }

// Wants says what of an edge rules could be about: nothing, that it began, or
// each of its hours.
func (t *Trial) Wants(f *flow.Flow) (beginning, hours bool) {
	c := t.engine.of(f)
	if c == nil {
		return false, false
	}
	return true, !c.onlyNew
}

// trialMinutes is how fine connections of an hour are spread.
const trialMinutes = 60

// Add takes in what was recorded. Where a rule counts connections they are
// spread over the time between the first and the last.
func (t *Trial) Add(p Past) {
	n := uint64(1)
	if p.Last.After(p.First) {
		n = 2
		if c := t.engine.of(p.Flow); c != nil && t.spread[c] {
			n = min(max(2, p.Connections), trialMinutes)
		}
	}
	span := p.Last.Sub(p.First)
	for i := range n {
		part := Past{Flow: p.Flow, First: p.First, Connections: p.Connections/n + boolNumber(i < p.Connections%n)}
		if n > 1 {
			part.First = p.First.Add(span * time.Duration(i) / time.Duration(n-1))
		}
		part.Last = part.First
		t.events = append(t.events, part)
	}
}

func boolNumber(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

// Run evaluates the rules until a time, and gives all that fired, oldest first.
// Changes and gaps are ordered by time.
func (t *Trial) Run(changes []flow.Change, gaps []flow.Gap, until time.Time) []Alert {
	slices.SortStableFunc(t.events, func(a, b Past) int { return a.First.Compare(b.First) })
	scratch := make([]flow.Flow, 1)
	for i := range t.events {
		p := &t.events[i]
		changes, gaps = t.others(changes, gaps, p.First)
		t.forward(p.First)
		f := &scratch[0]
		*f = *p.Flow
		f.Start, f.End, f.Connections = p.First, p.Last, p.Connections
		t.engine.Observe(t.now, scratch)
	}
	t.others(changes, gaps, until)
	t.forward(until)
	out := make([]Alert, 0, len(t.fired))
	for _, a := range t.fired {
		out = append(out, a)
	}
	slices.SortFunc(out, func(a, b Alert) int {
		return cmp.Or(a.Started.Compare(b.Started), cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.ID, b.ID))
	})
	return out
}

// others takes in the changes and gaps until a time, and returns the rest.
func (t *Trial) others(changes []flow.Change, gaps []flow.Gap, until time.Time) ([]flow.Change, []flow.Gap) {
	for len(changes) > 0 && !changes[0].Time.After(until) {
		t.engine.Changed(&changes[0])
		changes = changes[1:]
	}
	for len(gaps) > 0 && !gaps[0].Start.After(until) {
		g := &gaps[0]
		t.forward(g.Start)
		for _, r := range t.engine.rules {
			if r.Coverage != nil {
				t.engine.gap(r, t.now, "", g)
			}
		}
		gaps = gaps[1:]
	}
	return changes, gaps
}

// Steps of the trial's clock: often while something may fire soon, seldom
// while something may resolve, else not at all.
const (
	pendingStep = 5 * time.Second
	firingStep  = 5 * time.Minute
)

func (t *Trial) forward(to time.Time) {
	for t.now.Before(to) {
		pending, firing := t.engine.open()
		step := to.Sub(t.now)
		switch {
		case pending:
			step = min(step, pendingStep)
		case firing:
			step = min(step, firingStep)
		}
		t.now = t.now.Add(step)
		if !pending && !firing && t.now.Sub(t.engine.ticked) < time.Hour {
			continue // an hour's groups may be forgotten together
		}
		for _, r := range t.engine.Tick(t.now).Save {
			t.fired[firingOf(&r.Alert)] = r.Alert
		}
	}
	t.engine.nodes.now = t.now
}

func firingOf(a *Alert) firing { return firing{a.ID, a.Started.UnixNano()} }

// open reports whether alerts are pending, and whether some fire.
func (e *Engine) open() (pending, firing bool) {
	return e.awake || e.counts.Pending > 0, len(e.counts.Firing) > 0
}
