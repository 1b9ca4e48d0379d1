package clickhouse

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
	order := "start, key, duration, source_port, connections, counted, tcp_flags, packets_sent, bytes_sent, packets_received, bytes_received"
	return s.scanRows(ctx, &store.FlowsRequest{Sight: flow.SeeAll(), Filter: flow.Filter{Since: since, Until: until}}, order, 0, func(f flow.Flow) bool {
		return f.Start.Before(since) || !f.Start.Before(until) || yield(f)
	})
}

// Watched implements store.Store.
func (s *Store) Watched(ctx context.Context, since, until time.Time, yield func(store.Watched) bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // a reader that has seen enough ends the query
	rows, err := s.conn.Query(ctx, s.global(fmt.Sprintf(`SELECT node, instance, scope, start, stop, limits FROM covered WHERE start >= %d AND start < %d
		AND copy NOT IN (SELECT copy FROM excluded) ORDER BY node, instance, scope, start, stop, limits`, since.UnixMilli(), until.UnixMilli())))
	if err != nil {
		return fmt.Errorf("read coverage: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var w store.Watched
		var scope uint8
		var start, end int64
		var limits string
		if err := rows.Scan(&w.Node, &w.Instance, &scope, &start, &end, &limits); err != nil {
			return fmt.Errorf("read coverage: %w", err)
		}
		w.Scope, w.Start, w.End, w.Limits = flow.Scope(scope), time.UnixMilli(start), time.UnixMilli(end), columns.LimitsOf(limits)
		if !yield(w) {
			return nil
		}
	}
	return rows.Err()
}

// Gaps implements store.Store.
func (s *Store) Gaps(ctx context.Context, since, until time.Time, yield func(flow.Gap) bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // a reader that has seen enough ends the query
	rows, err := s.conn.Query(ctx, s.global(fmt.Sprintf(`SELECT node, source, kind, start, stop, lost, detail FROM gap WHERE start >= %d AND start < %d
		AND copy NOT IN (SELECT copy FROM excluded) ORDER BY node, start, source, kind, stop, lost, detail`, since.UnixMilli(), until.UnixMilli())))
	if err != nil {
		return fmt.Errorf("read gaps: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var g flow.Gap
		var kind uint8
		var start, end int64
		if err := rows.Scan(&g.Node, &g.Source, &kind, &start, &end, &g.Lost, &g.Detail); err != nil {
			return fmt.Errorf("read gaps: %w", err)
		}
		g.Kind, g.Start, g.End = flow.GapKind(kind), time.UnixMilli(start), time.UnixMilli(end)
		if !yield(g) {
			return nil
		}
	}
	return rows.Err()
}
