package main

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flowaudit/flowaudit/collector"
	"github.com/flowaudit/flowaudit/collector/access"
	"github.com/flowaudit/flowaudit/collector/store/clickhouse"
	"github.com/flowaudit/flowaudit/collector/store/duckdb"
	"github.com/flowaudit/flowaudit/monitor"
)

// options is what flags make.
type options struct {
	Collector collector.Options
	Store     place
}

func parseFlags(args string) (options, error) {
	o, db, _, err := parse(strings.Fields(args), &strings.Builder{})
	return options{o, db}, err
}

func TestDefaults(t *testing.T) {
	got, err := parseFlags("")
	if err != nil {
		t.Fatal(err)
	}
	want := options{
		collector.Options{Listen: collector.ListenOptions{Address: "127.0.0.1:4245"}, Cluster: "default", Agents: collector.AgentOptions{Audience: "flowaudit-collector", Accounts: []string{"flowaudit/flowaudit-agent"}}, Readers: readerDefaults(), Retain: collector.Retain{Flows: 30 * 24 * time.Hour, Denied: 400 * 24 * time.Hour, Edges: 400 * 24 * time.Hour}, Version: "devel", MetricsPairs: 2000, Alerts: collector.AlertOptions{Queue: "flowaudit-data/alerts"}, Monitor: monitor.Options{LogLevel: "info", LogFormat: "text"}},
		place{db: duckdb.Options{Dir: "flowaudit-data"}},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(place{})); diff != "" {
		t.Error(diff)
	}
}

func readerDefaults() collector.ReaderOptions {
	return collector.ReaderOptions{
		Audience: "flowaudit-reader", APITokens: true, Read: "get pods/log", Write: "update networkpolicies.networking.k8s.io",
		OIDC: access.OIDCOptions{UsernameClaim: "sub", GroupsClaim: "groups", Prefix: "oidc:"}, Log: "-",
	}
}

