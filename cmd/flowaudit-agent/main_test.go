package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/flowaudit/flowaudit/agent"
	"github.com/flowaudit/flowaudit/agent/nflog"
	"github.com/flowaudit/flowaudit/flow"
)

// environment is what a pod's specification gives an agent.
var environment = map[string]string{
	"NODE_NAME": "node-1", "POD_NAME": "web-0", "POD_NAMESPACE": "shop", "POD_UID": "uid", "POD_IPS": "10.1.0.1,fd00::1",
}

func getenv(values map[string]string) func(string) string {
	return func(name string) string { return values[name] }
}

func parseFlags(t *testing.T, env map[string]string, args ...string) (agent.Options, error) {
	t.Helper()
	o, _, err := parse(args, getenv(env), &strings.Builder{})
	return o, err
}

func TestDefaults(t *testing.T) {
	got, err := parseFlags(t, environment)
	if err != nil {
		t.Fatal(err)
	}
	want := agent.Options{
		Node: "node-1", Cluster: "default", Version: "devel", Sources: []agent.Choice{{Name: "auto"}}, Conntrack: true, TapGroup: 4242, Window: 10 * time.Second, UnansweredAfter: 10 * time.Second,
		MaxConnections: 1 << 20, MaxFlows: 1 << 17, MaxQueue: 1 << 19, SpoolMax: 1 << 30, SpoolAge: 7 * 24 * time.Hour, ConfirmedAllowed: agent.ConfirmedAuto,
	}
	want.Collector.Address = "127.0.0.1:4245"
	want.Monitor.LogLevel, want.Monitor.LogFormat = "info", "text"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestFlags: what each flag changes, beside the defaults.
func TestFlags(t *testing.T) {
	labels := filepath.Join(t.TempDir(), "labels")
	if err := os.WriteFile(labels, []byte("app=\"web\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args   string
		change func(*agent.Options)
	}{
		{"--collector unix:/run/c.sock", func(o *agent.Options) { o.Collector.Address = "unix:/run/c.sock" }},
		{"--node-name other", func(o *agent.Options) { o.Node = "other" }},
		{"--cluster prod", func(o *agent.Options) { o.Cluster = "prod" }},
		{"--scope node", func(*agent.Options) {}},
		{"--nflog-group 100 --nflog-group 2=prefix --nflog-group 3=allowed", func(o *agent.Options) {
			o.Sources, o.NFLOG = nil, []nflog.Group{{Number: 100}, {Number: 2, Meaning: nflog.MeaningPrefix}, {Number: 3, Meaning: nflog.MeaningAllowed}}
		}},
		{"--conntrack=false --nflog-group 1=denied", func(o *agent.Options) { o.Sources, o.Conntrack, o.NFLOG = nil, false, []nflog.Group{{Number: 1}} }},
		{"--source antrea --source ovn=/var/log/acl*.log --source nflog:7=calico", func(o *agent.Options) {
			o.Sources = []agent.Choice{{Name: "antrea"}, {Name: "ovn", Address: "/var/log/acl*.log"}, {Name: "nflog", Address: "7=calico"}}
		}},
		{"--source auto --nflog-group 7", func(o *agent.Options) { o.NFLOG = []nflog.Group{{Number: 7}} }},
		{"--trust-confirmed no", func(o *agent.Options) { o.ConfirmedAllowed = agent.ConfirmedDoubt }},
		{"--trust-confirmed yes", func(o *agent.Options) { o.ConfirmedAllowed = agent.ConfirmedTrust }},
		{"--window 30s", func(o *agent.Options) { o.Window = 30 * time.Second }},
		{"--unanswered-after 3s", func(o *agent.Options) { o.UnansweredAfter = 3 * time.Second }},
		{"--granularity connection", func(o *agent.Options) { o.PerConnection = true }},
		{"--granularity PAIR", func(*agent.Options) {}},
		{"--dump-interval 1m", func(o *agent.Options) { o.DumpInterval = time.Minute }},
		{"--manifests /objects", func(o *agent.Options) { o.Manifests = "/objects" }},
		{"--state-dir /state", func(o *agent.Options) { o.StateDir = "/state" }},
		{"--spool-dir /spool --spool-size 64MiB --spool-age 2h", func(o *agent.Options) { o.SpoolDir, o.SpoolMax, o.SpoolAge = "/spool", 64<<20, 2*time.Hour }},
		{"--max-connections 5000", func(o *agent.Options) { o.MaxConnections = 5000 }},
		{"--max-flows 6000", func(o *agent.Options) { o.MaxFlows = 6000 }},
		{"--max-queue 7000", func(o *agent.Options) { o.MaxQueue = 7000 }},
		{"--listen-metrics :9464 --listen-pprof localhost:6060", func(o *agent.Options) { o.Monitor.Metrics, o.Monitor.Profiles = ":9464", "localhost:6060" }},
		{"--log-level debug --log-format json", func(o *agent.Options) { o.Monitor.LogLevel, o.Monitor.LogFormat = "debug", "json" }},
		{"--tls", func(o *agent.Options) { o.Collector.TLS = true }},
		{"--tls-ca ca --tls-cert crt --tls-key key --tls-server-name name", func(o *agent.Options) {
			o.Collector.CA, o.Collector.Cert, o.Collector.Key, o.Collector.ServerName = "ca", "crt", "key", "name"
		}},
		{"--scope pod --pod-labels " + labels, func(o *agent.Options) {
			p, err := agent.PodFromEnvironment(getenv(environment), labels)
			if err != nil || p.Name != "web-0" || len(p.Addrs) != 2 || p.Labels["app"] != "web" {
				t.Errorf("pod %+v, %v", p, err)
			}
			o.Sources, o.Scope, o.Pod = nil, flow.ScopePod, p
		}},
	} {
		got, err := parseFlags(t, environment, strings.Fields(test.args)...)
		if err != nil {
			t.Errorf("%s: %v", test.args, err)
			continue
		}
		want, err := parseFlags(t, environment)
		if err != nil {
			t.Fatal(err)
		}
		test.change(&want)
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("%s: %s", test.args, diff)
		}
	}
}

// TestWrongFlags: the error names the flag, or the variable of the environment.
func TestWrongFlags(t *testing.T) {
	for _, test := range []struct {
		env  map[string]string
		args string
		want string
	}{
		{nil, "", "--node-name is empty: give the node's name as in the cluster, in a pod by NODE_NAME"},
		{environment, "--collector=", "--collector is empty: give host:port or unix:PATH"},
		{environment, "--scope cluster", `--scope "cluster": want node or pod`},
		{nil, "--scope pod", "set POD_NAME and POD_NAMESPACE by the downward API"},
		{map[string]string{"POD_NAME": "a", "POD_NAMESPACE": "b", "POD_IPS": "10.0.0.300"}, "--scope pod", "read POD_IPS"},
		{environment, "--scope pod --pod-labels /none", "read pod labels: open /none"},
		{environment, "--nflog-group all", `--nflog-group: parse NFLOG group "all": want a number up to 65535`},
		{environment, "--nflog-group 70000", "--nflog-group: "},
		{environment, "--nflog-group 5=refused", `meaning "refused": want denied, allowed, prefix, kube-router, calico`},
		{environment, "--nflog-group 5 --nflog-group 5=allowed", "--nflog-group 5 is given twice"},
		{environment, "--scope pod --conntrack=false", "nothing to read: give --source or --nflog-group, or leave --conntrack on"},
		{environment, "--source nosuch", `--source: parse source "nosuch": want one of auto, antrea, aws, calico, `},
		{environment, "--source hubble --source hubble=unix:/a", "--source hubble is given twice"},
		{environment, "--source ovn --source ovn", "--source ovn is given twice"},
		{environment, "--trust-confirmed maybe", `--trust-confirmed "maybe": want auto, yes or no`},
		{environment, "--window 10", "--window"},
		{environment, "--window 1ms", "--window 1ms: want 1s to 1h"},
		{environment, "--window 2h", "--window 2h0m0s: want 1s to 1h"},
		{environment, "--unanswered-after 0s", "--unanswered-after 0s: want at least 1s"},
		{environment, "--granularity packet", `--granularity "packet": want pair or connection`},
		{environment, "--dump-interval -5s", "--dump-interval -5s: want"},
		{environment, "--max-connections 10 --max-flows 20 --max-queue 30", "--max-connections 10: want at least 1000\n--max-flows 20: want at least 1000\n--max-queue 30: want at least 1000"},
		{environment, "--max-flows many", "--max-flows"},
		{environment, "--spool-size much", `--spool-size: "much" is no size: want such as 500MB or 1GiB`},
		{environment, "--spool-size 1MB", "--spool-size 1000000: want at least"},
		{environment, "--spool-age 1s", "--spool-age 1s: want at least 1m"},
		{environment, "--listen-pprof :6060", "--listen-pprof: profiles show what is in memory: want an address of loopback"},
		{environment, "--log-level loud", `--log-level "loud": want debug`},
		{environment, "--nosuch", "unknown flag: --nosuch"},
		{environment, "now", `unexpected argument "now"`},
	} {
		var stdout, stderr strings.Builder
		code := run(strings.Fields(test.args), getenv(test.env), &stdout, &stderr)
		if code != 2 || stdout.String() != "" || !strings.HasPrefix(stderr.String(), "flowaudit-agent: ") || !strings.Contains(stderr.String(), test.want) ||
			!strings.HasSuffix(stderr.String(), "\nSee flowaudit-agent --help.\n") {
			t.Errorf("%s: exit code %d, %q, %q; want 2 and %q", test.args, code, stdout.String(), stderr.String(), test.want)
		}
	}
}

func TestHelpHasExamplesAndEveryFlag(t *testing.T) {
	var stdout, stderr strings.Builder
	if code := run([]string{"--help"}, getenv(nil), &stdout, &stderr); code != 0 || stderr.String() != "" {
		t.Fatalf("exit code %d, %q", code, stderr.String())
	}
	for _, want := range []string{
		"Examples:\n", "flowaudit-agent --collector collector:4245 --scope pod", "--nflog-group group", "--state-dir directory", "--tls-ca file",
		"(default 10s)", "(default \"127.0.0.1:4245\")",
	} {
		if !strings.Contains(stdout.String(), want) {
			t.Errorf("--help does not show %q", want)
		}
	}
}

// TestTheExamplesOfHelpWork: as flags.
func TestTheExamplesOfHelpWork(t *testing.T) {
	n := 0
	for _, line := range strings.Split(usage, "\n") {
		args, is := strings.CutPrefix(strings.TrimSpace(line), "flowaudit-agent --")
		if !is {
			continue
		}
		n++
		if _, err := parseFlags(t, environment, strings.Fields(strings.ReplaceAll("--"+args, `"$(hostname)"`, "node-1"))...); err != nil {
			t.Errorf("%s: %v", line, err)
		}
	}
	if n == 0 {
		t.Error("no example")
	}
}

// TestEnableAccounting: needs none of what an agent needs; what it cannot do it says.
func TestEnableAccounting(t *testing.T) {
	o, err := parseFlags(t, nil, "--enable-accounting")
	if err != nil || !o.EnableAccounting {
		t.Errorf("%+v, %v", o, err)
	}
}

func TestVersion(t *testing.T) {
	var stdout, stderr strings.Builder
	if code := run([]string{"--version"}, getenv(nil), &stdout, &stderr); code != 0 || stdout.String() != "flowaudit-agent devel\n" {
		t.Errorf("exit code %d, %q, %q", code, stdout.String(), stderr.String())
	}
}
