package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// tableName is the nftables table that switches tracking on.
const tableName = "flowaudit"

// ownerFlag is NFT_TABLE_F_OWNER (linux/netfilter/nf_tables.h, since 5.12):
// only the socket that made the table may change it, and it goes with the
// socket, also when the process is killed.
const ownerFlag = 1 << 1

// Activate switches connection tracking on in the network namespace of the
// calling thread, where no rule asks for it: it adds a table with rules that
// look at the connection's state and decide nothing. The table vanishes with
// the process; one that an agent left on a kernel before 5.12 is replaced.
// release removes it.
func Activate() (release func() error, err error) {
	var socket *netlink.Conn
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		socket = c
		return nil
	}))
	if err != nil {
		return nil, fmt.Errorf("open nftables socket: %w", err)
	}
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	if err := activate(conn, socket, table); err != nil {
		err = fmt.Errorf("add table %s: %w: the agent needs CAP_NET_ADMIN in this network namespace, and may run in it once only", tableName, err)
		return nil, errors.Join(err, conn.CloseLasting())
	}
	return func() error {
		conn.DelTable(table)
		if err := conn.Flush(); err != nil {
			return errors.Join(fmt.Errorf("remove table %s: %w", tableName, err), conn.CloseLasting())
		}
		return conn.CloseLasting()
	}, nil
}

func activate(conn *nftables.Conn, socket *netlink.Conn, table *nftables.Table) error {
	conn.DelTable(table)
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	err := addOwned(socket, table)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) { // before 5.12
		conn.AddTable(table)
	} else if err != nil {
		return err
	}
	for name, hook := range map[string]*nftables.ChainHook{"prerouting": nftables.ChainHookPrerouting, "output": nftables.ChainHookOutput} {
		chain := conn.AddChain(&nftables.Chain{
			Name: name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityMangle,
		})
		// A rule that loads the state is enough: loading it needs tracking.
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Ct{Register: 1, Key: expr.CtKeySTATE}}})
	}
	return conn.Flush()
}

// addOwned adds a table that belongs to the socket. The library sends no table
// flags, so the message is made here: a batch of one NFT_MSG_NEWTABLE.
func addOwned(socket *netlink.Conn, table *nftables.Table) error {
	attributes, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: append([]byte(table.Name), 0)},
		{Type: unix.NFTA_TABLE_FLAGS, Data: binary.BigEndian.AppendUint32(nil, ownerFlag)},
	})
	if err != nil {
		return err
	}
	nfgenmsg := func(family uint8, resource uint16) []byte {
		return binary.BigEndian.AppendUint16([]byte{family, unix.NFNETLINK_V0}, resource)
	}
	if _, err := socket.SendMessages([]netlink.Message{
		{Header: netlink.Header{Type: unix.NFNL_MSG_BATCH_BEGIN, Flags: netlink.Request}, Data: nfgenmsg(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)},
		{
			Header: netlink.Header{
				Type:  unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWTABLE,
				Flags: netlink.Request | netlink.Acknowledge | netlink.Create,
			},
			Data: append(nfgenmsg(uint8(table.Family), 0), attributes...),
		},
		{Header: netlink.Header{Type: unix.NFNL_MSG_BATCH_END, Flags: netlink.Request}, Data: nfgenmsg(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)},
	}); err != nil {
		return err
	}
	_, err = socket.Receive()
	return err
}
