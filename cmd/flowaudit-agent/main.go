// Command flowaudit-agent reports the flows of one node, or of one pod, to a collector.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/flowaudit/flowaudit/agent"
	"github.com/flowaudit/flowaudit/agent/confine"
	"github.com/flowaudit/flowaudit/agent/nflog"
	"github.com/flowaudit/flowaudit/flow"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
	"github.com/flowaudit/flowaudit/proto/zstd"
)

// version is set by the linker.
var version = "devel"

// collectPercent keeps the heap close to what is live: the hot path allocates
// nothing, so collecting often costs little.
const collectPercent = 30

func main() { os.Exit(run(os.Args[1:], os.Getenv, os.Stdout, os.Stderr)) }

func run(args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	if getenv("GOGC") == "" {
		debug.SetGCPercent(collectPercent)
	}
	o, show, err := parse(args, getenv, stdout)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "flowaudit-agent: %v\nSee flowaudit-agent --help.\n", err)
		return 2
	case show:
		fmt.Fprintln(stdout, "flowaudit-agent", version)
		return 0
	}
	o.Log, err = o.Monitor.Logger(stderr)
	if err != nil {
		fmt.Fprintf(stderr, "flowaudit-agent: %v\n", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends at once
	zstd.Register()
	if err := giveUp(&o); err != nil {
		fmt.Fprintf(stderr, "flowaudit-agent: %v\n", err)
		return 1
	}
	if err := agent.Run(ctx, o); err != nil {
		fmt.Fprintf(stderr, "flowaudit-agent: %v\n", err)
		return 1
	}
	return 0
}

// giveUp keeps the capabilities that the sources need: CAP_NET_ADMIN for
// netlink, and for logs what reading them may take. Accounting is switched on
// by whoever may write to /proc/sys.
func giveUp(o *agent.Options) error {
	if o.EnableAccounting {
		return nil
	}
	keep, names := []uintptr{unix.CAP_NET_ADMIN}, []string{"CAP_NET_ADMIN"}
	kernel, files := o.Logs()
	if kernel {
		keep, names = append(keep, unix.CAP_SYSLOG), append(names, "CAP_SYSLOG")
	}
	if files {
		keep, names = append(keep, unix.CAP_DAC_READ_SEARCH), append(names, "CAP_DAC_READ_SEARCH")
	}
	err := confine.To(keep...)
	if errors.Is(err, confine.ErrBuild) {
		o.Log.Warn("the agent keeps all its capabilities", "error", err)
		return nil
	}
	if err == nil {
		o.Log.Info("the agent has given up its capabilities but for these", "kept", strings.Join(names, " "))
	}
	return err
}

const usage = `Reports who talked to whom, and who was refused, to a flowaudit-collector.

Usage:
  flowaudit-agent [flags]

Examples:
  # in a DaemonSet, pods named by the API server
  flowaudit-agent --collector collector:4245 --in-cluster --nflog-group 100

  # a node whose network policies log refusals to NFLOG group 100 (kube-router, k3s)
  flowaudit-agent --collector collector:4245 --node-name "$(hostname)" --nflog-group 100

  # Cilium, and a node whose network plugin is found by itself
  flowaudit-agent --collector collector:4245 --source hubble
  flowaudit-agent --collector collector:4245 --source auto

  # any network plugin that enforces with netfilter, also one that logs nothing
  flowaudit-agent --collector collector:4245 --tap --tap-pods 10.244.0.0/16

  # inside a pod, its identity from the downward API
  flowaudit-agent --collector collector:4245 --scope pod

Flags:
`

// parse reads flags; the environment gives what a pod's specification can.
func parse(args []string, getenv func(string) string, stdout io.Writer) (o agent.Options, show bool, err error) {
	o = agent.DefaultOptions()
	o.Version = version
	o.Node = getenv("NODE_NAME")
	o.StateDir = getenv("STATE_DIRECTORY")
	o.Collector.Address = flowauditv1.DefaultAddress
	fs := pflag.NewFlagSet("flowaudit-agent", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.Usage = func() { fmt.Fprint(stdout, usage, fs.FlagUsages()) }
	var groups, sources []string
	var scope, podLabels, granularity, confirmed string
	fs.StringVar(&o.Collector.Address, "collector", o.Collector.Address, "`address` of the collector, host:port or unix:PATH")
	fs.StringVar(&o.Node, "node-name", o.Node, "`name` of this node as in the cluster (default: $NODE_NAME)")
	fs.StringVar(&o.Cluster, "cluster", o.Cluster, "`name` or UID of the cluster")
	fs.StringVar(&scope, "scope", "node", "what to look at: node, or pod for the agent's own pod, whose identity is then read from POD_NAME, POD_NAMESPACE, POD_UID, POD_IPS and NODE_NAME")
	fs.StringVar(&podLabels, "pod-labels", "", "`file` with the pod's labels, of a downward API volume (with --scope pod)")
	fs.StringArrayVar(&sources, "source", nil, "`name` of a source beside connection tracking, or NAME=ADDRESS where it is not at its usual place; may be repeated: "+
		strings.Join(agent.SourceNames(), ", ")+". auto, the default without --nflog-group, takes what the node's network plugin offers. See docs/sources.md")
	fs.StringArrayVar(&groups, "nflog-group", nil, "NFLOG `group` to read and what its records mean: NUMBER=denied, allowed, prefix where the log prefix tells, or kube-router or calico for theirs; may be repeated")
	fs.BoolVar(&o.Conntrack, "conntrack", o.Conntrack, "read connection tracking")
	tapFlags(fs, &o)
	fs.StringVar(&confirmed, "trust-confirmed", string(o.ConfirmedAllowed), "take a tracked connection to a local pod for an allowed one, also without a reply: yes where netfilter enforces, no elsewhere; auto says yes with --nflog-group")
	fs.DurationVar(&o.Window, "window", o.Window, "how long repeats are merged into one flow")
	fs.DurationVar(&o.UnansweredAfter, "unanswered-after", o.UnansweredAfter, "how long a connection may wait for its first reply")
	fs.StringVar(&granularity, "granularity", "pair", "one flow a window for each pair of addresses and port, or connection for each connection")
	fs.DurationVar(&o.DumpInterval, "dump-interval", 0, "how often the table of connections is read for the counters of long ones (default 10s)")
	fs.BoolVar(&o.EnableAccounting, "enable-accounting", false, "switch on conntrack's counters of packets and bytes (sysctl net.netfilter.nf_conntrack_acct), and exit: for an init container, as only who may write to /proc/sys can")
	fs.StringVar(&o.Manifests, "manifests", "", "`directory` of cluster objects as YAML, which name pods and Services")
	o.Access.Flags(fs)
	spoolSize := "1GiB"
	fs.StringVar(&o.StateDir, "state-dir", o.StateDir, "`directory` where live connections outlast a restart, so that they are not counted twice, and batches until the collector has committed them (default: $STATE_DIRECTORY)")
	fs.StringVar(&o.SpoolDir, "spool-dir", "", "`directory` where batches outlast a restart, if it is not the folder spool of --state-dir; without either they wait in memory")
	fs.StringVar(&spoolSize, "spool-size", spoolSize, "`size` of the spool on disk; as it fills, windows become longer, and when it is full the oldest files are dropped and told as gaps, those of refused flows last")
	fs.DurationVar(&o.SpoolAge, "spool-age", o.SpoolAge, "how long a batch may wait in the spool")
	fs.IntVar(&o.MaxConnections, "max-connections", o.MaxConnections, "live connections that are kept apart")
	fs.IntVar(&o.MaxFlows, "max-flows", o.MaxFlows, "flows of a window; beyond it the window closes early")
	fs.IntVar(&o.MaxQueue, "max-queue", o.MaxQueue, "flows that wait in memory; without a spool the oldest allowed ones beyond it are dropped and counted")
	o.Collector.Flags(fs)
	o.Collector.TokenFlag(fs)
	o.Monitor.Flags(fs)
	fs.BoolVar(&show, "version", false, "print the version")
	if err := fs.Parse(args); err != nil {
		return o, false, err
	}
	if fs.NArg() > 0 {
		return o, false, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if show || o.EnableAccounting {
		return o, show, nil
	}
	if o.Scope, err = parseScope(scope); err != nil {
		return o, false, err
	}
	switch strings.ToLower(granularity) {
	case "pair":
	case "connection":
		o.PerConnection = true
	default:
		return o, false, fmt.Errorf("--granularity %q: want pair or connection", granularity)
	}
	o.ConfirmedAllowed = agent.Confirmed(confirmed)
	if o.SpoolMax, err = parseSize(spoolSize); err != nil {
		return o, false, fmt.Errorf("--spool-size: %w", err)
	}
	if o.Sources, err = parseSources(sources, len(groups) > 0 || o.Scope == flow.ScopePod); err != nil {
		return o, false, err
	}
	for _, g := range groups {
		group, err := nflog.ParseGroup(g)
		if err != nil {
			return o, false, fmt.Errorf("--nflog-group: %w", err)
		}
		o.NFLOG = append(o.NFLOG, group)
	}
	if o.Scope == flow.ScopePod {
		if o.Pod, err = agent.PodFromEnvironment(getenv, podLabels); err != nil {
			return o, false, err
		}
	}
	return o, false, o.Validate()
}

// parseSources reads --source; told says that it is known otherwise what to read.
func parseSources(texts []string, told bool) (all []agent.Choice, err error) {
	if len(texts) == 0 && !told {
		texts = []string{agent.SourceAuto}
	}
	for _, s := range texts {
		c, err := agent.ParseChoice(s)
		if err != nil {
			return nil, fmt.Errorf("--source: %w", err)
		}
		all = append(all, c)
	}
	return all, nil
}

// tapFlags are those of the tap.
func tapFlags(fs *pflag.FlagSet, o *agent.Options) {
	fs.BoolVar(&o.Tap, "tap", o.Tap, "log the first packet of each connection attempt by nftables rules of the agent's own (table inet flowaudit-tap): what conntrack never confirms was refused. Needs nothing of the network plugin, works where netfilter enforces, decides nothing, and goes with the agent")
	fs.Uint16Var(&o.TapGroup, "tap-group", o.TapGroup, "NFLOG `group` of the tap, one that nobody else reads")
	fs.Func("tap-pods", "limit the tap to these pod `addresses`, as prefixes, comma-separated; may be repeated", func(s string) error {
		for _, text := range strings.Split(s, ",") {
			p, err := netip.ParsePrefix(strings.TrimSpace(text))
			if err != nil {
				return fmt.Errorf("want prefixes such as 10.244.0.0/16 or fd00:10:244::/56: %w", err)
			}
			o.TapPods = append(o.TapPods, p.Masked())
		}
		return nil
	})
}

// parseSize reads a size such as 500MB or 1GiB.
func parseSize(s string) (int64, error) {
	number := strings.TrimRight(s, "KMGTiB")
	n, err := strconv.ParseFloat(number, 64)
	factor, known := map[string]float64{
		"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
	}[s[len(number):]]
	if err != nil || !known || !(n >= 0) || n*factor > 1<<62 {
		return 0, fmt.Errorf("%q is no size: want such as 500MB or 1GiB", s)
	}
	return int64(n * factor), nil
}

func parseScope(s string) (flow.Scope, error) {
	switch s {
	case "node":
		return flow.ScopeNode, nil
	case "pod":
		return flow.ScopePod, nil
	}
	return 0, fmt.Errorf("--scope %q: want node or pod", s)
}
