package storetest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/queries"
)

func readsSQL(t *testing.T, s Fixture) {
	scene(t, s)
	for text, want := range map[string]string{
		"SELECT count(*) AS n FROM flows WHERE verdict = 'denied'":                                           "n\n12\n",
		"SELECT sum(connections) AS n FROM edges WHERE destination_workload = 'api' AND verdict = 'allowed'": "n\n5\n",
		"SELECT namespace FROM rules WHERE rule = 'ingress[1]'":                                              "namespace\n\"shop\"\n",
		"SELECT n FROM (SELECT count(*) AS n FROM gaps) WHERE n IN (SELECT count(*) FROM identities)":        "n\n1\n",
		"SELECT count(*) AS n FROM changes WHERE name = 'no; such -- \\\\ name'":                             "n\n0\n",
	} {
		rows, err := s.SQL(t.Context(), flow.SeeAll(), text, 10)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got := table(rows); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
	if _, err := s.SQL(t.Context(), flow.SeeAll(), "SELECT node FROM flows", 20); !errors.Is(err, store.ErrArgument) || !strings.Contains(err.Error(), "20 rows") {
		t.Errorf("more rows than allowed: %v", err)
	}
	for _, view := range queries.Views() {
		if _, err := s.SQL(t.Context(), flow.SeeAll(), "SELECT * FROM "+view, 1000); err != nil {
			t.Errorf("%s: %v", view, err)
		}
	}
}

func onlyReads(t *testing.T, s Fixture) {
	must(t, s, batch(1, sample()))
	dir := t.TempDir()
	secret, written := filepath.Join(dir, "secret.csv"), filepath.Join(dir, "written.csv")
	if err := os.WriteFile(secret, []byte("a,b\n1,hush\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused := append([]string{
		"", ";", "SELEC 1", "SELECT 1; SELECT 2", "SELECT * FROM nothing", "SELECT no_such_column FROM flows",
		"DROP VIEW flows", "CREATE TABLE x (a INT)", "DELETE FROM flows", "INSERT INTO flows SELECT * FROM flows", "SELECT 1; DROP VIEW flows",
		"SET threads = 1", "ATTACH DATABASE x", "SYSTEM SHUTDOWN", "KILL QUERY WHERE 1", "USE system", "SHOW TABLES",
		"SELECT * FROM system.users", "SELECT * FROM information_schema.tables", "SELECT * FROM duckdb_settings()", "SELECT * FROM pragma_database_list()",
		"SELECT * FROM force_checkpoint()", "SELECT * FROM query('DROP VIEW flows')", "SELECT * FROM query_table(['flows'])",
		fmt.Sprintf("SELECT * FROM file('%s', 'CSV', 'a Int64, b String')", secret), fmt.Sprintf("SELECT * FROM '%s'", secret),
		fmt.Sprintf("SELECT * FROM read_csv('%s')", secret), fmt.Sprintf("SELECT content FROM read_text('%s')", secret),
		fmt.Sprintf("WITH x AS (SELECT * FROM read_blob('%s')) SELECT * FROM x", secret), fmt.Sprintf("SELECT (SELECT content FROM read_text('%s'))", secret),
		fmt.Sprintf("COPY (SELECT 1) TO '%s'", written), fmt.Sprintf("SELECT * FROM flows INTO OUTFILE '%s'", written),
		"SELECT * FROM url('http://127.0.0.1:1/', 'CSV', 'a String')", "SELECT * FROM remote('127.0.0.1', system, one)",
		"INSTALL httpfs", "LOAD httpfs", "EXPORT DATABASE '" + dir + "/x'",
	}, fmt.Sprintf("CREATE VIEW y AS SELECT * FROM read_csv('%s')", secret))
	for _, text := range refused {
		if rows, err := s.SQL(t.Context(), flow.SeeAll(), text, 100); !errors.Is(err, store.ErrArgument) {
			t.Errorf("%q: %v, %v; want an error that the asker can mend", text, rows, err)
		}
	}
	if _, err := os.Stat(written); err == nil {
		t.Error("a file was written")
	}
	if got := all(t, s, store.FlowsRequest{Sight: flow.SeeAll()}); len(got) != 1 {
		t.Errorf("%d flows are left", len(got))
	}
	must(t, s, batch(2, sample()))
}
