package alert

import (
	"fmt"
	"slices"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// Heard takes in what a batch says of its node: that it is there, what it
// watched and what it lost. A batch that was stored before is not told again.
func (e *Engine) Heard(now time.Time, b *flow.Batch) {
	e.nodes.now = now
	name := b.Node
	if b.Scope == flow.ScopePod {
		name = b.Key.Instance // one of many of its node, which comes and goes
	}
	e.nodes.cover(name, b.Start, b.End)
	if n := e.nodes.of(name); b.Scope == flow.ScopeNode {
		n.heard, n.gone, n.cluster = now, false, b.Key.Cluster
	}
	for i := range b.Gaps {
		for _, r := range e.rules {
			if r.Coverage != nil {
				e.gap(r, now, b.Key.Cluster, &b.Gaps[i])
			}
		}
	}
}

// Present says which nodes the cluster has: one that is gone owes no word.
func (e *Engine) Present(names []string) {
	for name, n := range e.nodes.known {
		n.gone = len(names) > 0 && !slices.Contains(names, name)
	}
	e.nodes.stale = true
}

func (e *Engine) gap(r *compiled, now time.Time, cluster string, g *flow.Gap) {
	if g.Kind == flow.GapDowntime {
		if d := r.Coverage.Downtime; d == 0 || g.End.Sub(g.Start) < time.Duration(d) {
			return
		}
	} else if !slices.Contains(r.Coverage.Gaps, g.Kind.String()) {
		return
	}
	e.lost(r, now, cluster, g.Node, g.Start, g.End, gapDetail(g))
}

func gapDetail(g *flow.Gap) string {
	text := g.Kind.String()
	if g.Source != "" {
		text += " at " + g.Source
	}
	if g.Lost > 0 {
		text += fmt.Sprintf(", %d lost", g.Lost)
	}
	if g.End.Sub(g.Start) >= time.Second {
		text += ", for " + g.End.Sub(g.Start).Round(time.Second).String()
	}
	if g.Detail != "" {
		text += ": " + g.Detail
	}
	return text
}

func (e *Engine) lost(r *compiled, now time.Time, cluster, name string, since, until time.Time, detail string) {
	g := e.group(r, groupKey{Cluster: cluster, Node: name})
	a := &g.alert
	if a.State != Firing && a.State != Pending {
		a.Since, a.Count = since, 0
		a.State, g.pending = Pending, now
	}
	a.Count++
	a.Last, a.Detail, a.Node = later(a.Last, until), detail, name
	g.met, g.changed, e.awake = now, true, true
}

// watchNodes finds nodes that do not report.
func (e *Engine) watchNodes(now time.Time) {
	for _, r := range e.rules {
		if r.Coverage == nil || r.Coverage.Silent == 0 {
			continue
		}
		for name, n := range e.nodes.known {
			if silent := now.Sub(n.heard); !n.gone && !n.heard.IsZero() && silent >= time.Duration(r.Coverage.Silent) {
				g := e.group(r, groupKey{Cluster: n.cluster, Node: name})
				if g.alert.State == "" || g.alert.State == Resolved {
					e.lost(r, now, n.cluster, name, n.heard, n.heard, "the agent has not reported since "+n.heard.UTC().Format(time.RFC3339))
				}
				g.met = now
			}
		}
	}
}
