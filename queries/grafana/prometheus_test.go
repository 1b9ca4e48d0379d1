package grafana

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// metrics are what both programs tell, as far as panels ask; N grows.
const metrics = `flowaudit_denied_connections_total{cluster="c",source_namespace="shop",source_workload="Deployment/web",destination_namespace="bank",destination_workload="StatefulSet/db"} N
flowaudit_unenforced_connections_total{cluster="c",source_namespace="shop",source_workload="Deployment/web",destination_namespace="bank",destination_workload="StatefulSet/db"} N
flowaudit_unexplained_connections_total{cluster="c",source_namespace="shop",source_workload="Deployment/web",destination_namespace="bank",destination_workload="StatefulSet/db"} N
flowaudit_connections_total{verdict="denied"} N
flowaudit_collector_agents{state="reporting"} 3
flowaudit_collector_watched_seconds_total{scope="node"} N
flowaudit_collector_lost_events_total{kind="overrun"} N
flowaudit_collector_report_lag_seconds_bucket{le="1"} N
flowaudit_collector_report_lag_seconds_bucket{le="+Inf"} N
flowaudit_store_append_seconds_bucket{le="1"} N
flowaudit_store_append_seconds_bucket{le="+Inf"} N
flowaudit_collector_waiting_batches 1
flowaudit_agent_queue_batches 1
flowaudit_store_bytes 1
process_resident_memory_bytes 1
flowaudit_build_info{program="flowaudit-agent",version="1"} 1
flowaudit_agent_source_open{source="nflog"} 1
`

// startPrometheus starts a Prometheus that scrapes metrics, and returns its URL.
func startPrometheus(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("prometheus")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("Prometheus is not installed: make test installs it")
		}
		t.Skip("Prometheus is not installed: make test installs it")
	}
	var scraped atomic.Int64
	target := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		_, _ = fmt.Fprint(w, strings.ReplaceAll(metrics, " N\n", fmt.Sprintf(" %d\n", scraped.Add(1)))) // Prometheus may have gone
	}))
	t.Cleanup(target.Close)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config := fmt.Sprintf("scrape_configs:\n- {job_name: all, scrape_interval: 1s, static_configs: [{targets: [%q]}]}\n", strings.TrimPrefix(target.URL, "http://"))
	if err := os.WriteFile(filepath.Join(dir, "prometheus.yml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, "--config.file="+dir+"/prometheus.yml", "--storage.tsdb.path="+dir+"/data", "--web.listen-address="+address, "--log.level=error")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() }) // it is killed when the test's context ends
	return "http://" + address
}

// instant asks Prometheus, and counts the series of the answer.
func instant(base, query string) (series int, err error) {
	r, err := http.Get(base + "/api/v1/query?query=" + url.QueryEscape(query))
	if err != nil {
		return 0, err
	}
	defer r.Body.Close()
	var answer struct {
		Error string
		Data  struct{ Result []json.RawMessage }
	}
	if err := json.NewDecoder(r.Body).Decode(&answer); err != nil {
		return 0, err
	}
	if answer.Error != "" {
		return 0, fmt.Errorf("%s: %s", query, answer.Error)
	}
	return len(answer.Data.Result), nil
}

// TestPrometheus: each panel has something to show in a real Prometheus, those
// of pairs by either end, named as alerts' links name it.
func TestPrometheus(t *testing.T) {
	base := startPrometheus(t)
	// settled waits for series: a rate needs two scrapes.
	settled := func(query string) (series int) {
		t.Helper()
		var err error
		for until := time.Now().Add(2 * time.Minute); time.Now().Before(until); time.Sleep(200 * time.Millisecond) {
			if series, err = instant(base, query); series > 0 {
				return series
			}
		}
		t.Errorf("%s: %d series, %v", query, series, err)
		return 0
	}
	expand := func(query, namespace, workload string) string {
		return strings.NewReplacer("$namespace", namespace, "$workload", workload, "$__rate_interval", "1m").Replace(query)
	}
	d := PrometheusDashboard()
	for _, p := range d.Panels {
		for _, q := range p.Targets {
			settled(expand(q.Query, anything, anything))
		}
	}
	pair := d.Panels[0].Targets[0].Query
	for chosen, want := range map[[2]string]int{{"shop", "web"}: 1, {"bank", "db"}: 1, {"shop", anything}: 1, {"shop", "db"}: 0, {"other", anything}: 0} {
		if got, err := instant(base, expand(pair, chosen[0], chosen[1])); err != nil || got != want {
			t.Errorf("%v: %d series, %v, want %d", chosen, got, err, want)
		}
	}
}
