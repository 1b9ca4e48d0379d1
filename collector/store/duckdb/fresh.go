package duckdb

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"sync"
	"time"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/collector/store/columns"
	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/queries"
)

// openEdges is a database in memory with the edges of the slices that no month
// holds yet, in a month's form.
const openEdges = "open_edges"

// freshness says of when what is made anew for questions is.
type freshness struct {
	mu     sync.Mutex
	flows  uint64        // of the open slices, when their edges were made
	slices string        // names of these
	made   time.Time     // of the edges
	cost   time.Duration // of making them
	rules  uint64        // the timeline's sequence when its rules were listed
	listed bool
	eager  bool // makes edges whatever it costs

	ids   map[flow.EdgeKey]uint32 // of the edges that were made
	names map[string]*names       // by slice
}

const (
	// cheap is what making edges may cost each question that reads them.
	cheap = 100 * time.Millisecond
	// restFactor bounds the share of the time that goes into making dearer ones.
	restFactor = 5
)

// refresh makes what an SQL text reads and no file holds. The list of slices
// must not change.
func (s *Store) refresh(ctx context.Context, text string) error {
	s.fresh.mu.Lock()
	defer s.fresh.mu.Unlock()
	if queries.Reads(text, "edges") {
		if err := s.refreshEdges(ctx); err != nil {
			return fmt.Errorf("make edges of the newest flows: %w", err)
		}
	}
	if queries.Reads(text, "rules") {
		if err := s.refreshRules(ctx); err != nil {
			return fmt.Errorf("list rules of policies: %w", err)
		}
	}
	return nil
}

func (s *Store) refreshEdges(ctx context.Context) error {
	var open []*slice
	var flows uint64
	var which string
	for _, sl := range s.slices {
		if own := s.months[monthOf(sl.begin)]; own == nil || !own.done[sl.name] {
			open, flows, which = append(open, sl), flows+sl.held.Load().flows, which+" "+sl.name
		}
	}
	f := &s.fresh
	if f.slices == which && (f.flows == flows || !f.eager && f.cost > cheap && time.Since(f.made) < restFactor*f.cost) {
		return nil
	}
	began := time.Now()
	again := f.slices == which && f.ids != nil // the edges that were made stay, and become more
	if !again {
		f.ids, f.names = make(map[flow.EdgeKey]uint32), make(map[string]*names)
	}
	var ends, counts [][]driver.Value
	ids := f.ids
	f.ids = nil // after an error all is made anew
	for _, sl := range open {
		edges, err := s.edgesOf(ctx, sl, f.namesOf(s.db, sl))
		if err != nil {
			return err
		}
		for hour, list := range edges {
			for _, e := range list {
				id, known := ids[e.EdgeKey]
				if !known {
					id = uint32(len(ids))
					ids[e.EdgeKey] = id
					ends = append(ends, edgeRow(id, e))
				}
				counts = append(counts, hourRow(id, hour, e))
			}
		}
	}
	if err := s.replace(ctx, openEdges, []rowsOf{{"edge", !again, ends}, {"hour", true, counts}}); err != nil {
		return err
	}
	f.ids, f.slices, f.flows, f.made, f.cost = ids, which, flows, time.Now(), time.Since(began)
	return nil
}

// maxNames is how many keys' names are kept from one question to the next.
const maxNames = 1 << 18

// namesOf are the names of a slice, as far as they are known.
func (f *freshness) namesOf(db *sql.DB, sl *slice) *names {
	n := f.names[sl.name]
	if n == nil || len(n.keys[0]) > maxNames {
		n = newNames(db, []*slice{sl})
		f.names[sl.name] = n
	}
	return n
}

func (s *Store) refreshRules(ctx context.Context) error {
	changes := make(map[changeKey]newestChange)
	s.timeline.mu.Lock()
	sequence := s.timeline.sequence
	for k, n := range s.timeline.newest {
		if k.kind == flow.ChangePolicy && !n.deleted {
			changes[k] = n
		}
	}
	s.timeline.mu.Unlock()
	if s.fresh.listed && s.fresh.rules == sequence {
		return nil
	}
	var rows [][]driver.Value
	for k, n := range changes {
		for _, r := range store.Rules(&flow.Change{Kind: k.kind, Object: n.object}) {
			rows = append(rows, []driver.Value{
				k.cluster, k.namespace, k.name, columns.RuleName(k.namespace, k.name, r.Name), r.Side, r.Name, boolByte(r.AllPods),
			})
		}
	}
	if err := s.replace(ctx, "memory", []rowsOf{{"rule", true, rows}}); err != nil {
		return err
	}
	s.fresh.rules, s.fresh.listed = sequence, true
	return nil
}

// rowsOf are rows for a table, in the place of those that it has or beside them.
type rowsOf struct {
	table   string
	instead bool
	rows    [][]driver.Value
}

// replace gives tables of a database in memory other rows.
func (s *Store) replace(ctx context.Context, database string, tables []rowsOf) error {
	conn, err := s.db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	w := &writer{conn: conn}
	return w.transaction(ctx, func() error {
		for _, t := range tables {
			if t.instead {
				if _, err := conn.ExecContext(ctx, fmt.Sprintf("DELETE FROM %s.%s", database, t.table)); err != nil {
					return err
				}
			}
			if err := w.insertRows(database, t.table, t.rows); err != nil {
				return err
			}
		}
		return nil
	})
}
