package duckdb

import (
	"context"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strings"
	"time"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
)

// Edges implements store.Store.
func (s *Store) Edges(ctx context.Context, req store.EdgesRequest, yield func(*flow.Edge) bool) error {
	s.read.RLock()
	defer s.read.RUnlock()
	sum := newEdgeSum()
	if err := s.openEdges(ctx, req, sum); err != nil {
		return err
	}
	for begin, m := range s.months {
		if begin.After(req.Until) || !begin.AddDate(0, 1, 0).After(req.Since) {
			continue
		}
		if err := s.monthEdges(ctx, m, req, sum); err != nil {
			return fmt.Errorf("read edges of %s: %w", m.path, err)
		}
	}
	seen := flow.NewSeenEdges(req.Sight, yield)
	for _, e := range sum.order {
		if !seen.Add(e) {
			return nil
		}
	}
	seen.Close()
	return nil
}

// EdgeHours implements store.Store.
func (s *Store) EdgeHours(ctx context.Context, req store.EdgesRequest, keep, yield func(*flow.Edge) bool) error {
	if !req.Sight.All() {
		return store.ErrSight
	}
	s.read.RLock()
	defer s.read.RUnlock()
	for _, begin := range slices.SortedFunc(maps.Keys(s.months), time.Time.Compare) {
		if begin.After(req.Until) || !begin.AddDate(0, 1, 0).After(req.Since) {
			continue
		}
		m := s.months[begin]
		if more, err := s.monthHours(ctx, m, req, keep, yield); err != nil {
			return fmt.Errorf("read edges of %s: %w", m.path, err)
		} else if !more {
			return nil
		}
	}
	return s.openHours(ctx, req, keep, yield)
}

func (s *Store) monthHours(ctx context.Context, m *month, req store.EdgesRequest, keep, yield func(*flow.Edge) bool) (more bool, err error) {
	kept := make(map[uint32]*flow.Edge)
	var ids strings.Builder
	err = s.monthSums(ctx, m, req, newEdgeSum(), func(id uint32, e *flow.Edge, _ uint64) {
		if keep(e) {
			kept[id] = e
			fmt.Fprintf(&ids, "%d,", id)
		}
	})
	if err != nil || len(kept) == 0 {
		return err == nil, err
	}
	rows, err := s.db.QueryContext(ctx, fmt.Sprintf(`SELECT edge, min(first), max(last), sum(connections)::UBIGINT, sum(sent)::UBIGINT, sum(received)::UBIGINT FROM %s.hour
		WHERE hour BETWEEN $1 AND $2 AND edge IN (SELECT unnest([%s])) GROUP BY hour, edge ORDER BY hour, edge`, m.name, strings.TrimSuffix(ids.String(), ",")),
		sinceHour(req), hourNumber(req.Until))
	if err != nil {
		return false, err
	}
	defer rows.Close()
	for rows.Next() {
		var id uint32
		var first, last int64
		var connections, sent, received uint64
		if err := rows.Scan(&id, &first, &last, &connections, &sent, &received); err != nil {
			return false, err
		}
		e := kept[id]
		e.First, e.Last, e.Hours, e.Connections, e.Sent, e.Received = time.UnixMilli(first), time.UnixMilli(last), 1, connections, sent, received
		if !yield(e) {
			return false, nil
		}
	}
	return true, rows.Err()
}

// openHours are the hours of slices that no month holds yet.
func (s *Store) openHours(ctx context.Context, req store.EdgesRequest, keep, yield func(*flow.Edge) bool) error {
	kept := make(map[flow.EdgeKey]bool)
	return s.openSlices(ctx, req, func(_ time.Time, e *flow.Edge) bool {
		wanted, asked := kept[e.EdgeKey]
		if !asked {
			wanted = keep(e)
			kept[e.EdgeKey] = wanted
		}
		return !wanted || yield(e)
	})
}

// openEdges adds up the edges of slices that no month holds yet.
func (s *Store) openEdges(ctx context.Context, req store.EdgesRequest, sum *edgeSum) error {
	return s.openSlices(ctx, req, func(hour time.Time, e *flow.Edge) bool {
		sum.add(e, sum.bit(hourNumber(hour)))
		return true
	})
}

