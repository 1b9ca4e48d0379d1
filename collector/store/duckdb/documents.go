package duckdb

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/flowaudit/flowaudit/collector/store"
)

// documentsFile holds alerts and silences. There are few of them.
const (
	documentsFile = "documents" + fileSuffix
	documentsName = "documents"
)

func (s *Store) openDocuments(ctx context.Context) error {
	path := s.documentsPath()
	if _, err := s.db.ExecContext(ctx, fmt.Sprintf("ATTACH %s AS %s", quote(path), documentsName)); err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	s.documents = true
	if _, err := documentSteps.migrate(ctx, s.db, documentsName); err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	return nil
}

func (s *Store) documentsPath() string { return filepath.Join(s.o.Dir, documentsFile) }

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, documents []store.Document) error {
	s.write.Lock()
	defer s.write.Unlock()
	if len(documents) == 0 {
		return nil
	}
	err := s.writer.transaction(ctx, func() error {
		for _, d := range documents {
			if _, err := s.writer.conn.ExecContext(ctx, "DELETE FROM documents.document WHERE kind = $1 AND id = $2 AND time <= $3", d.Kind, d.ID, d.Time.UnixMilli()); err != nil {
				return fmt.Errorf("keep %s %s: %w", d.Kind, d.ID, err)
			}
			if _, err := s.writer.conn.ExecContext(ctx, "INSERT INTO documents.document SELECT $1, $2, $3, $4 WHERE NOT EXISTS (SELECT 1 FROM documents.document WHERE kind = $1 AND id = $2)",
				d.Kind, d.ID, d.Time.UnixMilli(), d.Body); err != nil {
				return fmt.Errorf("keep %s %s: %w", d.Kind, d.ID, err)
			}
		}
		return nil
	})
	return errors.Join(err, s.revive(ctx, err, documentsName, s.documentsPath()))
}

// Documents implements store.Store.
func (s *Store) Documents(ctx context.Context, kind string, since time.Time, yield func(store.Document) bool) error {
	s.read.RLock()
	defer s.read.RUnlock()
	from := int64(0)
	if !since.IsZero() {
		from = since.UnixMilli()
	}
	rows, err := s.db.QueryContext(ctx, "SELECT id, time, body FROM documents.document WHERE kind = $1 AND time >= $2 ORDER BY time, id", kind, from)
	if err != nil {
		return fmt.Errorf("read documents: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		d := store.Document{Kind: kind}
		var ms int64
		if err := rows.Scan(&d.ID, &ms, &d.Body); err != nil {
			return fmt.Errorf("read documents: %w", err)
		}
		if d.Time = time.UnixMilli(ms); !yield(d) {
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
	s.write.Lock()
	defer s.write.Unlock()
	if _, err := s.writer.conn.ExecContext(ctx, "DELETE FROM documents.document WHERE kind = $1 AND time < $2", kind, before.UnixMilli()); err != nil {
		return errors.Join(fmt.Errorf("delete old documents: %w", err), s.revive(ctx, err, documentsName, s.documentsPath()))
	}
	return nil
}
