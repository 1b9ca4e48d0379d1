package duckdb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/queries"
)

// The views that questions are written against, one part a slice. A pair is
// known by its slice and number; names stand for codes.
const (
	flowsPart = `SELECT make_timestamptz(f.start * 1000) AS start_time, make_timestamptz((f.start + f.duration) * 1000) AS end_time, k.cluster, k.node, '%[1]s.' || k.pair AS pair,
	%[2]s AS direction, %[3]s AS verdict, %[4]s AS expected, %[5]s AS assessment, %[8]s AS caveat, %[6]s AS reason, %[7]s AS protocol, k.port, f.source_port,
	s.ip AS source_ip, s.namespace AS source_namespace, s.pod AS source_pod, s.workload_kind AS source_workload_kind, s.workload AS source_workload, s.node AS source_node,
	d.ip AS destination_ip, d.namespace AS destination_namespace, d.pod AS destination_pod, d.workload_kind AS destination_workload_kind, d.workload AS destination_workload,
	d.node AS destination_node, k.service_ip, k.service_port, k.service_namespace, k.service, k.policies AS policy_refs, f.connections,
	CASE f.counted WHEN 1 THEN f.packets_sent END AS packets_sent, CASE f.counted WHEN 1 THEN f.bytes_sent END AS bytes_sent,
	CASE f.counted WHEN 1 THEN f.packets_received END AS packets_received, CASE f.counted WHEN 1 THEN f.bytes_received END AS bytes_received, f.tcp_flags
	FROM %[1]s.flow f JOIN %[1]s.key k ON f.key = k.id JOIN %[1]s.endpoint s ON k.src = s.id JOIN %[1]s.endpoint d ON k.dst = d.id`
	gapsPart     = `SELECT node, source, %[2]s AS kind, make_timestamptz(start * 1000) AS start_time, make_timestamptz("end" * 1000) AS end_time, nullif(lost, 0) AS lost, detail FROM %[1]s.gap`
	coveragePart = `SELECT node, instance, make_timestamptz(start * 1000) AS start_time, make_timestamptz("end" * 1000) AS end_time FROM %[1]s.coverage`
)

// nameSQL makes SQL that turns a code into its name.
func nameSQL[T interface {
	~uint8
	fmt.Stringer
}](column string, codes ...T) string {
	var b strings.Builder
	b.WriteString("CASE " + column)
	for _, c := range codes {
		fmt.Fprintf(&b, " WHEN %d THEN %s", uint8(c), quote(c.String()))
	}
	b.WriteString(" ELSE " + column + "::VARCHAR END")
	return b.String()
}

// upTo lists the codes from 0 to last.
func upTo[T ~uint8](last T) []T {
	var out []T
	for c := T(0); c <= last; c++ {
		out = append(out, c)
	}
	return out
}

func (s *Store) defineViews(ctx context.Context) error {
	s.read.RLock()
	defer s.read.RUnlock()
	return s.defineViewsLocked(ctx)
}

// defineViewsLocked makes the views anew; the list of slices must not change.
func (s *Store) defineViewsLocked(ctx context.Context) error {
	var flows, gaps, coverage []string
	for _, sl := range s.slices {
		flows = append(flows, fmt.Sprintf(flowsPart, sl.name,
			nameSQL("k.direction", upTo(flow.DirectionIngress)...), nameSQL("k.verdict", upTo(flow.VerdictUnanswered)...),
			nameSQL("k.expected", upTo(flow.VerdictUnanswered)...), nameSQL("k.assessment", upTo(flow.AssessmentUnanswered)...),
			nameSQL("k.reason", upTo(flow.ReasonContradicted)...),
			nameSQL("k.protocol", flow.ICMP, flow.TCP, flow.UDP, flow.ICMPv6, flow.SCTP), nameSQL("k.caveat", upTo(flow.CaveatNoEndpoint)...)))
		gaps = append(gaps, fmt.Sprintf(gapsPart, sl.name, nameSQL("kind", upTo(flow.GapTable)...)))
		coverage = append(coverage, fmt.Sprintf(coveragePart, sl.name))
	}
	for name, parts := range map[string][]string{"flows": flows, "gaps": gaps, "coverage": coverage} {
		if _, err := s.db.ExecContext(ctx, fmt.Sprintf("CREATE OR REPLACE VIEW memory.main.%s AS %s", name, strings.Join(parts, " UNION ALL "))); err != nil {
			return fmt.Errorf("define view %s: %w", name, err)
		}
	}
	return nil
}

// maxRows bounds the answer to a question.
const maxRows = 100_000

// Query implements store.Store.
func (s *Store) Query(ctx context.Context, name string, given map[string]string) (store.Rows, error) {
	q, err := queries.Find(name)
	if err != nil {
		return store.Rows{}, fmt.Errorf("%w: %w", store.ErrArgument, err)
	}
	values, err := q.Bind(given, s.o.Now())
	if err != nil {
		return store.Rows{}, fmt.Errorf("%w: %w", store.ErrArgument, err)
	}
	args := make([]any, 0, len(values))
	for n, v := range values {
		args = append(args, sql.Named(n, v))
	}
	s.read.RLock()
	defer s.read.RUnlock()
	rows, err := s.db.QueryContext(ctx, q.SQL, args...)
	if err != nil {
		return store.Rows{}, fmt.Errorf("answer %s: %w", name, err)
	}
	defer rows.Close()
	return readRows(rows)
}

func readRows(rows *sql.Rows) (out store.Rows, err error) {
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
		if len(out.Rows) == maxRows {
			return out, errors.New("the answer has too many rows: narrow the question")
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
	}
	return v
}
