package duckdb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/duckdb/duckdb-go/v2"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/collector/store/columns"
	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/queries"
)

// maxRows bounds the answer to a question.
const maxRows = 100_000

// Query implements store.Store.
func (s *Store) Query(ctx context.Context, sight flow.Sight, name string, given map[string]string) (store.Rows, error) {
	q, err := queries.Find(name)
	if err != nil {
		return store.Rows{}, fmt.Errorf("%w: %w", store.ErrArgument, err)
	}
	if sight.Nothing() || !sight.All() && q.Whole != "" {
		return store.Rows{}, store.ErrSight
	}
	values, err := q.Bind(given, s.o.Now())
	if err != nil {
		return store.Rows{}, fmt.Errorf("%w: %w", store.ErrArgument, err)
	}
	args := make([]any, 0, len(values))
	for n, v := range values {
		if t, is := v.(time.Time); is {
			v = t.UnixMilli()
		}
		args = append(args, sql.Named(n, v))
	}
	s.read.RLock()
	defer s.read.RUnlock()
	if err := s.refresh(ctx, q.SQL); err != nil {
		return store.Rows{}, fmt.Errorf("answer %s: %w", name, err)
	}
	conn, end, err := s.reading(ctx)
	if err != nil {
		return store.Rows{}, fmt.Errorf("answer %s: %w", name, err)
	}
	defer end()
	since := int64(0)
	if t, given := values["since"].(time.Time); given {
		since = max(0, t.UnixMilli())
	}
	var totals string
	if queries.Reads(q.SQL, queries.Totals) {
		if totals, err = s.totals(ctx, conn, since); err != nil {
			return store.Rows{}, fmt.Errorf("answer %s: %w", name, err)
		}
	}
	rows, err := conn.QueryContext(ctx, q.With(func(table string) string {
		text := totals
		if table != queries.Totals {
			text = "(" + s.view(table, since) + ")"
		}
		if !sight.All() {
			text = restriction().View(table, text, sight)
		}
		return text
	}), args...)
	if err != nil {
		return store.Rows{}, fmt.Errorf("answer %s: %w", name, err)
	}
	defer rows.Close()
	answer, err := readRows(rows, maxRows)
	for _, r := range answer.Rows {
		q.Present(answer.Columns, r)
	}
	return answer, err
}

func restriction() *columns.Restriction {
	return &columns.Restriction{
		Quote: quote, Before: "split_part(%s, '/', 1)", Keep: "array_to_string([rule FOR rule IN string_split(%[1]s, ',') IF split_part(rule, '/', 1) IN (%[2]s)], ',')",
	}
}

// reading begins a transaction that sees each file as it is when it is first
// read. end gives it back.
func (s *Store) reading(ctx context.Context) (conn *sql.Conn, end func(), err error) {
	if conn, err = s.db.Conn(ctx); err != nil {
		return nil, nil, err
	}
	if _, err := conn.ExecContext(ctx, "BEGIN TRANSACTION READ ONLY"); err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return conn, func() {
		_, err := conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK")
		if err = errors.Join(err, conn.Close()); err != nil {
			s.o.Logger.Error("a question's transaction did not end", "error", err)
		}
	}, nil
}

func readRows(rows *sql.Rows, limit int) (out store.Rows, err error) {
	if out.Columns, err = rows.Columns(); err != nil {
		return out, err
	}
	for rows.Next() {
		values := make([]any, len(out.Columns))
		targets := make([]any, len(values))
		for i := range values {
			targets[i] = &values[i]
		}
		if err := rows.Scan(targets...); err != nil {
			return out, err
		}
		for i := range values {
			values[i] = plain(values[i])
		}
		if len(out.Rows) == limit {
			return out, fmt.Errorf("%w: the answer has more than %d rows: narrow the question", store.ErrArgument, limit)
		}
		out.Rows = append(out.Rows, values)
	}
	return out, rows.Err()
}

// plain turns the driver's types into the few that store.Rows has.
func plain(v any) any {
	switch x := v.(type) {
	case int8:
		return int64(x)
	case int16:
		return int64(x)
	case int32:
		return int64(x)
	case uint8:
		return int64(x)
	case uint16:
		return int64(x)
	case uint32:
		return int64(x)
	case uint64:
		return int64(x)
	case *big.Int:
		return x.Int64()
	case float32:
		return float64(x)
	case time.Time:
		return x.UTC()
	case []byte:
		return string(x)
	case nil, string, int64, float64, bool:
		return v
	case int:
		return int64(x)
	case duckdb.Decimal:
		return x.Float64()
	}
	return fmt.Sprint(v)
}
