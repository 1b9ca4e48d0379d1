package clickhouse

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/flowaudit/flowaudit/collector/store/columns"
	"github.com/flowaudit/flowaudit/flow"
)

// Coverage implements store.Store.
func (s *Store) Coverage(ctx context.Context, sight flow.Sight, since, until time.Time) (flow.Coverage, error) {
	c := flow.Coverage{Since: since, Until: until}
	nodes := make(map[string]*flow.NodeCoverage)
	for _, read := range []func(context.Context, int64, int64, map[string]*flow.NodeCoverage) error{s.nodes, s.coveredTime, s.newestGaps} {
		if err := read(ctx, since.UnixMilli(), until.UnixMilli(), nodes); err != nil {
			return c, fmt.Errorf("read coverage: %w", err)
		}
	}
	for _, n := range nodes {
		c.Nodes = append(c.Nodes, *n)
	}
	slices.SortFunc(c.Nodes, func(a, b flow.NodeCoverage) int { return strings.Compare(a.Node, b.Node) })
	return sight.Coverage(c), nil
}

// nodes lists who ever reported, with what each said last about its limits.
func (s *Store) nodes(ctx context.Context, _, _ int64, nodes map[string]*flow.NodeCoverage) error {
	rows, err := s.conn.Query(ctx, "SELECT node, argMax(scope, stop), argMax(limits, stop) FROM covered GROUP BY node")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		n := &flow.NodeCoverage{}
		var scope uint8
		var limits string
		if err := rows.Scan(&n.Node, &scope, &limits); err != nil {
			return err
		}
		n.Scope = flow.Scope(scope)
		n.Limits = columns.LimitsOf(limits)
		nodes[n.Node] = n
	}
	return rows.Err()
}

// coveredTime adds up what each node's batches cover of the range, the time
// that two of them cover counted once.
func (s *Store) coveredTime(ctx context.Context, since, until int64, nodes map[string]*flow.NodeCoverage) error {
	rows, err := s.conn.Query(ctx, s.global(fmt.Sprintf(`SELECT node, start, stop FROM covered WHERE stop > %d AND start < %d AND copy NOT IN (SELECT copy FROM excluded)
		ORDER BY node, start`, since, until)))
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
			last, upTo = node, since
		}
		start, end = max(start, upTo), min(end, until)
		if end > start && nodes[node] != nil {
			nodes[node].Covered += time.Duration(end-start) * time.Millisecond
			upTo = end
		}
	}
	return rows.Err()
}

// maxGapsShown bounds an answer to the newest gaps.
const maxGapsShown = 1000

func (s *Store) newestGaps(ctx context.Context, since, until int64, nodes map[string]*flow.NodeCoverage) error {
	rows, err := s.conn.Query(ctx, s.global(fmt.Sprintf(`SELECT DISTINCT node, source, kind, start, stop, lost, detail FROM gap WHERE stop >= %d AND start <= %d
		AND copy NOT IN (SELECT copy FROM excluded) ORDER BY start DESC LIMIT %d`, since, until, maxGapsShown)))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var g flow.Gap
		var kind uint8
		var start, end int64
		if err := rows.Scan(&g.Node, &g.Source, &kind, &start, &end, &g.Lost, &g.Detail); err != nil {
			return err
		}
		g.Kind, g.Start, g.End = flow.GapKind(kind), time.UnixMilli(start), time.UnixMilli(end)
		n := nodes[g.Node]
		if n == nil {
			n = &flow.NodeCoverage{Node: g.Node}
			nodes[g.Node] = n
		}
		n.Gaps = append([]flow.Gap{g}, n.Gaps...)
	}
	return rows.Err()
}
