package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/flowaudit/flowaudit/agent/nflog"
	"github.com/flowaudit/flowaudit/agent/spool"
	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/kube"
	"github.com/flowaudit/flowaudit/monitor"
	"github.com/flowaudit/flowaudit/proto/dial"
)

// Options configure an agent.
type Options struct {
	Node      string // name of this node, as in the cluster
	Cluster   string // name or UID of the cluster
	Instance  string // of this agent; Node if empty
	Scope     flow.Scope
	Pod       Pod // of this agent, with ScopePod
	Collector dial.Options
	Version   string

	Sources      []Choice // beside NFLOG and Conntrack
	NFLOG        []nflog.Group
	Conntrack    bool
	DumpInterval time.Duration  // 0 takes the source's default
	Tap          bool           // log attempts by rules of our own
	TapGroup     uint16         // NFLOG group of the tap
	TapPods      []netip.Prefix // what the tap is limited to; empty for everything

	Window           time.Duration
	UnansweredAfter  time.Duration
	PerConnection    bool // one flow a connection
	MaxConnections   int  // live connections that are kept apart
	MaxFlows         int  // open flows of a window
	MaxQueue         int  // flows that wait for the collector
	ConfirmedAllowed Confirmed

	// EnableAccounting does nothing but switch on conntrack's counters of
	// packets and bytes, which needs more rights than an agent has.
	EnableAccounting bool

	Manifests string      // directory of cluster objects; empty for none
	Access    kube.Access // to the API server, if one is to be asked
	StateDir  string      // where live connections outlast a restart; empty for nowhere
	SpoolDir  string      // where batches wait; empty for StateDir's folder spool, or memory without that
	SpoolMax  int64       // bytes on disk
	SpoolAge  time.Duration
	Monitor   monitor.Options // where it tells about itself
	Log       *slog.Logger
}

// Confirmed says whether a connection to a local pod that conntrack has
// confirmed has passed its policy. It has where netfilter enforces: what a rule
// refuses is never confirmed. Where tc or eBPF enforce it says nothing.
type Confirmed string

// The ways to decide.
const (
	ConfirmedAuto  Confirmed = "auto" // yes with an NFLOG source, whose rules are netfilter's
	ConfirmedTrust Confirmed = "yes"
	ConfirmedDoubt Confirmed = "no"
)

// DefaultOptions are what the flags begin with.
func DefaultOptions() Options {
	return Options{
		Cluster:          "default",
		Conntrack:        true,
		TapGroup:         4242,
		Window:           10 * time.Second,
		UnansweredAfter:  10 * time.Second,
		MaxConnections:   1 << 20,
		MaxFlows:         1 << 17,
		MaxQueue:         1 << 19,
		SpoolMax:         1 << 30,
		SpoolAge:         7 * 24 * time.Hour,
		ConfirmedAllowed: ConfirmedAuto,
	}
}

// Validate names everything that cannot work.
func (o *Options) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if o.Node == "" && o.Scope == flow.ScopeNode {
		bad("--node-name is empty: give the node's name as in the cluster, in a pod by NODE_NAME from spec.nodeName")
	}
	if o.Scope == flow.ScopePod && (o.Pod.Name == "" || o.Pod.Namespace == "") {
		bad("--scope=pod needs the pod's own name and namespace: set POD_NAME and POD_NAMESPACE by the downward API")
	}
	if len(o.Sources) == 0 && len(o.NFLOG) == 0 && !o.Conntrack {
		bad("nothing to read: give --source or --nflog-group, or leave --conntrack on")
	}
	if o.Tap && !o.Conntrack {
		bad("--tap needs --conntrack: an attempt was refused when conntrack never confirms it")
	}
	if o.Collector.Address == "" {
		bad("--collector is empty: give host:port or unix:PATH")
	}
	errs = append(errs, o.Access.Validate(o.Manifests), o.Monitor.Validate())
	if o.Access.Wanted() && o.Scope == flow.ScopePod {
		bad("--scope=pod asks no API server: its own name comes by the downward API, the rest from the collector")
	}
	if o.Window < time.Second || o.Window > time.Hour {
		bad("--window %s: want 1s to 1h", o.Window)
	}
	if o.UnansweredAfter < time.Second {
		bad("--unanswered-after %s: want at least 1s", o.UnansweredAfter)
	}
	if o.DumpInterval < 0 {
		bad("--dump-interval %s: want a time, or 0 for the default", o.DumpInterval)
	}
	for _, limit := range []struct {
		flag string
		n    int
	}{{"--max-connections", o.MaxConnections}, {"--max-flows", o.MaxFlows}, {"--max-queue", o.MaxQueue}} {
		if limit.n < 1000 {
			bad("%s %d: want at least 1000", limit.flag, limit.n)
		}
	}
	if o.SpoolMax < spool.MinBytes {
		bad("--spool-size %d: want at least %d bytes", o.SpoolMax, spool.MinBytes)
	}
	if o.SpoolAge < time.Minute {
		bad("--spool-age %s: want at least 1m", o.SpoolAge)
	}
	switch o.ConfirmedAllowed {
	case ConfirmedAuto, ConfirmedTrust, ConfirmedDoubt:
	default:
		bad("--trust-confirmed %q: want auto, yes or no", o.ConfirmedAllowed)
	}
	for i, c := range o.Sources {
		if slices.ContainsFunc(o.Sources[:i], func(before Choice) bool { return before.Name == c.Name && (before == c || single(c.Name)) }) {
			bad("--source %s is given twice", c.Name)
		}
	}
	seen := make(map[uint16]bool)
	if o.Tap {
		seen[o.TapGroup] = true
	}
	for _, g := range o.NFLOG {
		if seen[g.Number] {
			bad("--nflog-group %d is given twice, or is the tap's: see --tap-group", g.Number)
		}
		seen[g.Number] = true
	}
	return errors.Join(errs...)
}

// confirmed decides whether confirmed connections to local pods are allowed
// ones. elsewhere says that something else than netfilter enforces.
func (o *Options) confirmed(elsewhere bool) bool {
	switch o.ConfirmedAllowed {
	case ConfirmedTrust:
		return true
	case ConfirmedDoubt:
		return false
	}
	// What reaches a pod's own namespace has passed whatever enforces.
	return o.Scope == flow.ScopePod || (len(o.NFLOG) > 0 || o.Tap) && !elsewhere
}

// reporter names who reports: pods of one node must not be taken for one.
func (o *Options) reporter() string {
	if o.Scope == flow.ScopePod {
		return o.Pod.Namespace + "/" + o.Pod.Name
	}
	return o.Node
}

// spoolDir is where batches wait; empty for memory.
func (o *Options) spoolDir() string {
	if o.SpoolDir == "" && o.StateDir != "" {
		return filepath.Join(o.StateDir, "spool")
	}
	return o.SpoolDir
}

func (o *Options) instance() string {
	switch {
	case o.Instance != "":
		return o.Instance
	case o.Scope == flow.ScopePod && o.Pod.UID != "":
		return o.Pod.UID
	}
	return o.reporter()
}
