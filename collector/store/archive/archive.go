// Package archive moves what a store holds into another store, or into Parquet files by day and back.
package archive

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"log/slog"
	"slices"
	"time"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
)

// Day is what is moved at once: the flows that start, and what was watched, in
// a day of UTC.
const Day = 24 * time.Hour

// chunk is how many flows one batch moves.
const chunk = 50_000

// Days lists the whole days from a store's oldest flow until a time.
func Days(ctx context.Context, s store.Store, until time.Time) ([]time.Time, error) {
	stats, err := s.Stats(ctx)
	if err != nil {
		return nil, fmt.Errorf("list days: %w", err)
	}
	var days []time.Time
	if stats.Oldest.IsZero() {
		return nil, nil
	}
	for d := stats.Oldest.UTC().Truncate(Day); !d.Add(Day).After(until); d = d.Add(Day) {
		days = append(days, d)
	}
	return days, nil
}

// Copy moves the days, and the timeline until their end, into another store. A
// batch's key follows from its day and number, so that it can be done again
// after a break: what is there already is not stored twice.
func Copy(ctx context.Context, from, to store.Store, days []time.Time, log *slog.Logger) error {
	for _, day := range days {
		w := newWriter(to, day)
		if err := read(ctx, from, day, w); err != nil {
			return fmt.Errorf("copy %s: %w", day.Format(time.DateOnly), err)
		}
		log.Info("copied", "day", day.Format(time.DateOnly), "flows", w.flows, "there already", w.duplicates)
	}
	if len(days) == 0 {
		return nil
	}
	return copyTimeline(ctx, from, to, days[len(days)-1].Add(Day))
}

func copyTimeline(ctx context.Context, from, to store.Store, until time.Time) error {
	var changes []flow.Change
	if err := from.Timeline(ctx, flow.SeeAll(), time.Time{}, until, func(c flow.Change) bool { changes = append(changes, c); return true }); err != nil {
		return fmt.Errorf("copy timeline: %w", err)
	}
	return recordInto(ctx, to, changes)
}

// recordInto adds a timeline to a store that has none before its end: the past
// must not be mixed into another one.
func recordInto(ctx context.Context, to store.Store, changes []flow.Change) error {
	if len(changes) == 0 {
		return nil
	}
	has := false
	if err := to.Timeline(ctx, flow.SeeAll(), time.Time{}, changes[len(changes)-1].Time, func(flow.Change) bool { has = true; return false }); err != nil {
		return fmt.Errorf("store timeline: %w", err)
	}
	if has {
		return nil
	}
	if err := to.Record(ctx, changes); err != nil {
		return fmt.Errorf("store timeline: %w", err)
	}
	return nil
}

// sink takes a day in.
type sink interface {
	flow(ctx context.Context, f *flow.Flow) error
	watched(ctx context.Context, w store.Watched) error
	gap(ctx context.Context, g flow.Gap) error
	close(ctx context.Context) error
}

// Source gives a day. A store.Store is one, and a Folder.
type Source interface {
	Reports(ctx context.Context, since, until time.Time, yield func(flow.Flow) bool) error
	Watched(ctx context.Context, since, until time.Time, yield func(store.Watched) bool) error
	Gaps(ctx context.Context, since, until time.Time, yield func(flow.Gap) bool) error
}

// read gives a day of a source to a sink. What was watched without a break
// comes as one.
func read(ctx context.Context, from Source, day time.Time, to sink) error {
	var bad error
	var open store.Watched
	until := day.Add(Day)
	err := from.Reports(ctx, day, until, func(f flow.Flow) bool { bad = to.flow(ctx, &f); return bad == nil })
	if err == nil && bad == nil {
		err = from.Watched(ctx, day, until, func(w store.Watched) bool {
			if joins(&open, &w) {
				return true
			}
			if !open.End.IsZero() {
				bad = to.watched(ctx, open)
			}
			open = w
			return bad == nil
		})
	}
	if err == nil && bad == nil && !open.End.IsZero() {
		bad = to.watched(ctx, open)
	}
	if err == nil && bad == nil {
		err = from.Gaps(ctx, day, until, func(g flow.Gap) bool { bad = to.gap(ctx, g); return bad == nil })
	}
	if err == nil {
		err = bad
	}
	if err != nil {
		return err
	}
	return to.close(ctx)
}

// joins adds w to what was watched before it, if nothing is between them.
func joins(open, w *store.Watched) bool {
	if open.End.IsZero() || w.Node != open.Node || w.Instance != open.Instance || w.Scope != open.Scope || w.Start.After(open.End) || !slices.Equal(w.Limits, open.Limits) {
		return false
	}
	if w.End.After(open.End) {
		open.End = w.End
	}
	return true
}

