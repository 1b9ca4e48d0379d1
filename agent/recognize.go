package agent

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/flowaudit/flowaudit/agent/hubble"
)

// Enforcement says whether a network plugin enforces NetworkPolicy.
type Enforcement uint8

// The enforcements.
const (
	EnforcementUnknown   Enforcement = iota
	EnforcementNone                  // it accepts policies and does nothing
	EnforcementNetfilter             // by rules that connection tracking sees
	EnforcementElsewhere             // by eBPF, or in Open vSwitch
)

var enforcementNames = [...]string{"unknown", "none", "netfilter", "elsewhere"}

// String returns the enforcement as it appears in JSON.
func (e Enforcement) String() string {
	if int(e) < len(enforcementNames) {
		return enforcementNames[e]
	}
	return enforcementNames[EnforcementUnknown]
}

// Plugin is a network plugin that a node shows.
type Plugin struct {
	Name        string
	Enforcement Enforcement
	Why         string // what shows it
}

// trace is by what a plugin is recognized: the first chain, else the first file.
type trace struct {
	name   string
	how    Enforcement
	chains []string // prefixes of names of netfilter tables and chains
	files  []string // patterns
}

func traces() []trace {
	logs := pluginLogs()
	return []trace{
		{"Calico (eBPF)", EnforcementElsewhere, nil, []string{"/sys/fs/bpf/tc/globals/cali_*", "/sys/fs/bpf/calico/*"}},
		{"Calico", EnforcementNetfilter, []string{"cali-"}, nil},
		{"Cilium", EnforcementElsewhere, nil, []string{"/sys/fs/bpf/tc/globals/cilium_*", "/var/run/cilium/cilium.sock", hubble.Socket}},
		{"kube-router", EnforcementNetfilter, []string{"KUBE-ROUTER-", "KUBE-POD-FW-", "kube-router-filter-"}, nil},
		{"Weave Net", EnforcementNetfilter, []string{"WEAVE-NPC"}, []string{logs["weave"].path}},
		{"Romana", EnforcementNetfilter, []string{"ROMANA-"}, nil},
		{"kube-network-policies", EnforcementNetfilter, kubeNetPolTables(), []string{logs[sourceKubeNetPol].path}},
		{"Antrea", EnforcementElsewhere, nil, []string{"/var/run/antrea/cni.sock", logs["antrea"].path}},
		{"OVN-Kubernetes", EnforcementElsewhere, nil, []string{"/var/run/ovn-kubernetes/cni/ovn-cni-server.sock", logs["ovn"].path}},
		{"GKE Dataplane V2", EnforcementElsewhere, nil, []string{logs["gke"].path}},
		{"AWS VPC CNI", EnforcementElsewhere, nil, []string{logs["aws"].path}},
		{"Flannel", EnforcementNone, nil, []string{"/run/flannel/subnet.env", "/var/run/flannel/subnet.env"}},
	}
}

// kubeNetPolTables begin the names of kube-network-policies' nftables tables.
func kubeNetPolTables() []string {
	return []string{"kube-network-policies", "kindnet-network-policies"}
}

// recognize finds the plugins that a node shows, those that enforce first.
func recognize(h host) (found []Plugin) {
	for _, t := range traces() {
		if chain, ok := h.chain(t.chains...); ok {
			found = append(found, Plugin{t.name, t.how, "netfilter has " + chain})
		} else if path, ok := h.exists(t.files...); ok {
			found = append(found, Plugin{t.name, t.how, path + " is there"})
		}
	}
	return found
}

// Configuration is a CNI configuration file.
type Configuration struct {
	File  string
	Name  string   // of the network
	Types []string // of its plugins, such as flannel and portmap; nil where it cannot be read
}

// configurations reads /etc/cni/net.d in the order of file names.
func configurations(root string) (all []Configuration) {
	for _, pattern := range []string{"*.conf", "*.conflist", "*.json"} {
		files, _ := filepath.Glob(filepath.Join(root, "etc/cni/net.d", pattern)) // the pattern is well-formed
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				continue
			}
			c := readConfiguration(b)
			c.File = filepath.Base(f)
			all = append(all, c)
		}
	}
	slices.SortFunc(all, func(a, b Configuration) int { return strings.Compare(a.File, b.File) })
	return all
}

// readConfiguration reads a list of plugins, or a single one.
func readConfiguration(b []byte) (c Configuration) {
	var file struct {
		Name, Type string
		Plugins    []struct{ Type string }
	}
	if json.Unmarshal(b, &file) != nil {
		return c
	}
	c.Name = file.Name
	if file.Type != "" {
		c.Types = append(c.Types, file.Type)
	}
	for _, p := range file.Plugins {
		c.Types = append(c.Types, p.Type)
	}
	return c
}
