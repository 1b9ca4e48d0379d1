package duckdb

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/queries"
)

// The views that questions are written against, one part a slice or month. Names
// stand for codes.
const (
	flowsPart = `SELECT f.start AS start_ms, f.start + f.duration AS end_ms, make_timestamptz(f.start * 1000) AS start_time, make_timestamptz((f.start + f.duration) * 1000) AS end_time,
	%[1]s, f.source_port, f.connections,
	CASE f.counted WHEN 1 THEN f.packets_sent END AS packets_sent, CASE f.counted WHEN 1 THEN f.bytes_sent END AS bytes_sent,
	CASE f.counted WHEN 1 THEN f.packets_received END AS packets_received, CASE f.counted WHEN 1 THEN f.bytes_received END AS bytes_received, f.tcp_flags
	FROM %[2]s.%[3]s f JOIN %[2]s.key k ON f.key = k.id JOIN %[2]s.endpoint s ON k.src = s.id JOIN %[2]s.endpoint d ON k.dst = d.id WHERE k.verdict %[4]s %[5]d`
	totalsPart = `SELECT f.first AS start_ms, f.last AS end_ms, %[1]s, f.flows, f.connections
	FROM (%[3]s) f JOIN %[2]s.key k ON f.key = k.id JOIN %[2]s.endpoint s ON k.src = s.id JOIN %[2]s.endpoint d ON k.dst = d.id WHERE %[4]s`
	keyColumns = `k.cluster, k.node, k.pair_id AS pair,
	%[1]s AS direction, %[2]s AS verdict, %[3]s AS expected, %[4]s AS assessment, %[5]s AS caveat, %[6]s AS reason, %[7]s AS protocol, k.port,
	%[8]s AS source_kind, s.ip AS source_ip, s.namespace AS source_namespace, s.pod AS source_pod, s.workload_kind AS source_workload_kind,
	s.workload AS source_workload, s.node AS source_node,
	%[9]s AS destination_kind, d.ip AS destination_ip, d.namespace AS destination_namespace, d.pod AS destination_pod, d.workload_kind AS destination_workload_kind,
	d.workload AS destination_workload, d.node AS destination_node,
	k.service_ip, k.service_port, k.service_namespace, k.service, k.policy_names AS policies, k.policies AS policy_refs, %[10]s AS refused_at`
	gapsPart = `SELECT node, source, %[2]s AS kind, start AS start_ms, "end" AS end_ms, make_timestamptz(start * 1000) AS start_time,
	make_timestamptz("end" * 1000) AS end_time, nullif(lost, 0) AS lost, detail FROM %[1]s.gap`
	coveragePart = `SELECT node, instance, start AS start_ms, "end" AS end_ms, make_timestamptz(start * 1000) AS start_time, make_timestamptz("end" * 1000) AS end_time FROM %[1]s.coverage`
	edgesPart    = `SELECT h.hour * 3600000::BIGINT AS hour_ms, h.first AS first_ms, h.last AS last_ms, make_timestamptz(h.first * 1000) AS first_time, make_timestamptz(h.last * 1000) AS last_time,
	e.cluster, %[2]s AS direction, %[3]s AS verdict, %[4]s AS expected, %[5]s AS assessment, %[6]s AS caveat, %[7]s AS protocol, e.port,
	%[8]s AS source_kind, printf('%%016x', e.src_identity) AS source_identity, e.src_namespace AS source_namespace, e.src_workload_kind AS source_workload_kind, e.src_workload AS source_workload,
	e.src_node AS source_node, e.src_ip AS source_ip,
	%[9]s AS destination_kind, printf('%%016x', e.dst_identity) AS destination_identity, e.dst_namespace AS destination_namespace, e.dst_workload_kind AS destination_workload_kind,
	e.dst_workload AS destination_workload, e.dst_node AS destination_node, e.dst_ip AS destination_ip,
	h.connections, h.sent AS bytes_sent, h.received AS bytes_received FROM %[1]s.hour h JOIN %[1]s.edge e ON h.edge = e.id`
	changesView = `SELECT time AS time_ms, make_timestamptz(time * 1000) AS time, cluster, CASE kind WHEN 1 THEN 'policy' WHEN 2 THEN 'namespace' WHEN 3 THEN 'identity' ELSE '' END AS kind,
	namespace, name, author, deleted, CAST(decode(object) AS VARCHAR) AS object FROM timeline.change`
	identitiesView = `SELECT name AS identity, cluster, namespace, time_ms, state FROM (SELECT name, cluster, namespace, time AS time_ms, deleted, CAST(decode(object) AS VARCHAR) AS state
	FROM timeline.change WHERE kind = 3 QUALIFY row_number() OVER (PARTITION BY cluster, namespace, name ORDER BY time DESC, sequence DESC) = 1) WHERE deleted = 0`
	rulesView = `SELECT * FROM memory.main.rule`
)

// macros are what questions use that ClickHouse has and DuckDB does not.
var macros = [...]string{
	"intDiv(a, b) AS a // b",
	"splitByChar(separator, text) AS string_split(text, separator)",
	"arrayJoin(list) AS unnest(list)",
}

// memorySchema is what is made of the files anew: the edges of slices that no
// month holds, and the rules of today's policies.
const memorySchema = `
CREATE TABLE IF NOT EXISTS memory.main.rule (cluster VARCHAR, namespace VARCHAR, policy VARCHAR, name VARCHAR, side VARCHAR, rule VARCHAR, all_pods UTINYINT);
`

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