// openSlices makes the edges of slices that no month holds yet, hour by hour.
func (s *Store) openSlices(ctx context.Context, req store.EdgesRequest, yield func(hour time.Time, e *flow.Edge) bool) error {
	for _, sl := range s.slices {
		if own := s.months[monthOf(sl.begin)]; own != nil && own.done[sl.name] {
			continue
		}
		byHour, err := s.edgesOf(ctx, sl, newNames(s.db, []*slice{sl}))
		if err != nil {
			return err
		}
		for _, hour := range slices.SortedFunc(maps.Keys(byHour), time.Time.Compare) {
			if hour.After(req.Until) || !hour.Add(flow.EdgeHour).After(req.Since) {
				continue
			}
			for _, e := range byHour[hour] {
				if !yield(hour, e) {
					return nil
				}
			}
		}
	}
	return nil
}

func hourNumber(t time.Time) int64 { return t.Unix() / int64(flow.EdgeHour/time.Second) }

func sinceHour(req store.EdgesRequest) int64 {
	if req.Since.IsZero() {
		return 0
	}
	return max(0, hourNumber(req.Since))
}

func (s *Store) monthEdges(ctx context.Context, m *month, req store.EdgesRequest, sum *edgeSum) error {
	return s.monthSums(ctx, m, req, sum, func(_ uint32, e *flow.Edge, open uint64) { sum.add(e, open) })
}

// monthSums gives the edges of a month with what they add up to, and the bits
// of sum whose hours are among theirs.
func (s *Store) monthSums(ctx context.Context, m *month, req store.EdgesRequest, sum *edgeSum, each func(id uint32, e *flow.Edge, open uint64)) error {
	var hours, first, last int64
	var connections, sent, received, open uint64
	query := fmt.Sprintf(`SELECT %[1]s, h.hours, h.open, h.first, h.last, h.connections, h.sent, h.received FROM %[2]s.edge e JOIN (
		SELECT edge, count(DISTINCT hour) AS hours, bit_or(%[3]s) AS open, min(first) AS first, max(last) AS last, sum(connections)::UBIGINT AS connections,
			sum(sent)::UBIGINT AS sent, sum(received)::UBIGINT AS received FROM %[2]s.hour WHERE hour BETWEEN $1 AND $2 GROUP BY edge
		) h ON h.edge = e.id ORDER BY e.id`, edgeColumns, m.name, sum.openSQL())
	return scanEdges(ctx, s.db, query, []any{sinceHour(req), hourNumber(req.Until)}, func(id uint32, e *flow.Edge) error {
		e.Hours, e.First, e.Last = int(hours), time.UnixMilli(first), time.UnixMilli(last)
		e.Connections, e.Sent, e.Received = connections, sent, received
		each(id, e, open)
		return nil
	}, &hours, &open, &first, &last, &connections, &sent, &received)
}

// edgeSum joins what files tell of the same edges. An hour may be told of by
// the open slice and by the slices before it: it has a bit of its own, so that
// it is counted once.
type edgeSum struct {
	edges map[flow.EdgeKey]*summedEdge
	order []*flow.Edge
	bits  []int64 // the hours that have a bit
}

type summedEdge struct {
	*flow.Edge
	open uint64
}

func newEdgeSum() *edgeSum { return &edgeSum{edges: make(map[flow.EdgeKey]*summedEdge)} }

// bit returns the bit of an hour; 0 when all are taken, by a backlog of days:
// its hours may then be counted twice.
func (s *edgeSum) bit(hour int64) uint64 {
	i := slices.Index(s.bits, hour)
	if i < 0 {
		if len(s.bits) == 64 {
			return 0
		}
		i = len(s.bits)
		s.bits = append(s.bits, hour)
	}
	return 1 << i
}

// openSQL turns the column hour into its bit.
func (s *edgeSum) openSQL() string {
	if len(s.bits) == 0 {
		return "0::UBIGINT"
	}
	var b strings.Builder
	b.WriteString("CASE hour")
	for i, h := range s.bits {
		fmt.Fprintf(&b, " WHEN %d THEN %d::UBIGINT", h, uint64(1)<<i)
	}
	return b.String() + " ELSE 0::UBIGINT END"
}

// add joins a part of an edge; open are the bits of its hours.
func (s *edgeSum) add(e *flow.Edge, open uint64) {
	known := s.edges[e.EdgeKey]
	if known == nil {
		s.edges[e.EdgeKey] = &summedEdge{e, open}
		s.order = append(s.order, e)
		return
	}
	known.Join(e)
	known.Hours += e.Hours - bits.OnesCount64(known.open&open)
	known.open |= open
}
