package duckdb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// errNewer marks a file that a newer version of flowaudit made.
var errNewer = errors.New("the file is from a newer flowaudit")

// steps bring a file's schema from one version to the next: number n makes
// version n+1 of version n. They only ever become more. Each is SQL with the
// name of the attached database for %[1]s.
type steps []string

var (
	sliceSteps = steps{firstSlice, deniedApart}
	monthSteps = steps{firstMonth}
	sumsSteps  = steps{firstSums}
	// The timeline is one file, whatever there is, and so are documents.
	timelineSteps = steps{firstTimeline}
	documentSteps = steps{firstDocuments}
)

// firstSlice is the schema of a slice. Columns that may be unknown hold the
// empty value, never NULL: conditions and their negations stay simple.
const firstSlice = `
CREATE TABLE IF NOT EXISTS %[1]s.endpoint (id UINTEGER, addr BLOB, ip VARCHAR, kind UTINYINT, namespace VARCHAR, pod VARCHAR,
	workload_kind VARCHAR, workload VARCHAR, node VARCHAR, identity UBIGINT, labels VARCHAR, candidates VARCHAR);
CREATE TABLE IF NOT EXISTS %[1]s.key (id UINTEGER, cluster VARCHAR, node VARCHAR, protocol UTINYINT, src UINTEGER, dst UINTEGER, port USMALLINT,
	verdict UTINYINT, direction UTINYINT, reason UTINYINT, expected UTINYINT, assessment UTINYINT, caveat UTINYINT, sources UTINYINT, translated BLOB,
	service_addr BLOB, service_ip VARCHAR, service_port USMALLINT, service_namespace VARCHAR, service VARCHAR, policies VARCHAR, policy_names VARCHAR, pair UINTEGER, pair_id UBIGINT);
CREATE TABLE IF NOT EXISTS %[1]s.flow (key UINTEGER, start BIGINT, duration UINTEGER, source_port USMALLINT, connections UBIGINT,
	counted UTINYINT, tcp_flags UTINYINT, packets_sent UBIGINT, bytes_sent UBIGINT, packets_received UBIGINT, bytes_received UBIGINT);
CREATE TABLE IF NOT EXISTS %[1]s.batch (cluster VARCHAR, instance VARCHAR, epoch UBIGINT, sequence UBIGINT);
CREATE TABLE IF NOT EXISTS %[1]s.coverage (node VARCHAR, instance VARCHAR, scope UTINYINT, start BIGINT, "end" BIGINT, limits VARCHAR);
CREATE TABLE IF NOT EXISTS %[1]s.gap (node VARCHAR, source VARCHAR, kind UTINYINT, start BIGINT, "end" BIGINT, lost UBIGINT, detail VARCHAR);
`

// deniedApart gives refused flows (verdict 2) a table of their own, and a
// slice the sums of its hours.
const deniedApart = `
CREATE TABLE %[1]s.denied AS SELECT * FROM %[1]s.flow WHERE key IN (SELECT id FROM %[1]s.key WHERE verdict = 2) ORDER BY rowid;
DELETE FROM %[1]s.flow WHERE key IN (SELECT id FROM %[1]s.key WHERE verdict = 2);
CREATE TABLE %[1]s.hour (key UINTEGER, first BIGINT, last BIGINT, flows UBIGINT, connections UBIGINT, sent UBIGINT, received UBIGINT);
`

// firstMonth is the schema of a month of edges. source names the slices whose
// flows are in it already, so that a crash in between repeats nothing.
const firstMonth = `
CREATE TABLE IF NOT EXISTS %[1]s.edge (id UINTEGER, cluster VARCHAR, protocol UTINYINT, port USMALLINT, direction UTINYINT, verdict UTINYINT,
	expected UTINYINT, assessment UTINYINT, caveat UTINYINT, exempt UTINYINT, seen BLOB,
	src_kind UTINYINT, src_identity UBIGINT, src_namespace VARCHAR, src_workload_kind VARCHAR, src_workload VARCHAR, src_node VARCHAR, src_addr BLOB, src_bits UTINYINT, src_labels VARCHAR, src_ip VARCHAR,
	dst_kind UTINYINT, dst_identity UBIGINT, dst_namespace VARCHAR, dst_workload_kind VARCHAR, dst_workload VARCHAR, dst_node VARCHAR, dst_addr BLOB, dst_bits UTINYINT, dst_labels VARCHAR, dst_ip VARCHAR);
CREATE TABLE IF NOT EXISTS %[1]s.hour (edge UINTEGER, hour UINTEGER, first BIGINT, last BIGINT, connections UBIGINT, sent UBIGINT, received UBIGINT);
CREATE TABLE IF NOT EXISTS %[1]s.source (slice VARCHAR);
`

// firstSums is the schema of the sums of a slice that takes writes. upto are
// the rows of the slice's tables that are in them, the last line counts.
const firstSums = `
CREATE TABLE %[1]s.minute (key UINTEGER, first BIGINT, last BIGINT, flows UBIGINT, connections UBIGINT, sent UBIGINT, received UBIGINT);
CREATE TABLE %[1]s.upto (flow BIGINT, denied BIGINT);
`

const firstTimeline = `
CREATE TABLE IF NOT EXISTS %[1]s.change (time BIGINT, sequence UBIGINT, cluster VARCHAR, kind UTINYINT,
	namespace VARCHAR, name VARCHAR, author VARCHAR, deleted UTINYINT, object BLOB);
`

const firstDocuments = `
CREATE TABLE IF NOT EXISTS %[1]s.document (kind VARCHAR, id VARCHAR, time BIGINT, body BLOB);
`

// migrate brings an attached database to the newest version, and says which
// one it had: 0 is a new one, and 1 one from before versions were written down.
func (all steps) migrate(ctx context.Context, db *sql.DB, name string) (had int, err error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if had, err = schemaVersion(ctx, conn, name); err != nil {
		return had, err
	}
	if had > len(all) {
		return had, fmt.Errorf("%w: it has schema %d, and this collector knows up to %d: use a newer collector, or move the file away", errNewer, had, len(all))
	}
	for i := had; i < len(all); i++ {
		w := &writer{conn: conn}
		err := w.transaction(ctx, func() error {
			_, err := conn.ExecContext(ctx, fmt.Sprintf(all[i]+`
				CREATE TABLE IF NOT EXISTS %[1]s.migration (version UINTEGER, time TIMESTAMP);
				INSERT INTO %[1]s.migration VALUES (%[2]d, now()::TIMESTAMP)`, name, i+1))
			return err
		})
		if err != nil {
			return had, fmt.Errorf("bring schema to version %d: %w", i+1, err)
		}
	}
	return had, nil
}

func schemaVersion(ctx context.Context, conn *sql.Conn, name string) (version int, err error) {
	var tables, versioned int
	err = conn.QueryRowContext(ctx, "SELECT count(*), count(*) FILTER (table_name = 'migration') FROM duckdb_tables() WHERE database_name = ?", name).Scan(&tables, &versioned)
	switch {
	case err != nil:
		return 0, fmt.Errorf("read schema: %w", err)
	case tables == 0:
		return 0, nil
	case versioned == 0:
		return 1, nil
	}
	if err := conn.QueryRowContext(ctx, fmt.Sprintf("SELECT coalesce(max(version), 0) FROM %s.migration", name)).Scan(&version); err != nil {
		return 0, fmt.Errorf("read schema: %w", err)
	}
	return version, nil
}
