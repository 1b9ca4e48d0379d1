package duckdb

import (
	"context"
	"database/sql"
	"fmt"
	"slices"

	"github.com/flowaudit/flowaudit/flow"
)

// batchKeys remembers which batches are committed. An agent's sequences have
// few holes, so that it is a few ranges for each epoch.
type batchKeys map[flow.BatchKey][]span // by the key without its sequence

// span is a range of sequences, both ends included.
type span struct{ first, last uint64 }

func epochOf(k flow.BatchKey) flow.BatchKey {
	k.Sequence = 0
	return k
}

func (b batchKeys) has(k flow.BatchKey) bool {
	_, found := slices.BinarySearchFunc(b[epochOf(k)], k.Sequence, compareSpan)
	return found
}

func compareSpan(s span, seq uint64) int {
	switch {
	case s.last < seq:
		return -1
	case s.first > seq:
		return 1
	}
	return 0
}

// add remembers a batch that was not known before.
func (b batchKeys) add(k flow.BatchKey) {
	e := epochOf(k)
	spans := b[e]
	i, found := slices.BinarySearchFunc(spans, k.Sequence, compareSpan)
	if found {
		return
	}
	joinsLeft := i > 0 && spans[i-1].last+1 == k.Sequence
	joinsRight := i < len(spans) && k.Sequence+1 == spans[i].first
	switch {
	case joinsLeft && joinsRight:
		spans[i-1].last = spans[i].last
		spans = slices.Delete(spans, i, i+1)
	case joinsLeft:
		spans[i-1].last = k.Sequence
	case joinsRight:
		spans[i].first = k.Sequence
	default:
		spans = slices.Insert(spans, i, span{k.Sequence, k.Sequence})
	}
	b[e] = spans
}

// load reads the keys of all slices back, as ranges made by the database.
func (b batchKeys) load(ctx context.Context, db *sql.DB, all []*slice) error {
	for _, s := range all {
		if err := b.loadSlice(ctx, db, s); err != nil {
			return fmt.Errorf("read batch keys of %s: %w", s.path, err)
		}
	}
	return nil
}

func (b batchKeys) loadSlice(ctx context.Context, db *sql.DB, s *slice) error {
	rows, err := db.QueryContext(ctx, fmt.Sprintf(`SELECT cluster, instance, epoch, min(sequence), max(sequence) FROM (
		SELECT *, sequence - row_number() OVER (PARTITION BY cluster, instance, epoch ORDER BY sequence) AS island FROM %s.batch)
		GROUP BY cluster, instance, epoch, island ORDER BY 4`, s.name))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var k flow.BatchKey
		var r span
		if err := rows.Scan(&k.Cluster, &k.Instance, &k.Epoch, &r.first, &r.last); err != nil {
			return err
		}
		spans := append(b[k], r)
		slices.SortFunc(spans, func(x, y span) int { return compareSpan(x, y.first) })
		b[k] = spans
	}
	return rows.Err()
}

// Stored implements store.Store.
func (s *Store) Stored(ctx context.Context, keys []flow.BatchKey) ([]bool, error) {
	s.write.Lock()
	defer s.write.Unlock()
	if s.failed { // what was being written may or may not be there
		if err := s.recover(ctx); err != nil {
			return nil, fmt.Errorf("recover from a write that failed: %w", err)
		}
	}
	stored := make([]bool, len(keys))
	for i, k := range keys {
		stored[i] = s.keys.has(k)
	}
	return stored, nil
}
