package clickhouse

import (
	"context"
	"fmt"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

// insert gathers the rows of a small insert. Flows go in by column; see append.go.
type insert struct {
	s              *Store
	table, columns string
	rows           [][]any
}

func (s *Store) newInsert(table, columns string) *insert {
	return &insert{s: s, table: table, columns: columns}
}

func (b *insert) row(values ...any) { b.rows = append(b.rows, values) }

// send writes the rows, if there are any, and returns when they are durable.
func (b *insert) send(ctx context.Context) error {
	if len(b.rows) == 0 {
		return nil
	}
	batch, err := b.s.prepareInsert(ctx, b.table, b.columns)
	if err != nil {
		return err
	}
	for _, r := range b.rows {
		if err := batch.Append(r...); err != nil {
			_ = batch.Abort() // the error is told
			return fmt.Errorf("insert into %s: %w", b.table, err)
		}
	}
	return sendBatch(batch, b.table)
}

// prepareInsert begins an insert. Old servers want the columns named.
func (s *Store) prepareInsert(ctx context.Context, table, columns string) (driver.Batch, error) {
	batch, err := s.conn.PrepareBatch(s.durable(ctx), fmt.Sprintf("INSERT INTO %s (%s)", table, columns))
	if err != nil {
		return nil, fmt.Errorf("insert into %s: %w", table, err)
	}
	return batch, nil
}

func sendBatch(batch driver.Batch, table string) error {
	if err := batch.Send(); err != nil {
		return fmt.Errorf("insert into %s: %w", table, err)
	}
	return nil
}

// closing ends reading, and says how it went.
func closing(rows driver.Rows) error {
	if err := rows.Close(); err != nil {
		return err
	}
	return rows.Err()
}
