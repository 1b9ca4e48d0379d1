package queries

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

var now = time.Date(2026, 3, 29, 12, 0, 0, 0, time.FixedZone("here", 2*3600))

// TestEveryFileIsAQuestion: All leaves out what it cannot read.
func TestEveryFileIsAQuestion(t *testing.T) {
	entries, err := files.ReadDir(".")
	if err != nil || len(entries) == 0 {
		t.Fatal(len(entries), err)
	}
	used := regexp.MustCompile(`\$([a-z_]+)`)
	for _, e := range entries {
		t.Run(e.Name(), func(t *testing.T) {
			text, err := files.ReadFile(e.Name())
			if err != nil {
				t.Fatal(err)
			}
			q, err := parse(strings.TrimSuffix(e.Name(), ".sql"), string(text))
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasSuffix(q.Text, "?") {
				t.Errorf("%q is no question", q.Text)
			}
			inSQL, declared := make(map[string]bool), make(map[string]bool)
			for _, m := range used.FindAllStringSubmatch(q.SQL, -1) {
				inSQL[m[1]] = true
			}
			given := map[string]string{}
			for _, a := range q.Args {
				declared[a.Name] = true
				if a.Required {
					given[a.Name] = "10.0.0.1"
				}
				if a.Text == "" {
					t.Errorf("argument %s is not explained", a.Name)
				}
				// Coverage is told over the time that this argument names.
				if a.Type == Since && a.Name != "since" && a.Name != "until" {
					t.Errorf("argument %s: how far a question looks back is called since", a.Name)
				}
			}
			if !maps.Equal(inSQL, declared) {
				t.Errorf("the SQL uses %v, the file declares %v", slices.Sorted(maps.Keys(inSQL)), slices.Sorted(maps.Keys(declared)))
			}
			if _, err := q.Bind(given, now); err != nil {
				t.Errorf("its own defaults do not fit: %v", err)
			}
		})
	}
	if n := len(All()); n != len(entries) {
		t.Errorf("%d questions of %d files", n, len(entries))
	}
}

func TestFind(t *testing.T) {
	if q, err := Find("nodes"); err != nil || q.Name != "nodes" {
		t.Errorf("found %q, %v", q.Name, err)
	}
	if _, err := Find("nods"); err == nil || !strings.HasPrefix(err.Error(), `no question "nods": there are assessments, bytes-by-edge, `) {
		t.Errorf("error %v, want one that lists what there is", err)
	}
}

func TestParse(t *testing.T) {
	q, err := parse("x", "-- Who, and\n-- when?\n-- arg who string \"\": whose: name\n-- arg n int: how many\nSELECT $who,\n  $n -- all\n")
	if err != nil {
		t.Fatal(err)
	}
	if q.Text != "Who, and when?" || q.SQL != "SELECT $who,\n  $n -- all" || len(q.Args) != 2 {
		t.Errorf("question %+v", q)
	}
	if want := (Argument{Name: "who", Type: String, Text: "whose: name"}); q.Args[0] != want {
		t.Errorf("argument %+v, want %+v", q.Args[0], want)
	}
	if want := (Argument{Name: "n", Type: Int, Required: true, Text: "how many"}); q.Args[1] != want {
		t.Errorf("argument %+v, want %+v", q.Args[1], want)
	}
	for file, want := range map[string]string{
		"SELECT 1":                               "needs a sentence and SQL",
		"-- Who?":                                "needs a sentence and SQL",
		"":                                       "needs a sentence and SQL",
		"-- Who?\n-- arg n int\nSELECT 1":        "want NAME TYPE [DEFAULT]: text",
		"-- Who?\n-- arg n: text\nSELECT 1":      "want NAME TYPE [DEFAULT]: text",
		"-- Who?\n-- arg n int 1 2: t\nSELECT 1": "want NAME TYPE [DEFAULT]: text",
		"-- Who?\n-- arg n int<=x: t\nSELECT 1":  `"int<=x" is no bounded int`,
		"-- Who?\n-- arg n float: t\nSELECT 1":   `unknown type "float"`,
	} {
		if _, err := parse("x", file); err == nil || !strings.Contains(err.Error(), "read question x: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %q", file, err, want)
		}
	}
}

