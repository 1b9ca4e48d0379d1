package agent

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/nftables"

	"github.com/flowaudit/flowaudit/agent/hubble"
	"github.com/flowaudit/flowaudit/agent/nflog"
)

// host is what a node shows of its network plugin.
type host struct {
	root   string            // of the file system
	groups map[uint16]string // NFLOG groups that are read, and by whom
	chains []string          // names of netfilter tables and chains, as nft lists them
}

// thisHost looks around. What cannot be seen is not there: each source says
// by itself what it lacks.
func thisHost() host {
	h := host{root: "/"}
	h.groups, _ = nflog.Owners()
	if c, err := nftables.New(); err == nil {
		if chains, err := c.ListChains(); err == nil {
			for _, ch := range chains {
				h.chains = append(h.chains, ch.Table.Name, ch.Name)
			}
		}
	}
	return h
}

// exists gives the first file of a pattern, without the root.
func (h host) exists(patterns ...string) (path string, ok bool) {
	for _, p := range patterns {
		if found, err := filepath.Glob(filepath.Join(h.root, p)); err == nil && len(found) > 0 {
			rel, err := filepath.Rel(h.root, found[0])
			return "/" + rel, err == nil
		}
	}
	return "", false
}

// chain gives the first netfilter table or chain whose name begins so.
func (h host) chain(prefixes ...string) (name string, ok bool) {
	for _, c := range h.chains {
		if slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(c, p) }) {
			return c, true
		}
	}
	return "", false
}

const whyFelixEBPF = "Calico's eBPF maps are there, so that Felix's flows are all there is"

// detect finds the sources of a node's network plugin. notes say what was found
// and is not read.
func detect(h host) (found []chosen, notes []string) {
	add := func(name, why string) { found = append(found, chosen{Choice{Name: name}, why}) }
	if path, ok := h.exists(hubble.Socket); ok {
		add(sourceHubble, path+" is there")
	}
	for _, name := range slices.Sorted(maps.Keys(pluginLogs())) {
		if path, ok := h.exists(pluginLogs()[name].path); ok {
			add(name, path+" is there")
		}
	}
	chain, netfilter := h.chain("KUBE-ROUTER-", "KUBE-POD-FW-", "kube-router-filter-")
	path, k3s := h.exists("/var/lib/rancher/k3s/agent", "/etc/rancher/k3s")
	owner, taken := h.groups[kubeRouterGroup]
	switch {
	case !netfilter && !k3s:
	case taken:
		notes = append(notes, "nflog:100 is not read: "+owner+" has it, and a group has one reader")
	case netfilter && !k3s:
		add(sourceKubeRouter, "netfilter has "+chain)
	default:
		add(sourceK3s, path+" is there")
	}
	n, more := detectCalico(h)
	found, notes = append(found, n...), append(notes, more...)
	if chain, ok := h.chain(enforcers()...); ok && !elsewhere(found) {
		add(sourceTap, chain+" refuses by netfilter, where attempts that conntrack never confirms show all of it")
	}
	if len(found) == 0 {
		notes = append(notes, "auto found no network plugin that tells its refusals: name one by --source, see docs/sources.md")
	}
	return found, notes
}

// enforcers begin the names of tables and chains by which network plugins
// refuse packets in netfilter.
func enforcers() (prefixes []string) {
	for _, t := range traces() {
		prefixes = append(prefixes, t.chains...)
	}
	return prefixes
}

func detectCalico(h host) (found []chosen, notes []string) {
	if _, ok := h.exists("/sys/fs/bpf/tc/globals/cali_*", "/sys/fs/bpf/calico/*"); ok {
		return []chosen{{Choice{Name: sourceFelix}, whyFelixEBPF}}, nil
	}
	chain, ok := h.chain("cali-")
	if !ok {
		return nil, nil
	}
	if owner, taken := h.groups[calicoInbound]; taken {
		return nil, []string{"calico is not read: " + owner + " has NFLOG groups 1 and 2"}
	}
	// Whoever takes the groups takes them from Felix.
	return nil, []string{"calico is not read: Calico is there (" + chain + "), and its groups are Felix's own: see --source felix, calico and kernel-log"}
}
