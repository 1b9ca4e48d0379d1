package collector

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/flowaudit/flowaudit/collector/alert"
	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
)

// learn tells the engine what was recorded before: edges, which are not new,
// how much was watched, recent changes, and the alerts that fire. Flows that
// came meanwhile are evaluated then.
func (a *alerting) learn(ctx context.Context) error {
	now := time.Now()
	var records []alert.Record
	err := a.store.Documents(ctx, alertKind, now.Add(-alertRetention), func(d store.Document) bool {
		if r, err := alert.DecodeRecord(d.Body); err != nil {
			a.log.Error("a stored alert is left out", "id", d.ID, "error", err)
		} else {
			records = append(records, r)
		}
		return true
	})
	if err != nil {
		return fmt.Errorf("read alerts: %w", err)
	}
	oldest := now
	var edges []*flow.Edge
	err = a.store.Edges(ctx, store.EdgesRequest{Sight: flow.SeeAll(), Until: now}, func(e *flow.Edge) bool {
		if e.First.Before(oldest) {
			oldest = e.First
		}
		edges = append(edges, &flow.Edge{EdgeKey: e.EdgeKey, First: e.First, Last: e.Last})
		return true
	})
	if err != nil {
		return fmt.Errorf("read edges: %w", err)
	}
	coverage, err := a.store.Coverage(ctx, flow.SeeAll(), oldest, now)
	if err != nil {
		return fmt.Errorf("read coverage: %w", err)
	}
	var changes []flow.Change
	err = a.store.Timeline(ctx, flow.SeeAll(), now.Add(-recentChanges), now, func(c flow.Change) bool {
		if c.Time.After(now.Add(-recentChanges)) {
			changes = append(changes, c)
		}
		return true
	})
	if err != nil {
		return fmt.Errorf("read timeline: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.take(now, records, edges, coverage, changes)
	return nil
}

// recentChanges is how far back changes are looked for that denials followed.
const recentChanges = time.Hour

// take gives the past to the engine. The lock must be held.
func (a *alerting) take(now time.Time, records []alert.Record, edges []*flow.Edge, coverage flow.Coverage, changes []flow.Change) {
	a.engine.Forget()
	a.engine.Covered(coverage, now)
	// What is evaluated below is stored already: it must not count as known.
	early := make(map[flow.EdgeKey]time.Time)
	b := flow.NewEdgeBuilder()
	for i := range a.early {
		b.Add(a.early[i : i+1])
	}
	for _, e := range b.Edges() {
		early[e.EdgeKey] = e.First
	}
	for _, e := range edges {
		if first, isEarly := early[e.EdgeKey]; !isEarly || e.First.Before(first) {
			a.engine.Learn(e)
		}
	}
	for i := range changes {
		a.engine.Changed(&changes[i])
	}
	a.engine.Observe(now, a.early)
	a.early, a.known = nil, true
	if a.restored {
		return // the rules have changed: this collector knows its alerts better
	}
	a.restored = true
	a.engine.Restore(records, now)
	for i := range records {
		// A collector that has stopped may not have told it.
		r := &records[i]
		if len(r.Undelivered) > 0 {
			a.waiting[r.ID] = *r
			a.sender.Notify(r.Alert, r.Undelivered)
		}
	}
}

// sync reads the silences and acknowledgments, which another collector may
// have taken.
func (a *alerting) sync(ctx context.Context, now time.Time) error {
	silences, err := a.silences(ctx, now)
	if err != nil {
		return err
	}
	acks, err := a.acknowledgments(ctx, now)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.synced = now
	a.engine.Silence(silences)
	a.engine.Acknowledge(acks)
	return nil
}

// silences are those that hold or will.
func (a *alerting) silences(ctx context.Context, now time.Time) ([]alert.Silence, error) {
	var out []alert.Silence
	err := a.store.Documents(ctx, silenceKind, time.Time{}, func(d store.Document) bool {
		var s alert.Silence
		if json.Unmarshal(d.Body, &s) == nil && s.Ends.After(now) {
			out = append(out, s)
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("read silences: %w", err)
	}
	return out, nil
}

// acknowledgments are those that hold, by the alert's ID.
func (a *alerting) acknowledgments(ctx context.Context, now time.Time) (map[string]alert.Acknowledgment, error) {
	acks := make(map[string]alert.Acknowledgment)
	err := a.store.Documents(ctx, ackKind, now.Add(-alertRetention), func(d store.Document) bool {
		var ack alert.Acknowledgment
		if json.Unmarshal(d.Body, &ack) == nil && ack.Until.After(now) {
			acks[d.ID] = ack
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("read acknowledgments: %w", err)
	}
	return acks, nil
}
