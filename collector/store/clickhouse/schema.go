package clickhouse

import (
	"context"
	"fmt"
	"strings"
	"text/template"
)

// tables of the schema. A partition is a time slice by arrival, so that
// retention is dropping partitions. That a part's flows are refused ones is in
// the partition's key, as they are kept longer; so is an expression of start
// that never changes, which makes ClickHouse keep each part's range of start
// and skip by it.
//
// A row of flow is numbers; key says what they stand for. A key's id is a hash
// of what it says, so that collectors need not agree on numbers. flow is in the
// order of keys, so that a question about few of them reads little.
//
// copy tells apart what was written when a batch was sent twice; see claim.go.
var tables = [...]struct{ name, columns, engine, partition, order, shard string }{
	{
		"batch", `slot UInt32, cluster {{.Text}}, instance {{.Text}}, epoch UInt64, sequence UInt64, copy UInt64, stored UInt8`,
		"MergeTree", "slot", "cluster, instance, epoch, sequence", "sipHash64(instance)",
	},
	{
		"contested", `slot UInt32, cluster {{.Text}}, instance {{.Text}}, epoch UInt64, sequence UInt64`,
		"ReplacingMergeTree", "slot", "cluster, instance, epoch, sequence", "sipHash64(instance)",
	},
	{"voided", `slot UInt32, copy UInt64`, "ReplacingMergeTree", "slot", "copy", "copy"},
	{
		"key", `slot UInt32, id UInt64, pair UInt64, cluster {{.Text}}, node {{.Text}}, protocol UInt8, port UInt16, verdict ` + verdictType + `,
		direction UInt8, reason UInt8, expected UInt8, assessment UInt8, caveat UInt8, sources UInt8, translated String,
		src_addr String, src_ip String, src_kind UInt8, src_namespace {{.Text}}, src_pod String, src_workload_kind {{.Text}}, src_workload {{.Text}},
		src_node {{.Text}}, src_identity UInt64, src_labels {{.Text}}, src_candidates String,
		dst_addr String, dst_ip String, dst_kind UInt8, dst_namespace {{.Text}}, dst_pod String, dst_workload_kind {{.Text}}, dst_workload {{.Text}},
		dst_node {{.Text}}, dst_identity UInt64, dst_labels {{.Text}}, dst_candidates String,
		service_addr String, service_ip String, service_port UInt16, service_namespace {{.Text}}, service {{.Text}}, policies {{.Text}}, policy_names {{.Text}}`,
		"ReplacingMergeTree", "(slot, verdict = 'denied')", "id", "id",
	},
	{
		"flow", `slot UInt32, key UInt64{{.Codec "ZSTD(1)"}}, verdict ` + verdictType + `{{.Codec "ZSTD(1)"}}, start Int64{{.Codec "Delta, ZSTD(1)"}}, duration UInt32{{.Codec "ZSTD(1)"}},
		source_port UInt16{{.Codec "ZSTD(1)"}}, connections UInt64{{.Codec "T64, ZSTD(1)"}}, counted UInt8{{.Codec "ZSTD(1)"}}, tcp_flags UInt8{{.Codec "ZSTD(1)"}},
		packets_sent UInt64{{.Codec "T64, ZSTD(1)"}}, bytes_sent UInt64{{.Codec "T64, ZSTD(1)"}}, packets_received UInt64{{.Codec "T64, ZSTD(1)"}},
		bytes_received UInt64{{.Codec "T64, ZSTD(1)"}}, copy UInt64{{.Codec "Delta, ZSTD(1)"}}`,
		"MergeTree", "(slot, verdict = 'denied', start < 0)", "key, start", "key",
	},
	{
		"covered", `slot UInt32, node {{.Text}}, instance {{.Text}}, scope UInt8, start Int64, stop Int64, limits {{.Text}}, copy UInt64`,
		"MergeTree", "(slot, start < 0)", "node, start", "sipHash64(node)",
	},
	{
		"gap", `slot UInt32, node {{.Text}}, source {{.Text}}, kind UInt8, start Int64, stop Int64, lost UInt64, detail String, copy UInt64`,
		"MergeTree", "(slot, start < 0)", "node, start", "sipHash64(node)",
	},
	{"touched", `month UInt32, slot UInt32, hour UInt32, version UInt64`, "ReplacingMergeTree(version)", "month", "slot, hour", "hour"},
	{"summed", `month UInt32, slot UInt32, hour UInt32, version UInt64`, "ReplacingMergeTree(version)", "month", "slot, hour", "hour"},
	{"frozen", `slot UInt32`, "ReplacingMergeTree", "tuple()", "slot", "slot"},
	{
		"edge", `month UInt32, slot UInt32, hour UInt32, version UInt64, id UInt64, first Int64, last Int64, connections UInt64, sent UInt64, received UInt64,
		cluster {{.Text}}, protocol UInt8, port UInt16, direction UInt8, verdict UInt8, expected UInt8, assessment UInt8, caveat UInt8, exempt UInt8, seen String,
		src_kind UInt8, src_identity UInt64, src_namespace {{.Text}}, src_workload_kind {{.Text}}, src_workload {{.Text}}, src_node {{.Text}}, src_addr String, src_bits UInt8,
		src_labels {{.Text}}, src_ip String,
		dst_kind UInt8, dst_identity UInt64, dst_namespace {{.Text}}, dst_workload_kind {{.Text}}, dst_workload {{.Text}}, dst_node {{.Text}}, dst_addr String, dst_bits UInt8,
		dst_labels {{.Text}}, dst_ip String`,
		"ReplacingMergeTree(version)", "month", "slot, hour, id", "hour",
	},
	{
		"change", `time Int64, sequence UInt64, cluster {{.Text}}, kind UInt8, namespace {{.Text}}, name String, author {{.Text}}, deleted UInt8, object String`,
		"MergeTree", "kind", "cluster, kind, namespace, name, time, sequence", "sipHash64(name)",
	},
	{
		"rule", `time Int64, sequence UInt64, cluster {{.Text}}, namespace {{.Text}}, policy String, deleted UInt8, name String, side String, rule String, all_pods UInt8`,
		"MergeTree", "tuple()", "cluster, namespace, policy, time", "sipHash64(policy)",
	},
}

