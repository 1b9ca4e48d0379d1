// Command flowaudit-collector takes flows from agents, stores them and answers questions.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/flowaudit/flowaudit/collector"
	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/collector/store/clickhouse"
	"github.com/flowaudit/flowaudit/collector/store/duckdb"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
	"github.com/flowaudit/flowaudit/proto/zstd"
)

// version is set by the linker.
var version = "devel"

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 && args[0] == "store" {
		return runStore(args[1:], stdout, stderr)
	}
	o, at, show, err := parse(args, stdout)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "flowaudit-collector: %v\nSee flowaudit-collector --help.\n", err)
		return 2
	case show:
		fmt.Fprintln(stdout, "flowaudit-collector", version)
		return 0
	}
	if o.Log, err = o.Monitor.Logger(stderr); err != nil {
		fmt.Fprintf(stderr, "flowaudit-collector: %v\n", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends at once
	zstd.Register()
	if err := serve(ctx, o, at); err != nil {
		fmt.Fprintf(stderr, "flowaudit-collector: %v\n", err)
		return 1
	}
	return 0
}

func serve(ctx context.Context, o collector.Options, place place) error {
	s, err := place.open(ctx, o.Log)
	if err != nil {
		return err
	}
	o.Store = s
	return collector.Run(ctx, o)
}

// place is where flows are kept: in DuckDB, or in the ClickHouse of a URL.
type place struct {
	url          string
	credentials  clickhouse.Credentials
	passwordFile string
	db           duckdb.Options
	slice        time.Duration // 0 takes the store's
}

func (p *place) open(ctx context.Context, log *slog.Logger) (store.Store, error) {
	if p.url != "" {
		c := p.credentials
		if p.passwordFile != "" {
			text, err := os.ReadFile(p.passwordFile)
			if err != nil {
				return nil, fmt.Errorf("read password of the store: %w", err)
			}
			c.Password = strings.TrimRight(string(text), "\r\n")
		}
		return clickhouse.Open(ctx, clickhouse.Options{URL: p.url, Credentials: c, Slice: p.slice, Logger: log})
	}
	p.db.Logger, p.db.Slice = log, p.slice
	return duckdb.Open(ctx, p.db)
}

// validate names the first flag that cannot work.
func (p *place) validate() error {
	scheme, _, isURL := strings.Cut(p.url, "://")
	switch {
	case p.url != "" && (!isURL || !slices.Contains([]string{"clickhouse", "tcp", "http", "https"}, scheme)):
		return errors.New("--store: want a URL such as clickhouse://user:password@host:9000/flowaudit; for a directory, use --data")
	case p.url == "" && (p.passwordFile != "" || p.credentials != clickhouse.Credentials{Password: p.credentials.Password}):
		return errors.New("--store-password-file and --store-tls-… are of a ClickHouse: --store is missing")
	case (p.credentials.Cert == "") != (p.credentials.Key == ""):
		return errors.New("--store-tls-cert and --store-tls-key belong together")
	case p.db.Threads < 0:
		return fmt.Errorf("--store-threads %d: want a number from 1, or 0 for one a core", p.db.Threads)
	case p.slice != 0 && p.slice < time.Minute:
		return fmt.Errorf("--slice %s: want 1m at least", p.slice)
	}
	return nil
}

// flags adds those that only a ClickHouse has.
func (p *place) flags(fs *pflag.FlagSet) {
	fs.StringVar(&p.passwordFile, "store-password-file", "", "`file` with the password to the ClickHouse, if it is not in the URL or $FLOWAUDIT_STORE_PASSWORD")
	fs.StringVar(&p.credentials.CA, "store-tls-ca", "", "PEM `file` of the authorities that sign the ClickHouse's certificate (default: the system's)")
	fs.StringVar(&p.credentials.Cert, "store-tls-cert", "", "PEM `file` of an own certificate that the ClickHouse asks for")
	fs.StringVar(&p.credentials.Key, "store-tls-key", "", "PEM `file` of its private key")
	fs.StringVar(&p.credentials.ServerName, "store-tls-server-name", "", "`name` in the ClickHouse's certificate, if it is not the URL's host")
}

const usage = `Takes flows from flowaudit-agents, stores them and answers the questions of flowaudit.

Usage:
  flowaudit-collector [flags]
  flowaudit-collector store copy|export|import|verify

Examples:
  # on this machine only, for everybody on it
  flowaudit-collector --data /var/lib/flowaudit --reader-proof none

  # for a cluster: TLS, agents show a certificate, and readers one or a token
  flowaudit-collector --data /var/lib/flowaudit --listen :4245 \
    --tls-cert tls.crt --tls-key tls.key --tls-client-ca ca.crt --retain 30d --in-cluster

  # alerts to an Alertmanager, by the default rules
  flowaudit-collector --data /var/lib/flowaudit --alertmanager http://alertmanager:9093

  # many collectors, which share a ClickHouse
  FLOWAUDIT_STORE=clickhouse://flowaudit@clickhouse:9440/flowaudit?secure=true \
    flowaudit-collector --store-password-file /etc/flowaudit/password --listen :4245 --tls-cert tls.crt --tls-key tls.key --in-cluster

Flags:
`

func parse(args []string, stdout io.Writer) (o collector.Options, at place, show bool, err error) {
	o.Version = version
	fs := pflag.NewFlagSet("flowaudit-collector", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.Usage = func() { fmt.Fprint(stdout, usage, fs.FlagUsages()) }
	var retain, retainDenied, retainEdges, retainSize string
	fs.StringVar(&o.Listen.Address, "listen", flowauditv1.DefaultAddress, "`address` to listen on, host:port or unix:PATH; beyond loopback TLS is needed")
	fs.StringVar(&o.Listen.HTTP, "listen-http", "", "`address` to answer questions on as JSON over HTTP as well, host:port; /openapi.json describes it")
	fs.StringVar(&at.db.Dir, "data", "flowaudit-data", "`directory` of the embedded store")
	fs.StringVar(&at.url, "store", "", "`URL` of a ClickHouse that keeps the flows instead, such as clickhouse://user:password@host:9000/flowaudit (or $FLOWAUDIT_STORE); any number of collectors share it")
	at.flags(fs)
	fs.StringVar(&o.Manifests, "manifests", "", "`directory` of cluster objects as YAML, which name pods and Services; read again when files change")
	o.Access.Flags(fs)
	fs.StringVar(&o.Cluster, "cluster", "default", "`name` or UID of the cluster whose objects these are, as agents give it; flows of other clusters are stored as they come")
	fs.StringVar(&retain, "retain", "30d", "how long flows are kept, such as 12h or 30d; 0 keeps them all")
	fs.StringVar(&retainDenied, "retain-denied", "400d", "how long refused flows are kept, if that is longer than --retain")
	fs.StringVar(&retainEdges, "retain-edges", "400d", "how long it is kept who talked to whom by the hour; 0 keeps all of it")
	fs.StringVar(&retainSize, "retain-size", "0", "`size` on disk, such as 200GB, from which on the oldest flows are deleted before their time; 0 is no bound")
	fs.DurationVar(&at.slice, "slice", 0, "how much time one file of the store holds, or one partition of ClickHouse; retention deletes these whole (default: 1h, and 24h in ClickHouse)")
	fs.IntVar(&at.db.Threads, "store-threads", 0, "threads of the store (default: one a core)")
	fs.StringVar(&at.db.MemoryLimit, "store-memory", "", "memory limit of the store, such as 2GB (default: DuckDB's, 80 % of the machine's)")
	fs.StringVar(&o.Alerts.Config, "alert-config", "", "YAML `file` of alert rules and notifiers, read again when it changes (default: the default rules, and no notifier)")
	fs.StringArrayVar(&o.Alerts.Alertmanagers, "alertmanager", nil, "`URL` of an Alertmanager that is told of alerts; may be repeated")
	fs.StringVar(&o.Alerts.Queue, "alert-queue", "", "`directory` of notifications that are not delivered yet (default: alerts in --data, or a temporary one with --store)")
	fs.StringVar(&o.Alerts.LinkTemplate, "link-template", "", "`template` of the links in alerts, such as 'https://grafana.example/d/flowaudit?var-namespace={{.From.Namespace}}' (default: made of the file's grafana)")
	fs.StringVar(&o.Alerts.Lease, "alert-lease", "", "`namespace/name` of the Lease by which one of many collectors tells of alerts (default with --store and --in-cluster: flowaudit-alerts in the pod's namespace)")
	fs.StringVar(&o.Evidence.Key, "evidence-key", "", "PEM `file` of an ed25519 key that signs what is stored, so that it can be proven later what it was (made by flowaudit evidence keygen; default: nothing is signed)")
	fs.StringVar(&o.Listen.Cert, "tls-cert", "", "PEM `file` of the collector's certificate")
	fs.StringVar(&o.Listen.Key, "tls-key", "", "PEM `file` of its private key")
	fs.StringVar(&o.Listen.ClientCA, "tls-client-ca", "", "PEM `file` of the authorities that sign the certificates of agents and readers")
	agentFlags(fs, &o.Agents)
	readerFlags(fs, &o.Readers)
	fs.BoolVar(&o.Listen.Insecure, "insecure", false, "listen beyond loopback without TLS: anybody who reaches the address can read and forge flows")
	o.Monitor.Flags(fs)
	fs.IntVar(&o.MetricsPairs, "metrics-pairs", 2000, "how many pairs of workloads metrics tell apart; what is beyond them counts as other")
	fs.BoolVar(&show, "version", false, "print the version")
	if err := fs.Parse(args); err != nil {
		return o, at, false, err
	}
	if fs.NArg() > 0 {
		return o, at, false, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if show {
		return o, at, true, nil
	}
	for _, d := range []struct {
		flag, text string
		to         *time.Duration
	}{{"retain", retain, &o.Retain.Flows}, {"retain-denied", retainDenied, &o.Retain.Denied}, {"retain-edges", retainEdges, &o.Retain.Edges}} {
		if *d.to, err = parseDays(d.text); err != nil {
			return o, at, false, fmt.Errorf("--%s: %w", d.flag, err)
		}
	}
	if o.Retain.Bytes, err = parseSize(retainSize); err != nil {
		return o, at, false, fmt.Errorf("--retain-size: %w", err)
	}
	if at.url == "" {
		at.url = os.Getenv("FLOWAUDIT_STORE") // it may hold a password, which others see in an argument
	}
	at.credentials.Password = os.Getenv("FLOWAUDIT_STORE_PASSWORD")
	if err := at.validate(); err != nil {
		return o, at, false, err
	}
	defaultsOf(&o, &at)
	return o, at, false, o.Validate()
}

// agentFlags say how agents prove which ones they are.
func agentFlags(fs *pflag.FlagSet, o *collector.AgentOptions) {
	fs.Var(&proofs{&o.Proofs}, "agent-proof", "how an agent proves of which node or pod it is, without which it may report for no other: certificate, token or both with a comma; none lets whoever reaches the collector report for any. auto is certificate with --tls-client-ca, else token with TLS and an API server, else none")
	fs.StringVar(&o.Audience, "agent-audience", collector.DefaultAudience, "`audience` that agents' ServiceAccount tokens are for")
	fs.StringSliceVar(&o.Accounts, "agent-account", []string{collector.DefaultAccount}, "ServiceAccount, `namespace/name`, whose agents report for their node; pods of others report for themselves")
	fs.Float64Var(&o.Rate, "agent-rate", 0, "how many `flows` a second one agent may report in the long run; what it sends beyond waits at the agent (default: no bound)")
}

// readerFlags say how readers prove who they are, and what they may read.
func readerFlags(fs *pflag.FlagSet, o *collector.ReaderOptions) {
	fs.Var(&proofs{&o.Proofs}, "reader-proof", "how a reader proves who they are: certificate, token, oidc, or some of them with commas; none lets whoever reaches the collector read everything. auto is each of them that the collector can ask for, and none on a unix socket; where there is none, nobody may read")
	fs.StringVar(&o.Audience, "reader-audience", collector.DefaultReaderAudience, "`audience` that readers' tokens are for")
	fs.BoolVar(&o.APITokens, "reader-api-tokens", true, "take readers' tokens too that are for the API server itself, as kubeconfigs hold them")
	fs.StringVar(&o.Read, "reader-right", collector.DefaultRead, "`right` that shows the flows of a namespace, or, in all namespaces, everything; as kubectl auth can-i names it")
	fs.StringVar(&o.Write, "alert-right", collector.DefaultWrite, "`right` that allows to acknowledge the alerts of a namespace, or, in all namespaces, to silence any")
	fs.StringVar(&o.OIDC.Issuer, "oidc-issuer", "", "`URL` of an issuer whose ID tokens say who a reader is")
	fs.StringVar(&o.OIDC.ClientID, "oidc-client-id", "", "`client` that its tokens must be for")
	fs.StringVar(&o.OIDC.UsernameClaim, "oidc-username-claim", "sub", "`claim` that is the user's name")
	fs.StringVar(&o.OIDC.GroupsClaim, "oidc-groups-claim", "groups", "`claim` that is the user's groups")
	fs.StringVar(&o.OIDC.Prefix, "oidc-prefix", "oidc:", "`prefix` of the names of its users and groups, as RBAC has them")
	fs.StringVar(&o.OIDC.CA, "oidc-ca", "", "PEM `file` of the authorities of the issuer's certificate (default: the system's)")
	fs.StringVar(&o.Log, "query-log", "-", "`file` that keeps who asked what, as JSON lines; - is standard output")
}

// proofs is the flag's value.
type proofs struct{ list *[]collector.Proof }

func (p *proofs) Set(s string) error {
	*p.list = nil
	for _, one := range strings.Split(s, ",") {
		*p.list = append(*p.list, collector.Proof(strings.TrimSpace(one)))
	}
	return nil
}

func (p *proofs) Type() string { return "proofs" }

func (p *proofs) String() string {
	if p.list == nil || len(*p.list) == 0 {
		return string(collector.ProofAuto)
	}
	var names []string
	for _, one := range *p.list {
		names = append(names, string(one))
	}
	return strings.Join(names, ",")
}

// defaultsOf are those that depend on other flags.
func defaultsOf(o *collector.Options, at *place) {
	if o.Alerts.Queue == "" && at.url == "" {
		o.Alerts.Queue = filepath.Join(at.db.Dir, "alerts")
	}
	if o.Evidence.Key != "" {
		if at.url == "" {
			o.Evidence.Dir = at.db.Dir // where the disk is that has room
		} else if name, err := os.Hostname(); err == nil {
			o.Evidence.Collector = name
		}
	}
	if o.Alerts.Lease == "" && at.url != "" && o.Access.InCluster {
		if namespace, err := os.ReadFile("/var/run/secrets/kubernetes.io/serviceaccount/namespace"); err == nil {
			o.Alerts.Lease = strings.TrimSpace(string(namespace)) + "/flowaudit-alerts"
		}
	}
}

// maxDays is what a time.Duration holds, and more than any disk.
const maxDays = 100_000

// parseDays reads a duration that may be in days.
func parseDays(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseFloat(days, 64)
		if err != nil || !(math.Abs(n) <= maxDays) {
			return 0, fmt.Errorf("%q is no number of days", s)
		}
		return time.Duration(n * 24 * float64(time.Hour)), nil
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("%q is no duration: want such as 12h or 30d", s)
	}
	return d, nil
}

// parseSize reads a number of bytes, such as 200GB or 1TiB.
func parseSize(s string) (uint64, error) {
	number := strings.TrimRight(s, "KMGTiB")
	n, err := strconv.ParseFloat(number, 64)
	factor, known := map[string]float64{
		"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
	}[s[len(number):]]
	if err != nil || !known || !(n >= 0) || n*factor > math.MaxInt64 {
		return 0, fmt.Errorf("%q is no size: want such as 200GB or 1TiB", s)
	}
	return uint64(n * factor), nil
}
