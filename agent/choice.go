package agent

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/flowaudit/flowaudit/agent/felix"
	"github.com/flowaudit/flowaudit/agent/hubble"
	"github.com/flowaudit/flowaudit/agent/nflog"
	"github.com/flowaudit/flowaudit/agent/policylog"
	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/proto/dial"
)

// Choice names a source, as --source does.
type Choice struct {
	Name    string
	Address string // where it is, if not at its usual place
}

// Names of sources beside those of logs.
const (
	SourceAuto       = "auto"
	sourceNFLOG      = "nflog"
	sourceConntrack  = "conntrack"
	sourceKubeRouter = "kube-router"
	sourceK3s        = "k3s"
	sourceCalico     = "calico"
	sourceFelix      = "felix"
	sourceHubble     = "hubble"
	sourceKernelLog  = "kernel-log"
	sourceTap        = "tap"
	sourceKubeNetPol = "kube-network-policies"
)

// SourceNames lists the names that ParseChoice takes.
func SourceNames() []string {
	names := []string{
		SourceAuto, sourceNFLOG + ":GROUP", sourceConntrack, sourceKubeRouter, sourceK3s, sourceCalico, sourceFelix, sourceHubble, sourceKernelLog, sourceTap,
	}
	for name := range pluginLogs() {
		names = append(names, name)
	}
	slices.Sort(names[1:])
	return names
}

// Logs reports whether the kernel's log may be read, and whether files of logs.
func (o *Options) Logs() (kernel, files bool) {
	logs := pluginLogs()
	for _, c := range o.Sources {
		_, log := logs[c.Name]
		kernel = kernel || c.Name == sourceKernelLog || c.Name == SourceAuto
		files = files || log || c.Name == SourceAuto
	}
	return kernel, files
}

// String gives the form that ParseChoice reads.
func (c Choice) String() string {
	switch {
	case c.Name == sourceNFLOG:
		return c.Name + ":" + c.Address
	case c.Address != "":
		return c.Name + "=" + c.Address
	}
	return c.Name
}

// ParseChoice reads NAME, NAME=ADDRESS, nflog:GROUP or nflog:GROUP=MEANING.
func ParseChoice(s string) (c Choice, err error) {
	if group, ok := strings.CutPrefix(s, sourceNFLOG+":"); ok {
		c = Choice{sourceNFLOG, group}
	} else {
		name, address, given := strings.Cut(s, "=")
		if c = (Choice{name, address}); given && address == "" {
			return c, fmt.Errorf("parse source %q: no address behind =", s)
		}
	}
	switch c.Name {
	case SourceAuto, sourceConntrack, sourceKubeRouter, sourceK3s, sourceCalico, sourceTap:
		if c.Address != "" {
			err = errors.New("it takes no address")
		}
	case sourceNFLOG:
		_, err = nflog.ParseGroup(c.Address)
	case sourceFelix:
		if c.Address != "" && !filepath.IsAbs(c.Address) {
			err = errors.New("want the path of a socket")
		}
	case sourceHubble:
		_, err = hubbleAddress(c.Address)
	case sourceKernelLog:
		_, err = kernelLog(c.Address)
	default:
		if _, ok := pluginLogs()[c.Name]; !ok {
			return c, fmt.Errorf("parse source %q: want one of %s", s, strings.Join(SourceNames(), ", "))
		}
		if c.Address != "" && !filepath.IsAbs(c.Address) {
			err = errors.New("want the path of a log, or a pattern of one")
		}
	}
	if err != nil {
		return c, fmt.Errorf("parse source %q: %w", s, err)
	}
	return c, nil
}

// hubbleAddress reads unix:PATH, a path, host:port, or
// tls://host:port?ca=FILE&cert=FILE&key=FILE&server-name=NAME.
func hubbleAddress(s string) (o dial.Options, err error) {
	switch {
	case s == "":
		o.Address = "unix:" + hubble.Socket
	case filepath.IsAbs(s):
		o.Address = "unix:" + s
	case strings.HasPrefix(s, "tls://"):
		u, err := url.Parse(s)
		if err != nil {
			return o, err
		}
		q := u.Query()
		for name := range q {
			if !slices.Contains([]string{"ca", "cert", "key", "server-name"}, name) {
				return o, fmt.Errorf("%q: want ca, cert, key or server-name", name)
			}
		}
		o = dial.Options{Address: u.Host, TLS: true, CA: q.Get("ca"), Cert: q.Get("cert"), Key: q.Get("key"), ServerName: q.Get("server-name")}
	default:
		o.Address = s
	}
	if !strings.Contains(o.Address, ":") {
		return o, errors.New("want unix:PATH, host:port, or tls://host:port?ca=FILE")
	}
	return o, nil
}

