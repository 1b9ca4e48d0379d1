package conntrack

import (
	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/flowaudit/flowaudit/agent/nftable"
)

// tableName is the nftables table that switches tracking on.
const tableName = "flowaudit"

// Activate switches connection tracking on in the network namespace of the
// calling thread, where no rule asks for it: it adds a table with rules that
// look at the connection's state and decide nothing. The table vanishes with
// the process; one that an agent left on a kernel before 5.12 is replaced.
// release removes it.
func Activate() (release func() error, err error) {
	t, err := nftable.Add(nftable.Options{Name: tableName, Fill: func(conn *nftables.Conn, table *nftables.Table, _ bool) {
		for name, hook := range map[string]*nftables.ChainHook{"prerouting": nftables.ChainHookPrerouting, "output": nftables.ChainHookOutput} {
			chain := conn.AddChain(&nftables.Chain{
				Name: name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityMangle,
			})
			// A rule that loads the state is enough: loading it needs tracking.
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Ct{Register: 1, Key: expr.CtKeySTATE}}})
		}
	}})
	if err != nil {
		return nil, err
	}
	return t.Close, nil
}
