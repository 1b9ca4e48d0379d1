package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/nftables"
	ctnetlink "github.com/ti-mo/conntrack"

	"github.com/flowaudit/flowaudit/agent/ipvs"
	"github.com/flowaudit/flowaudit/agent/nflog"
)

// Node is what a node shows to somebody who looks and changes nothing.
type Node struct {
	CNI      []Configuration   // of /etc/cni/net.d, by file name; container runtimes take the first
	Plugins  []Plugin          // that show themselves
	Sources  []Found           // that auto would read
	Notes    []string          // what was found and is not read
	Groups   map[uint16]string // NFLOG groups that are read, and by whom
	Sysctls  map[string]string // by name, such as net.core.rmem_max; absent where the kernel has none
	Services int               // that IPVS serves
	Bridges  []string          // network interfaces that are bridges
	// Features are what the sources need of the kernel; nil for what is there.
	Features map[string]error
}

// Found is a source that auto reads.
type Found struct {
	Source string // as --source takes it
	Why    string
}

// Names of features.
const (
	FeatureNFTables  = "nf_tables"
	FeatureNFLOG     = "nfnetlink_log"
	FeatureConntrack = "ctnetlink"
)

// Sysctls lists the kernel's settings that Inspect reads.
func Sysctls() []string {
	return []string{
		"net.netfilter.nf_conntrack_acct", "net.netfilter.nf_conntrack_events", "net.netfilter.nf_conntrack_timestamp",
		"net.netfilter.nf_conntrack_count", "net.netfilter.nf_conntrack_max",
		"net.bridge.bridge-nf-call-iptables", "net.core.rmem_max", "net.ipv4.vs.conntrack",
	}
}

// Inspect looks at this node, in the network namespace of the calling thread.
// What it may not see is not there, or is a feature's error: it needs root.
func Inspect() Node {
	h := thisHost()
	n := inspect(h)
	n.Features = map[string]error{FeatureNFTables: hasNFTables(), FeatureNFLOG: hasNFLOG(), FeatureConntrack: hasConntrack()}
	return n
}

// inspect reads what files and the netfilter rules say.
func inspect(h host) Node {
	n := Node{CNI: configurations(h.root), Plugins: recognize(h), Groups: h.groups, Sysctls: make(map[string]string)}
	found, notes := detect(h)
	n.Notes = notes
	for _, c := range found {
		n.Sources = append(n.Sources, Found{c.String(), c.why})
	}
	for _, name := range Sysctls() {
		path := filepath.Join(h.root, "proc/sys", strings.ReplaceAll(name, ".", "/"))
		if b, err := os.ReadFile(path); err == nil {
			n.Sysctls[name] = strings.TrimSpace(string(b))
		}
	}
	if services, err := ipvs.Read(h.root); err == nil {
		n.Services = services.Len()
	} else {
		n.Notes = append(n.Notes, err.Error())
	}
	bridges, _ := filepath.Glob(filepath.Join(h.root, "sys/class/net/*/bridge")) // the pattern is well-formed
	for _, b := range bridges {
		n.Bridges = append(n.Bridges, filepath.Base(filepath.Dir(b)))
	}
	slices.Sort(n.Bridges)
	return n
}

func hasNFTables() error {
	c, err := nftables.New()
	if err == nil {
		_, err = c.ListTables()
	}
	if err != nil {
		return fmt.Errorf("list nftables' tables: %w", err)
	}
	return nil
}

func hasNFLOG() error {
	_, err := nflog.Owners()
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("the kernel has no NFLOG: /proc/net/netfilter/nfnetlink_log is missing")
	}
	return err
}

func hasConntrack() error {
	c, err := ctnetlink.Dial(nil)
	if err != nil {
		return fmt.Errorf("open connection tracking: %w", err)
	}
	_, err = c.Stats()
	if err = errors.Join(err, c.Close()); err != nil {
		return fmt.Errorf("ask connection tracking: %w", err)
	}
	return nil
}
