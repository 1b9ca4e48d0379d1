package main

import (
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flowaudit/flowaudit/collector/store/duckdb"
	"github.com/flowaudit/flowaudit/collector/store/storetest"
	"github.com/flowaudit/flowaudit/flow"
)

func TestStoreFlags(t *testing.T) {
	for args, want := range map[string]string{
		"":                                     "want one of copy, export, import and verify",
		"move":                                 "want one of copy",
		"copy":                                 "--from and --to are needed",
		"copy --from duckdb:a --to b":          "--to b: copy writes a store",
		"export --from a --to b":               "--from a: export reads a store",
		"import --from duckdb:a --to duckdb:b": "--from duckdb:a: import reads a directory",
		"export --from duckdb:a --to duckdb:b": "--to duckdb:b: export writes a directory",
		"copy --from duckdb:a --to duckdb:b --until yesterday":  `--until "yesterday": want a date`,
		"copy --from duckdb:a --to duckdb:b --until 2026-11-01": "",
	} {
		_, err := parseMove(strings.Fields(args), &strings.Builder{})
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
	}
}

// TestStoreCommands moves a day from a store to a directory, from there into
// another store, and compares all of them.
func TestStoreCommands(t *testing.T) {
	dir := t.TempDir()
	first, folder, second := "duckdb:"+filepath.Join(dir, "first"), filepath.Join(dir, "days"), "duckdb:"+filepath.Join(dir, "second")
	s, err := duckdb.Open(t.Context(), duckdb.Options{Dir: filepath.Join(dir, "first"), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	day := storetest.T0.UTC().Truncate(24 * time.Hour)
	b := flow.Batch{Key: flow.BatchKey{Instance: "n", Sequence: 1}, Node: "n", Start: day, End: day.Add(time.Hour), Flows: storetest.NewGenerator(1).Flows(100, day, time.Hour)}
	if _, err := s.Append(t.Context(), []flow.Batch{b}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	until := day.Add(48 * time.Hour).Format(time.DateOnly)
	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"verify --from " + first + " --to " + second, 1, "differs"},
		{"export --from " + first + " --to " + folder, 0, "both sides hold the same"},
		{"import --from " + folder + " --to " + second, 0, "both sides hold the same"},
		{"verify --from " + first + " --to " + second, 0, "both sides hold the same"},
		{"copy --from " + first + " --to " + second, 0, `"there already"=100`},
		{"copy --from http://x/y-z --to " + second, 1, "no name of a database"},
	} {
		var out, errs strings.Builder
		code := run(append([]string{"store"}, strings.Fields(c.args+" --until "+until)...), &out, &errs)
		if code != c.code || !strings.Contains(errs.String(), c.says) {
			t.Errorf("%s: exit code %d, %s", c.args, code, errs.String())
		}
	}
}
