package clickhouse

import (
	"context"
	"fmt"
	"math/big"
	"reflect"
	"regexp"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

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
	text, err := inline(q.With(func(table string) string { return ownTable(table, sight) }), values)
	if err != nil {
		return store.Rows{}, fmt.Errorf("answer %s: %w", name, err)
	}
	if queries.Reads(text, "edges") {
		if err := s.sumUp(ctx); err != nil {
			return store.Rows{}, fmt.Errorf("answer %s: %w", name, err)
		}
	}
	rows, err := s.conn.Query(s.questionSettings(ctx), text)
	if err != nil {
		return store.Rows{}, fmt.Errorf("answer %s: %w", name, err)
	}
	answer, err := readRows(rows, maxRows)
	for _, r := range answer.Rows {
		q.Present(answer.Columns, r)
	}
	return answer, err
}

// ownTable makes totals of flows one by one: ClickHouse reads columns fast enough.
func ownTable(table string, sight flow.Sight) string {
	text := table
	if table == queries.Totals {
		text = "(SELECT *, toUInt64(1) AS flows FROM flows)"
	}
	if !sight.All() {
		text = restriction().View(table, text, sight)
	}
	return text
}

func restriction() *columns.Restriction {
	return &columns.Restriction{
		// A dollar would be the beginning of an argument.
		Quote:  func(text string) string { return strings.ReplaceAll(quote(text), "$", `\x24`) },
		Before: "splitByChar('/', %s)[1]",
		Keep:   "arrayStringConcat(arrayFilter(rule -> has([%[2]s], splitByChar('/', rule)[1]), splitByChar(',', %[1]s)), ',')",
	}
}

// questionSettings make ClickHouse say what the other stores do.
func (s *Store) questionSettings(ctx context.Context) context.Context {
	more := clickhouse.Settings{"max_bytes_before_external_group_by": 2_000_000_000}
	if s.server.topK != "" {
		more[s.server.topK] = 0
	}
	if s.cluster != "" && s.server.textSettings {
		more["distributed_product_mode"] = "global" // questions have every store's text
	}
	return settings(ctx, more)
}

// inline puts values in the place of $names.
func inline(text string, values map[string]any) (string, error) {
	var bad error
	out := regexp.MustCompile(`\$[a-z_]+`).ReplaceAllStringFunc(text, func(name string) string {
		value, err := literal(values[name[1:]])
		if err != nil {
			bad = fmt.Errorf("argument %s: %w", name[1:], err)
		}
		return value
	})
	return out, bad
}

func readRows(rows driver.Rows, limit int) (out store.Rows, err error) {
	defer func() {
		if err == nil {
			err = closing(rows)
		}
	}()
	out.Columns = rows.Columns()
	types := rows.ColumnTypes()
	for rows.Next() {
		targets := make([]any, len(types))
		for i, t := range types {
			targets[i] = reflect.New(t.ScanType()).Interface()
		}
		if err := rows.Scan(targets...); err != nil {
			return out, err
		}
		if len(out.Rows) == limit {
			return out, fmt.Errorf("%w: the answer has more than %d rows: narrow the question", store.ErrArgument, limit)
		}
		values := make([]any, len(targets))
		for i, t := range targets {
			values[i] = plain(reflect.ValueOf(t).Elem())
		}
		out.Rows = append(out.Rows, values)
	}
	return out, nil
}

// plain turns the driver's types into the few that store.Rows has.
func plain(v reflect.Value) any {
	switch x := v.Interface().(type) {
	case time.Time:
		return x.UTC()
	case big.Int:
		return x.Int64()
	case *big.Int:
		if x == nil {
			return nil
		}
		return x.Int64()
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return nil
		}
		return plain(v.Elem())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return v.Int()
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return int64(v.Uint())
	case reflect.Float32, reflect.Float64:
		return v.Float()
	case reflect.String:
		return v.String()
	case reflect.Bool:
		return v.Bool()
	}
	return fmt.Sprint(v.Interface())
}
