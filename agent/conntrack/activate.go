package conntrack

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// tableName is the nftables table that switches tracking on.
const tableName = "flowaudit"

// Activate switches connection tracking on in the network namespace of the
// calling thread, where no rule asks for it: it adds a table with rules that
// look at the connection's state and decide nothing. A table that a killed
// agent left is replaced. release removes it again.
func Activate() (release func() error, err error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("open nftables socket: %w", err)
	}
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	conn.AddTable(table) // so that there is one to delete
	conn.DelTable(table)
	conn.AddTable(table)
	for name, hook := range map[string]*nftables.ChainHook{"prerouting": nftables.ChainHookPrerouting, "output": nftables.ChainHookOutput} {
		chain := conn.AddChain(&nftables.Chain{
			Name: name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityMangle,
		})
		// A rule that loads the state is enough: loading it needs tracking.
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Ct{Register: 1, Key: expr.CtKeySTATE}}})
	}
	if err := conn.Flush(); err != nil {
		return nil, errors.Join(fmt.Errorf("add table %s: %w: the agent needs CAP_NET_ADMIN in this network namespace", tableName, err), conn.CloseLasting())
	}
	return func() error {
		conn.DelTable(table)
		if err := conn.Flush(); err != nil {
			return errors.Join(fmt.Errorf("remove table %s: %w", tableName, err), conn.CloseLasting())
		}
		return conn.CloseLasting()
	}, nil
}

// acctPath is the switch of packet and byte counters. The kernel shows each
// thread its own network namespace's value.
const acctPath = "/proc/sys/net/netfilter/nf_conntrack_acct"

// Account tries to switch packet and byte counters on, in the network namespace
// of the calling thread.
func Account() error {
	if err := os.WriteFile(acctPath, []byte("1"), 0); err != nil {
		return fmt.Errorf("switch on packet and byte counters: %w", err)
	}
	return nil
}

// Limits says in plain words what the kernel's settings keep from being seen,
// in the network namespace of the calling thread.
func Limits() []string {
	var limits []string
	if off(acctPath) {
		limits = append(limits, "packets and bytes are absent: net.netfilter.nf_conntrack_acct is 0, set it to 1")
	}
	if off("/proc/sys/net/netfilter/nf_conntrack_events") {
		limits = append(limits, "connections are seen by dumps only: net.netfilter.nf_conntrack_events is 0, set it to 1 or 2")
	}
	return limits
}

func off(path string) bool {
	b, err := os.ReadFile(path)
	return err == nil && strings.TrimSpace(string(b)) == "0"
}
