// Package replay judges recorded traffic by a change of policies that is not applied.
package replay

import (
	"fmt"
	"slices"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy"
	"github.com/flowaudit/flowaudit/policy/history"
)

// Judgement is what the policies of its time say about an edge, without the
// change and with it.
type Judgement struct {
	Edge *history.Edge
	// Spans are the times in which the decisions differ, in order; one, unless
	// policies changed while the edge was seen.
	Spans []Span
}

// Span is a part of the time in which an edge was seen.
type Span struct {
	From, To      time.Time
	Before, After policy.Decision
}

// Judge judges every edge of a history, in their order. Progress, if not nil,
// is told how much is done, from 0 to 1.
func Judge(h *history.History, c *Change, progress func(float64)) ([]Judgement, []policy.Problem, error) {
	if err := c.Validate(); err != nil {
		return nil, nil, err
	}
	before, err := policy.New(policy.Options{Classes: h.Classes()})
	if err != nil {
		return nil, nil, fmt.Errorf("make policy engine: %w", err)
	}
	after, err := policy.New(policy.Options{Classes: h.Classes(), Policies: c.Apply})
	if err != nil {
		return nil, nil, fmt.Errorf("make policy engine: %w", err)
	}
	w := &walk{h: h, before: before, after: after, overrides: c.overrides(), judged: make([]Judgement, len(h.Edges)), byNamespace: make(map[string][]int)}
	problems := after.Snapshot().Problems()
	w.run(progress)
	for i := range w.judged {
		w.judged[i].agree()
	}
	return w.judged, problems, nil
}

// walk goes through the revisions of a history with two engines, one of which
// has the change.
type walk struct {
	h             *history.History
	before, after *policy.Engine
	overrides     func(namespace, name string) bool
	judged        []Judgement
	byNamespace   map[string][]int // edges that began, by the namespaces of their ends
	next          int              // the first edge that has not begun
}

func (w *walk) run(progress func(float64)) {
	for i, r := range w.h.Revisions {
		touched := w.apply(r)
		until := w.h.Until
		if i+1 < len(w.h.Revisions) {
			until = w.h.Revisions[i+1].Time
		}
		if i > 0 {
			w.again(touched, r.Time)
		}
		last := i+1 == len(w.h.Revisions)
		for w.next < len(w.h.Edges) && (last || w.h.Edges[w.next].First.Before(until)) {
			w.judge(w.next, w.h.Edges[w.next].First)
			w.next++
		}
		if progress != nil {
			progress(float64(w.next) / float64(max(1, len(w.h.Edges))))
		}
	}
}

// apply changes the policies, and returns the namespaces that it touched.
func (w *walk) apply(r history.Revision) []string {
	var touched []string
	for _, p := range r.Changes {
		namespace, name := p.Key()
		set(w.before, p.NetworkPolicy, namespace, name)
		if !w.overrides(namespace, name) {
			set(w.after, p.NetworkPolicy, namespace, name)
		}
		if !slices.Contains(touched, namespace) {
			touched = append(touched, namespace)
		}
	}
	return touched
}

func set(e *policy.Engine, p *networkingv1.NetworkPolicy, namespace, name string) {
	if p == nil {
		e.DeletePolicy(namespace, name)
		return
	}
	e.SetPolicy(p)
}

// again judges the edges anew that go on in namespaces whose policies changed:
// policies select pods of their own namespace only.
func (w *walk) again(touched []string, at time.Time) {
	for _, namespace := range touched {
		going := w.byNamespace[namespace][:0]
		for _, n := range w.byNamespace[namespace] {
			e := w.h.Edges[n]
			if e.Last.Before(at) {
				continue
			}
			going = append(going, n)
			w.judge(n, at)
		}
		w.byNamespace[namespace] = going
	}
}

func (w *walk) judge(n int, at time.Time) {
	e := w.h.Edges[n]
	c := w.h.Connection(e)
	s := Span{From: at, To: e.Last, Before: w.before.Snapshot().Decide(&c), After: w.after.Snapshot().Decide(&c)}
	j := &w.judged[n]
	if j.Edge == nil {
		j.Edge = e
		w.index(n)
	}
	if k := len(j.Spans); k > 0 {
		last := &j.Spans[k-1]
		if last.From.Equal(at) || last.Before.Verdict == s.Before.Verdict && last.After.Verdict == s.After.Verdict {
			s.From = last.From
			*last = s // the newest rules say why
			return
		}
		last.To = at
	}
	j.Spans = append(j.Spans, s)
}

// index remembers which namespaces' policies an edge depends on.
func (w *walk) index(n int) {
	from, to := w.h.Edges[n].From.Identity, w.h.Edges[n].To.Identity
	if from != nil {
		w.byNamespace[from.Namespace] = append(w.byNamespace[from.Namespace], n)
	}
	if to != nil && (from == nil || from.Namespace != to.Namespace) {
		w.byNamespace[to.Namespace] = append(w.byNamespace[to.Namespace], n)
	}
}

// agree leaves out the times at which the policies did not say what was
// expected when the traffic ran: the edge was not seen then. Its end may be
// long after.
func (j *Judgement) agree() {
	expected := j.Edge.Expected
	if len(j.Spans) < 2 || expected == flow.VerdictUnknown {
		return
	}
	var kept []Span
	for _, s := range j.Spans {
		if s.Before.Verdict == expected {
			kept = append(kept, s)
		}
	}
	if len(kept) > 0 {
		j.Spans = kept
	}
}
