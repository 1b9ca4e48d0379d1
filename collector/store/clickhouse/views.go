package clickhouse

import (
	"fmt"
	"strings"

	"github.com/flowaudit/flowaudit/flow"
)

type view struct{ name, query string }

// views are those that questions read, and excluded: the copies of batches
// that do not count, because the batch was written more than once.
func (s *Store) views() []view {
	ends := func(to, from string) string {
		return fmt.Sprintf(`%[3]s AS %[1]s_kind, %[2]s_ip AS %[1]s_ip, %[2]s_namespace AS %[1]s_namespace, %[2]s_pod AS %[1]s_pod,
			%[2]s_workload_kind AS %[1]s_workload_kind, %[2]s_workload AS %[1]s_workload, %[2]s_node AS %[1]s_node`, to, from, kindSQL(from+"_kind"))
	}
	edgeEnds := func(to, from string) string {
		return fmt.Sprintf(`%[3]s AS %[1]s_kind, %[4]s AS %[1]s_identity, %[2]s_namespace AS %[1]s_namespace,
			%[2]s_workload_kind AS %[1]s_workload_kind, %[2]s_workload AS %[1]s_workload, %[2]s_node AS %[1]s_node, %[2]s_ip AS %[1]s_ip`,
			to, from, kindSQL(from+"_kind"), hexSQL(from+"_identity"))
	}
	db := s.database
	all := []view{
		{"contested_copies", `SELECT slot, copy FROM {db}.batch WHERE (cluster, instance, epoch, sequence) IN (SELECT cluster, instance, epoch, sequence FROM {db}.contested)
			AND copy NOT IN (SELECT min(copy) FROM {db}.batch WHERE stored = 1 AND (cluster, instance, epoch, sequence) IN (SELECT cluster, instance, epoch, sequence FROM {db}.contested) GROUP BY cluster, instance, epoch, sequence)`},
		{"excluded", `SELECT copy FROM (SELECT copy FROM {db}.contested_copies UNION ALL SELECT copy FROM {db}.voided)`},
		{"flows", `SELECT start_ms, end_ms, ` + s.timeSQL("start_ms") + ` AS start_time, ` + s.timeSQL("end_ms") + ` AS end_time, cluster, node, pair, direction, verdict, expected,
			assessment, caveat, reason, protocol, port, source_port,
			source_kind, source_ip, source_namespace, source_pod, source_workload_kind, source_workload, source_node,
			destination_kind, destination_ip, destination_namespace, destination_pod, destination_workload_kind, destination_workload, destination_node,
			service_ip, service_port, service_namespace, service, policy_names AS policies, policy_refs, connections,
			CASE WHEN counted = 1 THEN packets_out END AS packets_sent, CASE WHEN counted = 1 THEN bytes_out END AS bytes_sent,
			CASE WHEN counted = 1 THEN packets_in END AS packets_received, CASE WHEN counted = 1 THEN bytes_in END AS bytes_received, tcp_flags, refused_at
			FROM (SELECT key, verdict, start AS start_ms, start + duration AS end_ms, source_port, connections, counted, tcp_flags, packets_sent AS packets_out,
				bytes_sent AS bytes_out, packets_received AS packets_in, bytes_received AS bytes_in FROM {db}.flow WHERE copy NOT IN (SELECT copy FROM {db}.excluded)) AS f
			ANY LEFT JOIN (SELECT id AS key, pair, cluster, node, port, ` + codesSQL() + `, ` + nameSQL("reason", upTo(flow.ReasonLabelled)...) + ` AS reason,
				` + ends("source", "src") + `, ` + ends("destination", "dst") + `,
				service_ip, service_port, service_namespace, service, policy_names, policies AS policy_refs, refused_at
				FROM (SELECT *, ` + placeSQL() + ` AS refused_at FROM {db}.key)) AS k USING key`},
		{"gaps", `SELECT DISTINCT node, source, ` + nameSQL("kind", upTo(flow.GapNames)...) + ` AS kind, start AS start_ms, stop AS end_ms, ` + s.timeSQL("start") + ` AS start_time, ` +
			s.timeSQL("stop") + ` AS end_time, CASE WHEN lost > 0 THEN lost END AS lost, detail FROM {db}.gap WHERE copy NOT IN (SELECT copy FROM {db}.excluded)`},
		{"coverage", `SELECT node, instance, start AS start_ms, stop AS end_ms, ` + s.timeSQL("start") + ` AS start_time, ` + s.timeSQL("stop") + ` AS end_time
			FROM {db}.covered WHERE copy NOT IN (SELECT copy FROM {db}.excluded)`},
		{"edge_now", `SELECT DISTINCT ` + edgeColumns + ` FROM {db}.edge WHERE (slot, hour, version) IN (SELECT slot, hour, max(version) FROM {db}.summed GROUP BY slot, hour)`},
		{"edges", `SELECT hour * toInt64(3600000) AS hour_ms, first AS first_ms, last AS last_ms, ` + s.timeSQL("first") + ` AS first_time, ` + s.timeSQL("last") + ` AS last_time,
			cluster, ` + codesSQL() + `, ` + nameSQL("verdict", upTo(flow.VerdictUnanswered)...) + ` AS verdict, port,
			` + edgeEnds("source", "src") + `, ` + edgeEnds("destination", "dst") + `, connections, sent AS bytes_sent, received AS bytes_received
			FROM {db}.edge_now`},
		{"changes", `SELECT time_ms, ` + s.timeSQL("time_ms") + ` AS time, cluster, ` + changeKindSQL() + ` AS kind, namespace, name, author, deleted, object
			FROM (SELECT time AS time_ms, cluster, kind, namespace, name, author, deleted, object FROM {db}.change)`},
		{"identities", `SELECT identity, cluster, namespace, time_ms, state FROM (SELECT name AS identity, cluster, namespace, max(time) AS time_ms,
			argMax(deleted, (time, sequence)) AS gone, argMax(object, (time, sequence)) AS state FROM {db}.change WHERE kind = 3 GROUP BY identity, cluster, namespace) WHERE gone = 0`},
		{"rules", `SELECT DISTINCT cluster, namespace, policy, name, side, rule, all_pods FROM {db}.rule WHERE deleted = 0 AND
			(cluster, namespace, policy, time) IN (SELECT cluster, namespace, policy, max(time) FROM {db}.rule GROUP BY cluster, namespace, policy)`},
	}
	for i := range all {
		all[i].query = s.global(strings.ReplaceAll(all[i].query, "{db}", db))
	}
	return all
}