const verdictType = "Enum8('unknown' = 0, 'allowed' = 1, 'denied' = 2, 'unanswered' = 3)"

// step is a version of the schema: statements that may run twice, also at once
// from several collectors. Steps are never changed, only added.
type step func(*Store) ([]string, error)

func steps() []step {
	return []step{(*Store).firstTables, (*Store).viewsAnew, (*Store).documentTable}
}

// documentTable is version 3.
func (s *Store) documentTable() ([]string, error) {
	columns, err := s.render("kind {{.Text}}, slot UInt32, id String, time Int64, version UInt64, body String")
	return s.createTable("document", columns, "ReplacingMergeTree(version)", "(kind, slot)", "kind, id", "sipHash64(id)"), err
}

// firstTables is version 1.
func (s *Store) firstTables() ([]string, error) {
	var out []string
	for _, t := range tables {
		columns, err := s.render(t.columns)
		if err != nil {
			return nil, err
		}
		out = append(out, s.createTable(t.name, columns, t.engine, t.partition, t.order, t.shard)...)
	}
	for _, v := range s.views() {
		out = append(out, s.createView(v))
	}
	return out, nil
}

func (s *Store) createView(v view) string {
	return fmt.Sprintf("CREATE VIEW IF NOT EXISTS %s.%s%s AS %s", s.database, v.name, s.onCluster(), v.query)
}

