package suggest

import (
	"time"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy/history"
	"github.com/flowaudit/flowaudit/policy/replay"
)

// A scan is a source that tried many places and got few answers.
const (
	scanTargets = 24   // ports or hosts tried
	scanAnswers = 0.25 // the share of them that answered, at most
	// scanTouch is how many connections a scan makes to a place that answers.
	scanTouch = 3
)

// scanSource tells sources apart: a workload, or an address.
type scanSource struct {
	workload *history.Workload
	address  string
}

// scanTarget is one port of one host or identity.
type scanTarget struct {
	to       flow.EdgeEnd
	protocol flow.Protocol
	port     uint16
}

// tries is what one source tried.
type tries struct {
	targets, answered map[scanTarget]bool
	first, last       time.Time // of what nobody answered
}

// findScans returns the allowed edges that are part of a scan: few connections
// to a place, and none but while the source was scanning.
func findScans(h *history.History, accept []string) map[*history.Edge]bool {
	all := make(map[scanSource]*tries)
	for _, e := range h.Edges {
		all[sourceOf(e)] = all[sourceOf(e)].add(e)
	}
	out := make(map[*history.Edge]bool)
	for _, e := range h.Edges {
		t := all[sourceOf(e)]
		if e.Verdict != flow.VerdictAllowed || !t.scanned() || isNamed(accept, &e.Source) {
			continue
		}
		around := t.first.Add(-time.Hour)
		if e.Connections <= scanTouch && e.First.After(around) && e.Last.Before(t.last.Add(time.Hour)) {
			out[e] = true
		}
	}
	return out
}

func sourceOf(e *history.Edge) scanSource {
	if e.From.Workload != nil {
		return scanSource{workload: e.From.Workload}
	}
	return scanSource{address: replay.EndText(&e.Source)}
}

func (t *tries) add(e *history.Edge) *tries {
	if t == nil {
		t = &tries{targets: make(map[scanTarget]bool), answered: make(map[scanTarget]bool)}
	}
	target := scanTarget{e.Destination, e.Protocol, e.Port}
	t.targets[target] = true
	if e.Verdict == flow.VerdictAllowed {
		t.answered[target] = true
		return t
	}
	if t.first.IsZero() || e.First.Before(t.first) {
		t.first = e.First
	}
	if e.Last.After(t.last) {
		t.last = e.Last
	}
	return t
}

func (t *tries) scanned() bool {
	return len(t.targets) >= scanTargets && float64(len(t.answered)) <= scanAnswers*float64(len(t.targets))
}