// global makes a query ask each subquery of an IN once, for all servers of a
// cluster; these would else refuse it, or ask it each.
func (s *Store) global(query string) string {
	if s.cluster == "" {
		return query
	}
	return strings.NewReplacer(" NOT IN (SELECT ", " GLOBAL NOT IN (SELECT ", " IN (SELECT ", " GLOBAL IN (SELECT ").Replace(query)
}

// timeSQL makes a time of milliseconds.
func (s *Store) timeSQL(column string) string {
	if s.server.milliseconds {
		return "fromUnixTimestamp64Milli(toInt64(" + column + "), 'UTC')"
	}
	return "toDateTime(intDiv(" + column + ", 1000), 'UTC')"
}

// nameSQL turns a code into its name.
func nameSQL[T interface {
	~uint8
	fmt.Stringer
}](column string, codes ...T) string {
	var from, to []string
	for _, c := range codes {
		from, to = append(from, fmt.Sprint(uint8(c))), append(to, quote(c.String()))
	}
	return fmt.Sprintf("transform(%s, [%s], [%s], toString(%[1]s))", column, strings.Join(from, ", "), strings.Join(to, ", "))
}

// upTo lists the codes from 0 to last.
func upTo[T ~uint8](last T) []T {
	var out []T
	for c := T(0); c <= last; c++ {
		out = append(out, c)
	}
	return out
}

func codesSQL() string {
	return nameSQL("direction", upTo(flow.DirectionIngress)...) + " AS direction, " + nameSQL("expected", upTo(flow.VerdictUnanswered)...) + " AS expected, " +
		nameSQL("assessment", upTo(flow.AssessmentUnanswered)...) + " AS assessment, " + nameSQL("caveat", upTo(flow.CaveatOtherCause)...) + " AS caveat, " +
		nameSQL("protocol", flow.ICMP, flow.TCP, flow.UDP, flow.ICMPv6, flow.SCTP) + " AS protocol"
}

// placeSQL is where connections were stopped; empty where that is unknown.
func placeSQL() string {
	place := strings.ReplaceAll(dialect().RefusedAt(), "k.", "")
	return "transform(" + place + ", [1, 2, 3], ['egress', 'ingress', 'between'], '')"
}

func kindSQL(column string) string { return nameSQL(column, upTo(flow.EndpointAPIServer)...) }

func changeKindSQL() string { return nameSQL("kind", upTo(flow.ChangeIdentity)...) }

// hexSQL shows an identity as its 16 digits; an old server's hex leaves zeroes out.
func hexSQL(column string) string {
	return "lower(substring(concat('0000000000000000', hex(" + column + ")), -16))"
}

// quote makes a text an SQL literal.
func quote(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`, "\x00", `\0`).Replace(s) + "'"
}
