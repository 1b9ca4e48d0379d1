package clickhouse

import (
	"context"
	"fmt"
	"time"

	"github.com/flowaudit/flowaudit/collector/store"
)

// documentSlot numbers the partition of a document: what goes soon, goes by the hour.
func documentSlot(kind string, t time.Time) uint32 {
	if kind == store.ShortLived {
		return hourOf(t)
	}
	return monthOf(hourOf(t))
}

// Put implements store.Store. Of collectors that write the same document, the
// later one counts.
func (s *Store) Put(ctx context.Context, documents []store.Document) error {
	b := s.newInsert("document", "kind, slot, id, time, version, body")
	first := uint64(time.Now().UnixNano())
	for i, d := range documents {
		b.row(d.Kind, documentSlot(d.Kind, d.Time), d.ID, d.Time.UnixMilli(), first+uint64(i), string(d.Body))
	}
	if err := b.send(ctx); err != nil {
		return fmt.Errorf("keep documents: %w", err)
	}
	return nil
}

// Documents implements store.Store.
func (s *Store) Documents(ctx context.Context, kind string, since time.Time, yield func(store.Document) bool) error {
	from := int64(0)
	if !since.IsZero() {
		from = since.UnixMilli()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // a reader that has seen enough ends the query
	rows, err := s.conn.Query(ctx, fmt.Sprintf(`SELECT id, latest, said FROM (SELECT id, max(time) AS latest, argMax(body, (time, version)) AS said FROM document
		WHERE kind = %s AND slot >= %d AND time >= %d GROUP BY id) ORDER BY latest, id`, quote(kind), documentSlot(kind, time.UnixMilli(from)), from))
	if err != nil {
		return fmt.Errorf("read documents: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		d := store.Document{Kind: kind}
		var ms int64
		var body string
		if err := rows.Scan(&d.ID, &ms, &body); err != nil {
			return fmt.Errorf("read documents: %w", err)
		}
		if d.Time, d.Body = time.UnixMilli(ms), []byte(body); !yield(d) {
			return nil
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read documents: %w", err)
	}
	return nil
}

// Discard implements store.Store.
func (s *Store) Discard(ctx context.Context, kind string, before time.Time) error {
	_, err := s.dropPartitions(ctx, "document", fmt.Sprintf("position(partition, %s) > 0 AND toUInt32OrZero(extract(partition, ',([0-9]+)')) < %d",
		quote("'"+kind+"'"), documentSlot(kind, before)))
	return err
}