func protocolSQL(column string) string {
	return nameSQL(column, flow.ICMP, flow.TCP, flow.UDP, flow.ICMPv6, flow.SCTP)
}

// keyNames turns the codes that keys of flows and edges have in common into
// names, in the order in which the views have them.
func keyNames(alias string) []any {
	return []any{
		nameSQL(alias+".direction", upTo(flow.DirectionIngress)...), nameSQL(alias+".verdict", upTo(flow.VerdictUnanswered)...),
		nameSQL(alias+".expected", upTo(flow.VerdictUnanswered)...), nameSQL(alias+".assessment", upTo(flow.AssessmentUnanswered)...),
		nameSQL(alias+".caveat", upTo(flow.CaveatOtherCause)...),
	}
}

// keySQL are the columns that a flow has of its key and its ends.
func keySQL() string {
	return fmt.Sprintf(keyColumns, append(keyNames("k"), nameSQL("k.reason", upTo(flow.ReasonLabelled)...), protocolSQL("k.protocol"),
		nameSQL("s.kind", upTo(flow.EndpointAPIServer)...), nameSQL("d.kind", upTo(flow.EndpointAPIServer)...), placeSQL())...)
}

// placeSQL is where connections were stopped; empty where that is unknown.
func placeSQL() string {
	return "CASE (" + dialect().RefusedAt() + ") WHEN 1 THEN 'egress' WHEN 2 THEN 'ingress' WHEN 3 THEN 'between' ELSE '' END"
}

// flowsOf selects a slice's flows. That the keys of a table are asked for their
// verdict tells DuckDB not to read flows for a question about the others.
func flowsOf(name string) string {
	return fmt.Sprintf(flowsPart, keySQL(), name, "flow", "<>", flow.VerdictDenied) + " UNION ALL " +
		fmt.Sprintf(flowsPart, keySQL(), name, "denied", "=", flow.VerdictDenied)
}

// totalsOf selects sums of a slice's keys that meet a condition.
func totalsOf(name, sums, condition string) string {
	return fmt.Sprintf(totalsPart, keySQL(), name, sums, condition)
}

func edgesPartOf(name string) string {
	names := append([]any{name}, keyNames("e")...)
	return fmt.Sprintf(edgesPart, append(names, protocolSQL("e.protocol"),
		nameSQL("e.src_kind", upTo(flow.EndpointAPIServer)...), nameSQL("e.dst_kind", upTo(flow.EndpointAPIServer)...))...)
}

// view is the SQL of a view over what may hold rows from a time on, in Unix
// milliseconds. The lists of slices and months must not change.
func (s *Store) view(name string, since int64) string {
	var parts []string
	switch name {
	case "flows":
		for _, sl := range s.holding() {
			if sl.held.Load().end >= since {
				parts = append(parts, flowsOf(sl.name))
			}
		}
		if len(parts) == 0 {
			parts = append(parts, flowsOf(s.last().name))
		}
	case "gaps":
		for _, sl := range s.arrivedSince(since) {
			parts = append(parts, fmt.Sprintf(gapsPart, sl.name, nameSQL("kind", upTo(flow.GapNames)...)))
		}
	case "coverage":
		for _, sl := range s.arrivedSince(since) {
			parts = append(parts, fmt.Sprintf(coveragePart, sl.name))
		}
	case "edges":
		parts = append(parts, edgesPartOf(openEdges))
		for _, m := range s.months {
			parts = append(parts, edgesPartOf(m.name))
		}
	case "changes":
		return changesView
	case "identities":
		return identitiesView
	case "rules":
		return rulesView
	}
	return strings.Join(parts, " UNION ALL ")
}

// clocksDiffer is how far an agent's clock may be ahead of this one.
const clocksDiffer = time.Hour

// arrivedSince lists the slices with batches that may tell of a time, in Unix
// milliseconds, or later ones: what an agent tells of is over when it arrives.
func (s *Store) arrivedSince(since int64) []*slice {
	first := 0
	for first < len(s.slices)-1 && s.slices[first+1].begin.Add(clocksDiffer).UnixMilli() < since {
		first++
	}
	return s.slices[first:]
}

// defined are the views that DuckDB knows, for those who write SQL themselves.
// Named questions do without: with many slices DuckDB takes long to plan a
// view over all of them.
type defined struct {
	mu    sync.Mutex
	views map[string]string
}

// defineViews makes the views that an SQL text reads anew where that is due.
// The lists of slices and months must not change.
func (s *Store) defineViews(ctx context.Context, text string) error {
	s.defined.mu.Lock()
	defer s.defined.mu.Unlock()
	for _, name := range queries.Views() {
		if !queries.Reads(text, name) {
			continue
		}
		sql := s.view(name, 0)
		if s.defined.views[name] == sql {
			continue
		}
		if _, err := s.db.ExecContext(ctx, fmt.Sprintf("CREATE OR REPLACE VIEW memory.main.%s AS %s", name, sql)); err != nil {
			return fmt.Errorf("define view %s: %w", name, err)
		}
		s.defined.views[name] = sql
	}
	return nil
}

// defineMacros prepares what the views stand on.
func (s *Store) defineMacros(ctx context.Context) error {
	for _, m := range macros {
		if _, err := s.db.ExecContext(ctx, "CREATE OR REPLACE MACRO memory.main."+m); err != nil {
			return fmt.Errorf("define macro %s: %w", m, err)
		}
	}
	if _, err := s.db.ExecContext(ctx, memorySchema+fmt.Sprintf(firstMonth, openEdges)); err != nil {
		return fmt.Errorf("prepare views: %w", err)
	}
	return nil
}
