package duckdb

import (
	"context"
	"fmt"
	"time"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/collector/store/columns"
	"github.com/flowaudit/flowaudit/flow"
)

// Reports implements store.Store.
func (s *Store) Reports(ctx context.Context, since, until time.Time, yield func(flow.Flow) bool) error {
	s.read.RLock()
	defer s.read.RUnlock()
	return s.scanRows(ctx, &store.FlowsRequest{Sight: flow.SeeAll(), Filter: flow.Filter{Since: since, Until: until}}, "start, slice, "+rowColumns, 0, func(f flow.Flow) bool {
		return f.Start.Before(since) || !f.Start.Before(until) || yield(f)
	})
}

// Watched implements store.Store.
func (s *Store) Watched(ctx context.Context, since, until time.Time, yield func(store.Watched) bool) error {
	s.read.RLock()
	defer s.read.RUnlock()
	rows, err := s.db.QueryContext(ctx, `SELECT node, instance, scope, start, "end", limits FROM (`+
		s.overAll(`SELECT * FROM %s.coverage`, since)+`) WHERE start >= $1 AND start < $2 ORDER BY ALL`, since.UnixMilli(), until.UnixMilli())
	if err != nil {
		return fmt.Errorf("read coverage: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var w store.Watched
		var start, end int64
		var limits string
		if err := rows.Scan(&w.Node, &w.Instance, &w.Scope, &start, &end, &limits); err != nil {
			return fmt.Errorf("read coverage: %w", err)
		}
		w.Start, w.End, w.Limits = time.UnixMilli(start), time.UnixMilli(end), columns.LimitsOf(limits)
		if !yield(w) {
			return nil
		}
	}
	return rows.Err()
}

// Gaps implements store.Store.
func (s *Store) Gaps(ctx context.Context, since, until time.Time, yield func(flow.Gap) bool) error {
	s.read.RLock()
	defer s.read.RUnlock()
	rows, err := s.db.QueryContext(ctx, `SELECT node, source, kind, start, "end", lost, detail FROM (`+
		s.overAll(`SELECT * FROM %s.gap`, since)+`) WHERE start >= $1 AND start < $2 ORDER BY node, start, source, kind, "end", lost, detail`, since.UnixMilli(), until.UnixMilli())
	if err != nil {
		return fmt.Errorf("read gaps: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var g flow.Gap
		var start, end int64
		if err := rows.Scan(&g.Node, &g.Source, &g.Kind, &start, &end, &g.Lost, &g.Detail); err != nil {
			return fmt.Errorf("read gaps: %w", err)
		}
		g.Start, g.End = time.UnixMilli(start), time.UnixMilli(end)
		if !yield(g) {
			return nil
		}
	}
	return rows.Err()
}
