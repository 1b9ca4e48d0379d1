package duckdb

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/flowaudit/flowaudit/collector/store/columns"
	"github.com/flowaudit/flowaudit/flow"
)

// Coverage implements store.Store.
func (s *Store) Coverage(ctx context.Context, sight flow.Sight, since, until time.Time) (flow.Coverage, error) {
	s.read.RLock()
	defer s.read.RUnlock()
	c := flow.Coverage{Since: since, Until: until}
	nodes := s.reported.nodes()
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
	return sight.Coverage(c), nil
}

// overAll makes one query of a query for each slice that may tell of a time or
// later ones.
func (s *Store) overAll(query string, since time.Time) string {
	all := s.arrivedSince(since.UnixMilli())
	parts := make([]string, len(all))
	for i, sl := range all {
		parts[i] = fmt.Sprintf(query, sl.name)
	}
	return strings.Join(parts, " UNION ALL ")
}

// reported is who ever reported, with what each said last about its limits.
type reported struct {
	mu   sync.Mutex
	last map[string]lastReport
}

type lastReport struct {
	scope  flow.Scope
	limits []string
	end    int64  // Unix milliseconds
	slice  string // the newest that tells of it
}

// load reads what slices say, the oldest first.
func (r *reported) load(ctx context.Context, db *sql.DB, all []*slice) error {
	r.last = make(map[string]lastReport)
	for _, sl := range all {
		if err := r.loadSlice(ctx, db, sl); err != nil {
			return fmt.Errorf("read coverage of %s: %w", sl.path, err)
		}
	}
	return nil
}

func (r *reported) loadSlice(ctx context.Context, db *sql.DB, sl *slice) error {
	rows, err := db.QueryContext(ctx, fmt.Sprintf(`SELECT node, arg_max(scope, "end"), arg_max(limits, "end"), max("end") FROM %s.coverage GROUP BY node`, sl.name))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var node, limits string
		n := lastReport{slice: sl.name}
		if err := rows.Scan(&node, &n.scope, &limits, &n.end); err != nil {
			return err
		}
		n.limits = columns.LimitsOf(limits)
		r.take(node, n)
	}
	return rows.Err()
}

func (r *reported) take(node string, n lastReport) {
	if before, known := r.last[node]; known && before.end > n.end {
		before.slice = n.slice
		n = before
	}
	r.last[node] = n
}

// add takes in what batches say that were stored in a slice.
func (r *reported) add(batches []*flow.Batch, sl *slice) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range batches {
		if b.End.After(b.Start) {
			r.take(b.Node, lastReport{b.Scope, b.Agent.Limits, b.End.UnixMilli(), sl.name})
		}
	}
}

// forget leaves out who was only told of by a slice that is gone.
func (r *reported) forget(sl *slice) {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.last, func(_ string, n lastReport) bool { return n.slice == sl.name })
}

func (r *reported) nodes() map[string]*flow.NodeCoverage {
	r.mu.Lock()
	defer r.mu.Unlock()
	nodes := make(map[string]*flow.NodeCoverage)
	for name, n := range r.last {
		nodes[name] = &flow.NodeCoverage{Node: name, Scope: n.scope, Limits: slices.Clone(n.limits)}
	}
	return nodes
}

// covered adds up what each node's batches cover of the range, the time that
// two of them cover counted once.
func (s *Store) covered(ctx context.Context, since, until time.Time, nodes map[string]*flow.NodeCoverage) error {
	rows, err := s.db.QueryContext(ctx, `SELECT node, greatest(start, $1), least("end", $2) FROM (`+
		s.overAll(`SELECT node, start, "end" FROM %s.coverage`, since)+`) WHERE "end" > $1 AND start < $2 ORDER BY 1, 2`, since.UnixMilli(), until.UnixMilli())
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
		s.overAll(`SELECT node, source, kind, start, "end", lost, detail FROM %s.gap`, since)+
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