// kernelLog reads PREFIX or PREFIX=MEANING: what a LOG rule's record begins
// with, and what it stands for.
func kernelLog(s string) (*policylog.Kernel, error) {
	prefix, meaning, given := strings.Cut(s, "=")
	if prefix == "" {
		prefix = policylog.CalicoLogPrefix
	}
	verdict := flow.VerdictDenied
	switch {
	case !given || meaning == "denied":
	case meaning == "allowed":
		verdict = flow.VerdictAllowed
	default:
		return nil, fmt.Errorf("meaning %q: want denied or allowed", meaning)
	}
	return policylog.NewKernel(prefix, verdict), nil
}

// chosen is a source that is to be read, and why.
type chosen struct {
	Choice
	why string
}

// choose decides what is read: it adds NFLOG groups to those that were given,
// and gives the other sources.
func (a *agent) choose(look func() host) (plugins []chosen) {
	var all []chosen
	for _, c := range a.Sources {
		if c.Name == SourceAuto {
			found, notes := detect(look())
			all = append(all, found...)
			a.notes = append(a.notes, notes...)
			continue
		}
		all = append(all, chosen{c, "asked for"})
	}
	seen := make(map[Choice]bool)
	for _, c := range all {
		if seen[c.Choice] {
			continue
		}
		seen[c.Choice] = true
		a.notes = append(a.notes, c.String()+" is read: "+c.why)
		switch c.Name {
		case sourceConntrack:
			a.Conntrack = true
		case sourceTap:
			a.Tap = true
		case sourceNFLOG:
			if g, err := nflog.ParseGroup(c.Address); err == nil { // it was checked when it was given
				a.addGroup(g)
			}
		case sourceKubeRouter, sourceK3s:
			a.addGroup(nflog.Group{Number: kubeRouterGroup, Meaning: nflog.MeaningKubeRouter})
		case sourceCalico:
			a.addGroup(nflog.Group{Number: calicoInbound, Meaning: nflog.MeaningCalico})
			a.addGroup(nflog.Group{Number: calicoOutbound, Meaning: nflog.MeaningCalico})
		default:
			plugins = append(plugins, c)
		}
	}
	for _, n := range a.notes {
		a.Log.Info(n)
	}
	return plugins
}

// The groups that network plugins log to.
const (
	kubeRouterGroup = 100
	calicoInbound   = 1
	calicoOutbound  = 2
)

// addGroup adds an NFLOG group that was not given by itself.
func (a *agent) addGroup(g nflog.Group) {
	if !slices.ContainsFunc(a.NFLOG, func(o nflog.Group) bool { return o.Number == g.Number }) {
		a.NFLOG = append(slices.Clip(a.NFLOG), g)
	}
}

// elsewhere reports whether a source's plugin enforces where conntrack's
// confirmation says nothing: by eBPF, or in Open vSwitch.
func elsewhere(plugins []chosen) bool {
	return slices.ContainsFunc(plugins, func(c chosen) bool {
		switch c.Name {
		case sourceFelix: // with the iptables data plane conntrack does say it
			return c.why == whyFelixEBPF
		case sourceHubble:
			return true
		}
		return pluginLogs()[c.Name].elsewhere
	})
}

// socketOf is felix' address or its usual one.
func socketOf(c Choice) string {
	if c.Address == "" {
		return felix.Socket
	}
	return c.Address
}

// single reports whether there is one source of a name on a node.
func single(name string) bool { return name == sourceFelix || name == sourceHubble }

// labels reports whether the network plugin labels the connections that it lets
// through: kube-network-policies does.
func (a *agent) labels() bool {
	read := slices.ContainsFunc(a.plugins, func(c chosen) bool { return c.Name == sourceKubeNetPol })
	_, there := thisHost().chain(kubeNetPolTables()...)
	return a.Conntrack && (read || there)
}

// witness reports whether rules of netfilter log refusals, and conntrack can
// contradict them.
func (a *agent) witness() bool {
	kernelLog := slices.ContainsFunc(a.plugins, func(c chosen) bool { return c.Name == sourceKernelLog })
	return a.Conntrack && (len(a.NFLOG) > 0 || kernelLog)
}