// writer stores a day as batches.
type writer struct {
	to                store.Store
	day               time.Time
	chunk             flow.Batch
	numbers           map[string]uint64 // of the last batch of each kind
	others            []flow.Batch
	flows, duplicates int
}

func newWriter(to store.Store, day time.Time) *writer {
	return &writer{to: to, day: day, numbers: make(map[string]uint64)}
}

// key of the next batch of a kind.
func (w *writer) key(kind string) flow.BatchKey {
	w.numbers[kind]++
	h := fnv.New64a()
	_, _ = h.Write([]byte(kind + w.day.Format(time.DateOnly))) // a hash takes everything
	return flow.BatchKey{Cluster: "archive", Instance: w.day.Format(time.DateOnly), Epoch: h.Sum64(), Sequence: w.numbers[kind]}
}

func (w *writer) flow(ctx context.Context, f *flow.Flow) error {
	w.chunk.Flows = append(w.chunk.Flows, *f)
	if len(w.chunk.Flows) < chunk {
		return nil
	}
	return w.sendFlows(ctx)
}

func (w *writer) sendFlows(ctx context.Context) error {
	if len(w.chunk.Flows) == 0 {
		return nil
	}
	w.chunk.Key, w.chunk.Start, w.chunk.End = w.key("flows"), w.day, w.day
	w.chunk.Node = w.chunk.Flows[0].Node
	err := w.send(ctx, []flow.Batch{w.chunk})
	w.chunk = flow.Batch{}
	return err
}

func (w *writer) send(ctx context.Context, batches []flow.Batch) error {
	duplicate, err := w.to.Append(ctx, batches)
	if err != nil {
		return err
	}
	for i, b := range batches {
		w.flows += len(b.Flows)
		if duplicate[i] {
			w.duplicates += len(b.Flows)
		}
	}
	return nil
}

func (w *writer) watched(ctx context.Context, c store.Watched) error {
	key := w.key("watched " + c.Instance) // the instance is part of what is known of it
	key.Instance = c.Instance
	b := flow.Batch{Key: key, Node: c.Node, Scope: c.Scope, Start: c.Start, End: c.End}
	b.Agent.Limits = c.Limits
	return w.other(ctx, b)
}

func (w *writer) gap(ctx context.Context, g flow.Gap) error {
	return w.other(ctx, flow.Batch{Key: w.key("gaps"), Node: g.Node, Start: g.Start, End: g.Start, Gaps: []flow.Gap{g}})
}

// other gathers small batches.
func (w *writer) other(ctx context.Context, b flow.Batch) error {
	if w.others = append(w.others, b); len(w.others) < 1000 {
		return nil
	}
	return w.sendOthers(ctx)
}

func (w *writer) sendOthers(ctx context.Context) error {
	if len(w.others) == 0 {
		return nil
	}
	err := w.send(ctx, w.others)
	w.others = nil
	return err
}

func (w *writer) close(ctx context.Context) error {
	if err := w.sendFlows(ctx); err != nil {
		return err
	}
	return w.sendOthers(ctx)
}

// Sum is what a day adds up to, whatever the order.
type Sum struct {
	Flows       uint64
	Connections uint64
	Bytes       uint64
	Checksum    uint64 // of everything that flows say
	Watched     time.Duration
	Gaps        uint64
}

func (s *Sum) flow(_ context.Context, f *flow.Flow) error {
	text, err := json.Marshal(f)
	if err != nil {
		return err
	}
	h := fnv.New64a()
	_, _ = h.Write(text) // a hash takes everything
	s.Flows++
	s.Connections += f.Connections
	s.Bytes += f.Sent.Bytes + f.Received.Bytes
	s.Checksum += h.Sum64()
	return nil
}

func (s *Sum) watched(_ context.Context, w store.Watched) error {
	s.Watched += w.End.Sub(w.Start)
	return nil
}

func (s *Sum) gap(context.Context, flow.Gap) error {
	s.Gaps++
	return nil
}

func (s *Sum) close(context.Context) error { return nil }

// SumOf adds up a day of a store.
func SumOf(ctx context.Context, s Source, day time.Time) (Sum, error) {
	var sum Sum
	if err := read(ctx, s, day, &sum); err != nil {
		return sum, fmt.Errorf("add up %s: %w", day.Format(time.DateOnly), err)
	}
	return sum, nil
}

// Verify compares the days of two stores, and names those that differ.
func Verify(ctx context.Context, a, b Source, days []time.Time) error {
	for _, day := range days {
		x, err := SumOf(ctx, a, day)
		if err != nil {
			return err
		}
		y, err := SumOf(ctx, b, day)
		if err != nil {
			return err
		}
		if x != y {
			return fmt.Errorf("%s differs: %+v on one side, %+v on the other", day.Format(time.DateOnly), x, y)
		}
	}
	return nil
}
