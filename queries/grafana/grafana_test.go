package grafana

import (
	"bytes"
	"errors"
	"flag"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flowaudit/flowaudit/collector/store/clickhouse"
	"github.com/flowaudit/flowaudit/collector/store/clickhouse/clickhousetest"
	"github.com/flowaudit/flowaudit/collector/store/storetest"
	"github.com/flowaudit/flowaudit/flow"

	driver "github.com/ClickHouse/clickhouse-go/v2"
)

var update = flag.Bool("update", false, "write the dashboards")

// TestFiles: what is shipped is what this package makes; the chart can read
// its own files only.
func TestFiles(t *testing.T) {
	all, err := ClickHouseDashboards()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range append(all, PrometheusDashboard()) {
		want, err := d.JSON()
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{"../../deploy/grafana/" + d.UID + ".json", "../../deploy/chart/files/grafana/" + d.UID + ".json"} {
			if *update {
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, want, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			got, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s is not what it should be: run make generate (%v)", path, err)
			}
		}
	}
}

var now = time.Now()

// keep makes a store with flows of each kind that a panel is about.
func keep(t *testing.T, url string) {
	t.Helper()
	s, err := clickhouse.Open(t.Context(), clickhouse.Options{URL: url, Logger: slog.New(slog.DiscardHandler), Pace: -1})
	if err != nil {
		t.Fatal(err)
	}
	start := now.Add(-10 * time.Minute)
	flows := storetest.NewGenerator(1).Flows(5000, start, 5*time.Minute)
	scan := flows[0]
	scan.Verdict, scan.Reason = flow.VerdictDenied, flow.ReasonLogged
	scan.Policies = []flow.PolicyRef{{Kind: "NetworkPolicy", Namespace: "team-1", Name: "closed"}}
	for i := range 100 {
		f := scan
		switch f.Assessment = []flow.Assessment{flow.AssessmentEnforced, flow.AssessmentUnexplained}[i%2]; i % 4 {
		case 0, 1:
			f.Dst, f.Destination = storetest.Addr(1000+i), nil
		default:
			f.Port = uint16(1 + i)
		}
		flows = append(flows, f)
	}
	passed := scan
	passed.Verdict, passed.Reason, passed.Assessment = flow.VerdictAllowed, flow.ReasonReply, flow.AssessmentUnenforced
	b := flow.Batch{
		Key: flow.BatchKey{Cluster: "c", Instance: "n", Epoch: 1, Sequence: 1}, Node: scan.Node, Start: start, End: now, Flows: append(flows, passed),
		Gaps: []flow.Gap{{Node: scan.Node, Source: "nflog", Kind: flow.GapOverrun, Start: start, End: start.Add(time.Second), Lost: 3}},
	}
	if _, err := s.Append(t.Context(), []flow.Batch{b}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// expand is what Grafana and its plugin make of a query.
func expand(query string, chosen map[string]string) string {
	pairs := []string{
		from, strconv.FormatInt(now.Add(-time.Hour).UnixMilli(), 10), to, strconv.FormatInt(now.UnixMilli(), 10), interval, "30",
	}
	for _, name := range []string{"namespace", "workload", "policy", "node"} {
		value := "'" + all + "'"
		if v, ok := chosen[name]; ok {
			value = "'nobody','" + v + "'"
		}
		pairs = append(pairs, "${"+name+":singlequote}", value)
	}
	return strings.NewReplacer(pairs...).Replace(query)
}

// TestClickHouse: each panel has something to show on the oldest server and on
// today's, for everything and for what a variable chooses; and nothing for
// what is not there.
func TestClickHouse(t *testing.T) {
	for name, start := range map[string]func(string) (*clickhousetest.Server, error){
		"old": func(dir string) (*clickhousetest.Server, error) {
			return clickhousetest.Start(clickhousetest.Options{Dir: dir})
		},
		"today": clickhousetest.StartLibrary,
	} {
		t.Run(name, func(t *testing.T) {
			server, err := start(t.TempDir())
			if errors.Is(err, exec.ErrNotFound) && os.Getenv("CI") == "" {
				t.Skip("the server is not installed: make test installs it")
			}
			if err != nil {
				t.Fatal(err)
			}
			defer server.Kill()
			url := server.URL("flowaudit")
			keep(t, url)
			options, err := driver.ParseDSN(url)
			if err != nil {
				t.Fatal(err)
			}
			conn, err := driver.Open(options)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			dashboards, err := ClickHouseDashboards()
			if err != nil {
				t.Fatal(err)
			}
			count := func(what, query string) (rows int) {
				t.Helper()
				answer, err := conn.Query(t.Context(), query)
				if err != nil {
					t.Fatalf("%s: %v\n%s", what, err, query)
				}
				defer answer.Close()
				for answer.Next() {
					rows++
				}
				if err := answer.Err(); err != nil {
					t.Fatalf("%s: %v\n%s", what, err, query)
				}
				return rows
			}
			for _, d := range dashboards {
				for _, v := range d.Variables {
					if count(d.UID+", "+v.Name, v.Query) == 0 {
						t.Errorf("%s: nothing to choose from for %s", d.UID, v.Name)
					}
				}
				for _, p := range d.Panels {
					what := d.UID + ", " + p.Title
					query := p.Targets[0].Query
					if count(what, expand(query, nil)) == 0 {
						t.Errorf("%s shows nothing", what)
					}
					if len(d.Variables) == 0 {
						continue
					}
					if p.Shape == "table" && count(what, expand(query, map[string]string{d.Variables[0].Name: "none"})) != 0 {
						t.Errorf("%s shows something of what is not there", what)
					}
				}
			}
			chosen := map[string]string{"policy": "team-1/closed"}
			i := slices.IndexFunc(dashboards, func(d Dashboard) bool { return d.UID == "flowaudit-policy" })
			for _, p := range dashboards[i].Panels {
				if count(p.Title, expand(p.Targets[0].Query, chosen)) == 0 {
					t.Errorf("%s shows nothing of policy %s", p.Title, chosen["policy"])
				}
			}
		})
	}
}