// TestFlags: what each flag changes, beside the defaults.
func TestFlags(t *testing.T) {
	for _, test := range []struct {
		args   string
		change func(*options)
	}{
		{"--listen unix:/run/c.sock", func(o *options) { o.Collector.Listen.Address = "unix:/run/c.sock" }},
		{"--listen :4245 --insecure", func(o *options) { o.Collector.Listen = collector.ListenOptions{Address: ":4245", Insecure: true} }},
		{"--listen :4245 --tls-cert crt --tls-key key --tls-client-ca ca", func(o *options) {
			o.Collector.Listen = collector.ListenOptions{Address: ":4245", Cert: "crt", Key: "key", ClientCA: "ca"}
		}},
		{"--agent-proof certificate,token --tls-cert c --tls-key k --tls-client-ca a --in-cluster", func(o *options) {
			o.Collector.Listen.Cert, o.Collector.Listen.Key, o.Collector.Listen.ClientCA, o.Collector.Access.InCluster = "c", "k", "a", true
			o.Collector.Agents.Proofs = []collector.Proof{collector.ProofCertificate, collector.ProofToken}
		}},
		{"--agent-audience x --agent-account a/b,c/d --agent-rate 1e4", func(o *options) {
			o.Collector.Agents = collector.AgentOptions{Audience: "x", Accounts: []string{"a/b", "c/d"}, Rate: 1e4}
		}},
		{"--reader-proof none --query-log /var/log/queries", func(o *options) {
			o.Collector.Readers.Proofs, o.Collector.Readers.Log = []collector.Proof{collector.ProofNone}, "/var/log/queries"
		}},
		{"--reader-proof token,oidc --oidc-issuer https://i --oidc-client-id c --oidc-prefix p: --tls-cert c --tls-key k --in-cluster --reader-api-tokens=false", func(o *options) {
			o.Collector.Listen.Cert, o.Collector.Listen.Key, o.Collector.Access.InCluster = "c", "k", true
			r := &o.Collector.Readers
			r.Proofs, r.APITokens = []collector.Proof{collector.ProofToken, collector.ProofOIDC}, false
			r.OIDC.Issuer, r.OIDC.ClientID, r.OIDC.Prefix = "https://i", "c", "p:"
		}},
		{"--data /var/lib/flowaudit", func(o *options) {
			o.Store.db.Dir, o.Collector.Alerts.Queue = "/var/lib/flowaudit", "/var/lib/flowaudit/alerts"
		}},
		{"--manifests /objects", func(o *options) { o.Collector.Manifests = "/objects" }},
		{"--retain 12h", func(o *options) { o.Collector.Retain.Flows = 12 * time.Hour }},
		{"--retain 1.5d", func(o *options) { o.Collector.Retain.Flows = 36 * time.Hour }},
		{"--retain 0", func(o *options) { o.Collector.Retain.Flows = 0 }},
		{"--retain-denied 90d --retain-edges 2d", func(o *options) {
			o.Collector.Retain.Denied, o.Collector.Retain.Edges = 90*24*time.Hour, 48*time.Hour
		}},
		{"--retain-size 1.5GB", func(o *options) { o.Collector.Retain.Bytes = 1_500_000_000 }},
		{"--retain-size 2TiB", func(o *options) { o.Collector.Retain.Bytes = 2 << 40 }},
		{"--store http://h/f --store-password-file pw --store-tls-ca ca --store-tls-cert crt --store-tls-key key --store-tls-server-name n", func(o *options) {
			o.Store.url, o.Store.passwordFile = "http://h/f", "pw"
			o.Store.credentials = clickhouse.Credentials{CA: "ca", Cert: "crt", Key: "key", ServerName: "n"}
			o.Collector.Alerts.Queue = ""
		}},
		{"--store clickhouse://h:9000/f", func(o *options) { o.Store.url, o.Collector.Alerts.Queue = "clickhouse://h:9000/f", "" }},
		{"--listen-metrics :9464 --listen-pprof [::1]:6060", func(o *options) { o.Collector.Monitor.Metrics, o.Collector.Monitor.Profiles = ":9464", "[::1]:6060" }},
		{"--metrics-pairs 10 --log-level warn --log-format json", func(o *options) {
			o.Collector.MetricsPairs, o.Collector.Monitor.LogLevel, o.Collector.Monitor.LogFormat = 10, "warn", "json"
		}},
		{"--evidence-key k", func(o *options) { o.Collector.Evidence.Key, o.Collector.Evidence.Dir = "k", "flowaudit-data" }},
		{"--slice 10m", func(o *options) { o.Store.slice = 10 * time.Minute }},
		{"--store-threads 3", func(o *options) { o.Store.db.Threads = 3 }},
		{"--store-memory 2GB", func(o *options) { o.Store.db.MemoryLimit = "2GB" }},
	} {
		got, err := parseFlags(test.args)
		if err != nil {
			t.Errorf("%s: %v", test.args, err)
			continue
		}
		want, err := parseFlags("")
		if err != nil {
			t.Fatal(err)
		}
		test.change(&want)
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(place{})); diff != "" {
			t.Errorf("%s: %s", test.args, diff)
		}
	}
}

