package clickhouse

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/collector/store/columns"
	"github.com/flowaudit/flowaudit/flow"
)

// mergeSlack is how far apart two nodes' reports of one connection may start:
// a window of ten seconds, and what clocks differ by.
const mergeSlack = 15 * time.Second

// Flows implements store.Store.
func (s *Store) Flows(ctx context.Context, req store.FlowsRequest, yield func(flow.Flow) bool) error {
	if req.Last > 0 {
		return s.lastFlows(ctx, &req, yield)
	}
	given := 0
	return s.scan(ctx, &req, func(f flow.Flow) bool {
		given++
		return yield(f) && given != req.First
	})
}

// lastFlows gives the newest n. Reports of several nodes merge, so that more
// rows than flows are read; where that was not enough, more are.
func (s *Store) lastFlows(ctx context.Context, req *store.FlowsRequest, yield func(flow.Flow) bool) error {
	n := req.Last
	for limit := 2*n + 64; ; limit *= 4 {
		var all []flow.Flow
		rows := 0
		if err := s.scanRows(ctx, req, "start DESC, key", limit, func(r flow.Flow) bool { all = append(all, r); rows++; return true }); err != nil {
			return err
		}
		more := rows == limit
		all = req.SeeAll(complete(req, all, more))
		if len(all) < n && more {
			continue
		}
		for _, r := range all[max(0, len(all)-n):] {
			if !yield(r) {
				break
			}
		}
		return nil
	}
}

// complete merges the newest reports. Where there are older ones, a reader who
// does not see everything is shown those flows only of which none is missing:
// where the reports end follows from flows that do not show.
func complete(req *store.FlowsRequest, reports []flow.Flow, more bool) []flow.Flow {
	var whole time.Time
	if n := len(reports); more && n > 0 && !req.Sight.All() {
		whole = reports[n-1].Start.Add(mergeSlack)
	}
	return slices.DeleteFunc(flow.Merge(reports, mergeSlack), func(f flow.Flow) bool { return f.Start.Before(whole) })
}

// scan gives merged flows in order of their start, as they show.
func (s *Store) scan(ctx context.Context, req *store.FlowsRequest, yield func(flow.Flow) bool) error {
	m := flow.NewMerger(mergeSlack, func(r flow.Flow) bool {
		shown, ok := req.See(r)
		return !ok || yield(shown)
	})
	err := s.scanRows(ctx, req, "start, key", 0, m.Add)
	if err == nil {
		m.Close()
	}
	return err
}

// Count implements store.Store.
func (s *Store) Count(ctx context.Context, sight flow.Sight, f flow.Filter) (flows, connections uint64, err error) {
	err = s.scan(ctx, &store.FlowsRequest{Sight: sight, Filter: f}, func(r flow.Flow) bool {
		flows++
		connections += r.Connections
		return true
	})
	return flows, connections, err
}

// rowBlock is how many rows are named at once.
const rowBlock = 4096

// row is a flow as it is stored.
type row struct {
	key          uint64
	start        int64
	duration     uint32
	sourcePort   uint16
	connections  uint64
	counted      uint8
	flags        uint8
	sent, gotten flow.Counters
}

func (r *row) scan(rows driver.Rows) error {
	return rows.Scan(&r.key, &r.start, &r.duration, &r.sourcePort, &r.connections, &r.counted, &r.flags, &r.sent.Packets, &r.sent.Bytes, &r.gotten.Packets, &r.gotten.Bytes)
}

// scanRows gives reports as they are stored, those of partner nodes too.
func (s *Store) scanRows(ctx context.Context, req *store.FlowsRequest, order string, limit int, yield func(flow.Flow) bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // a reader that has seen enough ends the query
	query, err := rowsQuery(req, order, limit)
	if err != nil {
		return fmt.Errorf("read flows: %w", err)
	}
	rows, err := s.conn.Query(s.questionSettings(ctx), s.global(query))
	if err != nil {
		return fmt.Errorf("read flows: %w", err)
	}
	defer rows.Close()
	names := newNames(s)
	block := make([]row, 0, rowBlock)
	for more := true; more; {
		block = block[:0]
		for len(block) < rowBlock {
			if more = rows.Next(); !more {
				break
			}
			var r row
			if err := r.scan(rows); err != nil {
				return fmt.Errorf("read flows: %w", err)
			}
			block = append(block, r)
		}
		if err := names.learn(ctx, block); err != nil {
			return err
		}
		for i := range block {
			if !yield(names.flow(&block[i])) {
				return nil
			}
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read flows: %w", err)
	}
	return nil
}

func dialect() *columns.Dialect {
	return &columns.Dialect{
		HasPrefix: "startsWith(%s, ?)", Contains: "position(%s, ?) > 0", HasAddr: "%s <> ''", Addr: "unhex(?)", Verdict: "toInt8(verdict)", SourceEnd: "src_", DestinationEnd: "dst_",
	}
}

// rowsQuery selects the rows whose key, or whose key's partner on another
// node, passes the filter.
func rowsQuery(req *store.FlowsRequest, order string, limit int) (string, error) {
	f := &req.Filter
	query := `SELECT key, start, duration, source_port, connections, counted, tcp_flags, packets_sent, bytes_sent, packets_received, bytes_received FROM flow
		WHERE copy NOT IN (SELECT copy FROM excluded)`
	if condition, args := dialect().Condition(req.Sight, f); condition != "" {
		// The dialect's columns are those of one table.
		condition = strings.ReplaceAll(condition, "k.", "")
		condition, err := bind(condition, args)
		if err != nil {
			return "", err
		}
		query += " AND key IN (SELECT id FROM key WHERE pair IN (SELECT pair FROM key WHERE 1" + condition + "))"
	}
	if !f.Since.IsZero() {
		query += fmt.Sprintf(" AND start + duration >= %d", f.Since.Add(-mergeSlack).UnixMilli())
	}
	if !f.Until.IsZero() {
		query += fmt.Sprintf(" AND start <= %d", f.Until.Add(mergeSlack).UnixMilli())
	}
	query += " ORDER BY " + order
	if limit > 0 {
		query += fmt.Sprintf(" LIMIT %d", limit)
	}
	return query, nil
}

// bind puts values in the place of question marks. None stands in a text: the
// dialect has none, and all values are bound.
func bind(query string, args []any) (string, error) {
	parts := strings.Split(query, "?")
	if len(parts) != len(args)+1 {
		return "", fmt.Errorf("%d values for %d places", len(args), len(parts)-1)
	}
	var b strings.Builder
	for i, p := range parts {
		b.WriteString(p)
		if i == len(args) {
			break
		}
		text, err := literal(args[i])
		if err != nil {
			return "", err
		}
		b.WriteString(text)
	}
	return b.String(), nil
}

// literal is a value as SQL. Bytes are hexadecimal, for unhex.
func literal(v any) (string, error) {
	switch x := v.(type) {
	case string:
		return quote(x), nil
	case []byte:
		return fmt.Sprintf("'%x'", x), nil
	case bool, int, int64, uint8, uint16, uint32, uint64:
		return fmt.Sprint(x), nil
	case time.Time:
		return fmt.Sprint(x.UnixMilli()), nil
	}
	return "", fmt.Errorf("no SQL for a %T", v)
}