func TestBind(t *testing.T) {
	q := Question{Name: "x", Args: []Argument{
		{Name: "since", Type: Since, Default: "24h"},
		{Name: "limit", Type: Int, Default: "20"},
		{Name: "name", Type: String},
		{Name: "address", Type: Address, Required: true, Text: "the IP address"},
		{Name: "hops", Type: Int, Default: "1", Max: 3},
	}}
	for _, test := range []struct {
		given map[string]string
		want  map[string]any
		err   string
	}{
		{given: map[string]string{"address": "10.0.0.1"}, want: map[string]any{"since": now.Add(-24 * time.Hour), "limit": int64(20), "name": "", "address": "10.0.0.1", "hops": int64(1)}},
		{
			given: map[string]string{"address": "::ffff:10.0.0.1", "hops": "3", "limit": "3", "name": "it's; --", "since": "2026-03-01"},
			want:  map[string]any{"since": time.Date(2026, 3, 1, 0, 0, 0, 0, now.Location()), "limit": int64(3), "name": "it's; --", "address": "10.0.0.1", "hops": int64(3)},
		},
		{given: nil, err: `question x needs argument "address": the IP address`},
		{given: map[string]string{"address": "db"}, err: `argument address of question x: "db" is no IP address`},
		{given: map[string]string{"address": "::1", "limit": "1.5"}, err: `argument limit of question x: "1.5" is no whole number`},
		{given: map[string]string{"address": "::1", "limit": "-3"}, err: `argument limit of question x: "-3" is no whole number from 1`},
		{given: map[string]string{"address": "::1", "limit": "0"}, err: `argument limit of question x: "0" is no whole number from 1`},
		{given: map[string]string{"address": "::1", "hops": "4"}, err: `argument hops of question x: 4 is more than 3`},
		{given: map[string]string{"address": "::1", "since": "soon"}, err: `argument since of question x: "soon" is no time`},
		{given: map[string]string{"address": "::1", "Limit": "1"}, err: `question x has no argument "Limit": it has since, limit, name, address, hops`},
	} {
		got, err := q.Bind(test.given, now)
		if test.err != "" {
			if err == nil || !strings.HasPrefix(err.Error(), test.err) {
				t.Errorf("%v: error %v, want %q", test.given, err, test.err)
			}
			continue
		}
		if err != nil || !maps.Equal(got, test.want) {
			t.Errorf("%v: %v, %v; want %v", test.given, got, err, test.want)
		}
	}
	none := Question{Name: "y"}
	if _, err := none.Bind(map[string]string{"a": "b"}, now); err == nil || !strings.HasSuffix(err.Error(), "it has none") {
		t.Errorf("error %v", err)
	}
}

func TestParseSince(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"90s", "2026-03-29T11:58:30+02:00"},
		{"5m", "2026-03-29T11:55:00+02:00"},
		{"1h30m", "2026-03-29T10:30:00+02:00"},
		{"7d", "2026-03-22T12:00:00+02:00"},
		{"1.5d", "2026-03-28T00:00:00+02:00"},
		{"0s", "2026-03-29T12:00:00+02:00"},
		{"0", "2026-03-29T12:00:00+02:00"},
		{"100000d", "1752-06-13T12:00:00+02:00"},
		{"2026-03-28T10:00:00Z", "2026-03-28T10:00:00Z"},
		{"2026-03-28T10:00:00.5+05:00", "2026-03-28T10:00:00.5+05:00"},
		{"2026-03-28 10:00:01", "2026-03-28T10:00:01+02:00"},
		{"2026-03-28T10:00:01", "2026-03-28T10:00:01+02:00"},
		{"2026-03-28 10:00", "2026-03-28T10:00:00+02:00"},
		{"2026-03-28T10:00", "2026-03-28T10:00:00+02:00"},
		{"2026-03-28", "2026-03-28T00:00:00+02:00"},
	} {
		got, err := ParseSince(test.text, now)
		if err != nil || got.Format(time.RFC3339Nano) != test.want {
			t.Errorf("%q: %s, %v; want %s", test.text, got.Format(time.RFC3339Nano), err, test.want)
		}
	}
	for _, text := range []string{"", "d", "soon", "-5m", "-1d", "NaNd", "Infd", "1e9d", "5", "10:00", "2026-13-01", "28.03.2026", "1w"} {
		if got, err := ParseSince(text, now); err == nil || !strings.Contains(err.Error(), "5m, 2h or 7d") {
			t.Errorf("%q: %s, %v; want an error that says what would do", text, got, err)
		}
	}
}

func TestReads(t *testing.T) {
	for text, want := range map[string]bool{
		"SELECT 1 FROM edges": true, "select 1 from EDGES)": true, "SELECT 1 FROM (SELECT 2 FROM a) JOIN edges e": true, "edges": true,
		"SELECT bytes_edges FROM flows": false, "SELECT 1 FROM edges2": false, "SELECT my_edges, edges_x FROM edges": true, "": false,
	} {
		if got := Reads(text, "edges"); got != want {
			t.Errorf("%q: %t", text, got)
		}
	}
}

func TestPresent(t *testing.T) {
	q := Question{Times: []string{"seen", "never"}}
	row := []any{int64(1700000000123), int64(5), nil}
	q.Present([]string{"seen", "n", "never"}, row)
	if want := time.UnixMilli(1700000000123).UTC(); row[0] != want || row[1] != int64(5) || row[2] != nil {
		t.Errorf("row %v", row)
	}
}
