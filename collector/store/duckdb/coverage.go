package duckdb

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// Coverage implements store.Store.
func (s *Store) Coverage(ctx context.Context, since, until time.Time) (flow.Coverage, error) {
	s.read.RLock()
	defer s.read.RUnlock()
	c := flow.Coverage{Since: since, Until: until}
	nodes, err := s.nodes(ctx)
	if err != nil {
		return c, fmt.Errorf("read coverage: %w", err)
	}
	if err := s.covered(ctx, since, until, nodes); err != nil {
		return c, fmt.Errorf("read coverage: %w", err)
	}
	if err := s.gaps(ctx, since, until, nodes); err != nil {
		return c, fmt.Errorf("read coverage: %w", err)
	}
	for _, n := range nodes {
		c.Nodes = append(c.Nodes, *n)
	}
	slices.SortFunc(c.Nodes, func(a, b flow.NodeCoverage) int { return strings.Compare(a.Node, b.Node) })
	return c, nil
}

// overAll makes one query of a query for each slice.
func (s *Store) overAll(query string) string {
	parts := make([]string, len(s.slices))
	for i, sl := range s.slices {
		parts[i] = fmt.Sprintf(query, sl.name)
	}
	return strings.Join(parts, " UNION ALL ")
}

// nodes lists who ever reported, with what each said last about its limits.
func (s *Store) nodes(ctx context.Context) (map[string]*flow.NodeCoverage, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT node, arg_max(scope, "end"), arg_max(limits, "end") FROM (`+
		s.overAll(`SELECT node, scope, limits, "end" FROM %s.coverage`)+`) GROUP BY node`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	nodes := make(map[string]*flow.NodeCoverage)
	for rows.Next() {
		n := &flow.NodeCoverage{}
		var limits string
		if err := rows.Scan(&n.Node, &n.Scope, &limits); err != nil {
			return nil, err
		}
		if limits != "" {
			if err := json.Unmarshal([]byte(limits), &n.Limits); err != nil {
				return nil, err
			}
		}
		nodes[n.Node] = n
	}
	return nodes, rows.Err()
}

// covered adds up what each node's batches cover of the range, the time that
// two of them cover counted once.
func (s *Store) covered(ctx context.Context, since, until time.Time, nodes map[string]*flow.NodeCoverage) error {
	rows, err := s.db.QueryContext(ctx, `SELECT node, greatest(start, $1), least("end", $2) FROM (`+
		s.overAll(`SELECT node, start, "end" FROM %s.coverage`)+`) WHERE "end" > $1 AND start < $2 ORDER BY 1, 2`, since.UnixMilli(), until.UnixMilli())
	if err != nil {
		return err
	}
	defer rows.Close()
	var last string
	var upTo int64
	for rows.Next() {
		var node string
		var start, end int64
		if err := rows.Scan(&node, &start, &end); err != nil {
			return err
		}
		if node != last {
			last, upTo = node, 0
		}
		start = max(start, upTo)
		if end <= start {
			continue
		}
		n := nodes[node]
		if n == nil { // its first batch came after the nodes were listed
			n = &flow.NodeCoverage{Node: node}
			nodes[node] = n
		}
		n.Covered += time.Duration(end-start) * time.Millisecond
		upTo = end
	}
	return rows.Err()
}

// maxGapsShown bounds an answer to the newest gaps.
const maxGapsShown = 1000

func (s *Store) gaps(ctx context.Context, since, until time.Time, nodes map[string]*flow.NodeCoverage) error {
	rows, err := s.db.QueryContext(ctx, `SELECT * FROM (`+
		s.overAll(`SELECT node, source, kind, start, "end", lost, detail FROM %s.gap`)+
		fmt.Sprintf(`) WHERE "end" >= $1 AND start <= $2 ORDER BY start DESC LIMIT %d`, maxGapsShown), since.UnixMilli(), until.UnixMilli())
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var g flow.Gap
		var start, end int64
		if err := rows.Scan(&g.Node, &g.Source, &g.Kind, &start, &end, &g.Lost, &g.Detail); err != nil {
			return err
		}
		g.Start, g.End = time.UnixMilli(start), time.UnixMilli(end)
		n := nodes[g.Node]
		if n == nil {
			n = &flow.NodeCoverage{Node: g.Node}
			nodes[g.Node] = n
		}
		n.Gaps = append([]flow.Gap{g}, n.Gaps...)
	}
	return rows.Err()
}