// TestWrongFlags: the error names the flag.
func TestWrongFlags(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"--listen :4245", "listen on :4245: without TLS anybody who reaches this address could read and forge flows: give --tls-cert and --tls-key, listen on loopback, or say --insecure"},
		{"--listen 4245", "missing port"},
		{"--listen unix:", "--listen unix: names no socket"},
		{"--tls-cert crt", "--tls-cert and --tls-key belong together"},
		{"--tls-client-ca ca", "--tls-client-ca needs --tls-cert and --tls-key"},
		{"--retain forever", `--retain: "forever" is no duration: want such as 12h or 30d`},
		{"--retain-denied xd", "--retain-denied: "},
		{"--retain-edges -1h", "--retain-edges -1h0m0s: a time to keep flows cannot be negative"},
		{"--retain-size much", `--retain-size: "much" is no size: want such as 200GB`},
		{"--retain-size 1XB", "--retain-size"},
		{"--retain-size NaNGB", "--retain-size"},
		{"--retain-size -1GB", "--retain-size"},
		{"--retain-size 9e99TB", "--retain-size"},
		{"--retain xd", `--retain: "xd" is no number of days`},
		{"--retain NaNd", `--retain: "NaNd" is no number of days`},
		{"--retain 1e9d", `--retain: "1e9d" is no number of days`},
		{"--retain -1d", "--retain -24h0m0s: a time to keep flows cannot be negative"},
		{"--slice 5s", "--slice 5s: want 1m at least"},
		{"--slice long", "--slice"},
		{"--store /var/lib/flowaudit", "--store: want a URL such as clickhouse://"},
		{"--store postgres://x", "--store: want a URL such as clickhouse://"},
		{"--store-password-file pw", "--store is missing"},
		{"--store-tls-ca ca", "--store is missing"},
		{"--store http://h --store-tls-cert crt", "--store-tls-cert and --store-tls-key belong together"},
		{"--store-threads -1", "--store-threads -1: want a number from 1"},
		{"--metrics-pairs -1", "--metrics-pairs -1: want a number from 0"},
		{"--listen-pprof 10.0.0.1:6060", "--listen-pprof: profiles show"},
		{"--log-format yaml", `--log-format "yaml": want text or json`},
		{"--nosuch", "unknown flag: --nosuch"},
		{"now", `unexpected argument "now"`},
	} {
		var stdout, stderr strings.Builder
		code := run(strings.Fields(test.args), &stdout, &stderr)
		if code != 2 || stdout.String() != "" || !strings.HasPrefix(stderr.String(), "flowaudit-collector: ") || !strings.Contains(stderr.String(), test.want) ||
			!strings.HasSuffix(stderr.String(), "\nSee flowaudit-collector --help.\n") {
			t.Errorf("%s: exit code %d, %q, %q; want 2 and %q", test.args, code, stdout.String(), stderr.String(), test.want)
		}
	}
}

func TestHelpHasExamplesAndEveryFlag(t *testing.T) {
	var stdout, stderr strings.Builder
	if code := run([]string{"--help"}, &stdout, &stderr); code != 0 || stderr.String() != "" {
		t.Fatalf("exit code %d, %q", code, stderr.String())
	}
	for _, want := range []string{"Examples:\n", "--data /var/lib/flowaudit --listen :4245", "--retain string", "--data directory", "--tls-client-ca file", "--insecure"} {
		if !strings.Contains(stdout.String(), want) {
			t.Errorf("--help does not show %q", want)
		}
	}
}

// TestTheExamplesOfHelpWork: as flags.
func TestTheExamplesOfHelpWork(t *testing.T) {
	n := 0
	for _, line := range strings.Split(strings.ReplaceAll(usage, "\\\n", ""), "\n") {
		args, is := strings.CutPrefix(strings.TrimSpace(line), "flowaudit-collector --")
		if !is {
			continue
		}
		n++
		if _, err := parseFlags("--" + args); err != nil {
			t.Errorf("%s: %v", line, err)
		}
	}
	if n < 2 {
		t.Errorf("%d examples", n)
	}
}

func TestVersion(t *testing.T) {
	var stdout, stderr strings.Builder
	if code := run([]string{"--version"}, &stdout, &stderr); code != 0 || stdout.String() != "flowaudit-collector devel\n" {
		t.Errorf("exit code %d, %q, %q", code, stdout.String(), stderr.String())
	}
}

// TestServe: until it is told to stop; what cannot be opened is named.
func TestServe(t *testing.T) {
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	db := place{db: duckdb.Options{Dir: filepath.Join(dir, "data")}}
	ctx, stop := context.WithCancel(t.Context())
	o := collector.Options{Listen: collector.ListenOptions{Address: "127.0.0.1:0"}, Log: log, Listening: func(net.Addr) { stop() }}
	if err := serve(ctx, o, db); err != nil {
		t.Error(err)
	}
	db.db.MemoryLimit = "much"
	if err := serve(t.Context(), o, db); err == nil || !strings.Contains(err.Error(), "memory_limit") {
		t.Errorf("%v, want an error that names the memory limit", err)
	}
	db.db.MemoryLimit, db.db.Dir = "", filepath.Join(dir, "data", "x\x00")
	if err := serve(t.Context(), o, db); err == nil || !strings.Contains(err.Error(), "make store directory") {
		t.Errorf("%v, want an error about the directory", err)
	}
}