// viewsAnew is version 2: the view flows has refused_at, and both know more
// reasons and caveats. An old server cannot replace a view.
func (s *Store) viewsAnew() (out []string, err error) {
	for _, v := range s.views() {
		if v.name == "flows" || v.name == "edges" {
			out = append(out, fmt.Sprintf("DROP TABLE IF EXISTS %s.%s%s", s.database, v.name, s.onCluster()), s.createView(v))
		}
	}
	return out, nil
}

// Text is the type of what repeats.
func (s *Store) Text() string {
	if s.server.dictionaries {
		return "LowCardinality(String)"
	}
	return "String"
}

// Codec is how a column is compressed.
func (s *Store) Codec(codec string) string {
	if s.server.codecs {
		return " CODEC(" + codec + ")"
	}
	return ""
}

func (s *Store) render(text string) (string, error) {
	t, err := template.New("").Parse(text)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	err = t.Execute(&b, s)
	return b.String(), err
}

// createTable makes a table; in a cluster, a replicated one on each server and
// one over all of them, which carries the name.
func (s *Store) createTable(name, columns, engine, partition, order, shard string) []string {
	if s.cluster == "" {
		return []string{fmt.Sprintf("CREATE TABLE IF NOT EXISTS %s.%s (%s) ENGINE = %s PARTITION BY %s ORDER BY (%s)",
			s.database, name, columns, engine, partition, order)}
	}
	kind, arguments, _ := strings.Cut(strings.TrimSuffix(engine, ")"), "(")
	if arguments != "" {
		arguments = ", " + arguments
	}
	local := name + "_local"
	return []string{
		fmt.Sprintf("CREATE TABLE IF NOT EXISTS %s.%s%s (%s) ENGINE = Replicated%s('/clickhouse/tables/{shard}/%s/%s', '{replica}'%s) PARTITION BY %s ORDER BY (%s)",
			s.database, local, s.onCluster(), columns, kind, s.database, local, arguments, partition, order),
		fmt.Sprintf("CREATE TABLE IF NOT EXISTS %s.%s%s (%s) ENGINE = Distributed(`%s`, %s, %s, %s)",
			s.database, name, s.onCluster(), columns, s.cluster, s.database, local, shard),
	}
}

// local is the table that holds a table's rows on a server.
func (s *Store) local(table string) string {
	if s.cluster == "" {
		return table
	}
	return table + "_local"
}

// migrate brings the database to this binary's version of the schema. Where it
// has that already nothing is defined: in a cluster that would wait for
// replicas that are down.
func (s *Store) migrate(ctx context.Context) error {
	version, err := s.version(ctx)
	if err != nil {
		return fmt.Errorf("read version of database %s: %w", s.database, err)
	}
	all := steps()
	if version > len(all) {
		return fmt.Errorf("database %s has schema %d, and this collector knows up to %d: use a newer collector, or another database", s.database, version, len(all))
	}
	for i := version; i < len(all); i++ {
		statements, err := all[i](s)
		if err != nil {
			return fmt.Errorf("migrate database %s to schema %d: %w", s.database, i+1, err)
		}
		for _, q := range append(statements, fmt.Sprintf("INSERT INTO migration (version, time) SELECT %d, now()", i+1)) {
			if err := s.define(ctx, s.conn, q); err != nil {
				return fmt.Errorf("migrate database %s to schema %d: %w", s.database, i+1, err)
			}
		}
	}
	return nil
}

// version is that of the database's schema; 0 if it has none yet.
func (s *Store) version(ctx context.Context) (int, error) {
	var there uint64
	if err := s.conn.QueryRow(ctx, "SELECT count() FROM system.tables WHERE database = "+quote(s.database)+" AND name = 'migration'").Scan(&there); err != nil {
		return 0, err
	}
	if there == 0 {
		for _, q := range s.createTable("migration", "version UInt32, time DateTime", "MergeTree", "tuple()", "version", "version") {
			if err := s.define(ctx, s.conn, q); err != nil {
				return 0, err
			}
		}
	}
	var version uint32
	err := s.conn.QueryRow(ctx, "SELECT max(version) FROM migration").Scan(&version)
	return int(version), err
}
