// Package nftable adds nftables tables that vanish with the program that added them.
package nftable

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ownerFlag is NFT_TABLE_F_OWNER (linux/netfilter/nf_tables.h, since 5.12):
// only the socket that added the table may change it, also by a flush of the
// ruleset, and it goes with the socket, also when the process is killed.
const ownerFlag = 1 << 1

// Options describe a table.
type Options struct {
	Name string
	// Fill puts chains and rules into the table. owned says that the kernel
	// removes the table with the process.
	Fill func(conn *nftables.Conn, table *nftables.Table, owned bool)
	// Shared leaves the table without an owner, as a kernel before 5.12 does.
	Shared bool
}

// Table is a table of the inet family that one socket holds.
type Table struct {
	o      Options
	socket *netlink.Conn

	mu    sync.Mutex // a request and its answer belong together
	conn  *nftables.Conn
	owned bool
	rules map[string]int // rules in each chain, as they were added
}

// Add adds a table to the network namespace of the calling thread. One of the
// same name that a program left on a kernel before 5.12 is replaced; one that a
// running program owns is an error.
func Add(o Options) (*Table, error) {
	t := &Table{o: o}
	var err error
	if t.conn, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		t.socket = c
		return nil
	})); err != nil {
		return nil, fmt.Errorf("open nftables socket: %w", err)
	}
	if err := t.Restore(); err != nil {
		return nil, errors.Join(err, t.conn.CloseLasting())
	}
	return t, nil
}

func (t *Table) table() *nftables.Table {
	return &nftables.Table{Name: t.o.Name, Family: nftables.TableFamilyINet}
}

// Restore adds the table anew, also where something is left of it.
func (t *Table) Restore() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.restore()
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("add table inet %s: %w: the agent needs CAP_NET_ADMIN in this network namespace, and one agent may run in it", t.o.Name, err)
	}
	if err != nil {
		return fmt.Errorf("add table inet %s: %w", t.o.Name, err)
	}
	return nil
}

func (t *Table) restore() error {
	table := t.table()
	t.conn.DelTable(table)
	if err := t.conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	var err error
	if t.owned = !t.o.Shared; t.owned {
		err = t.addOwned()
	}
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) { // before 5.12
		t.owned = false
	} else if err != nil {
		return err
	}
	if !t.owned {
		t.conn.AddTable(table)
	}
	t.o.Fill(t.conn, table, t.owned)
	if err := t.conn.Flush(); err != nil {
		return err
	}
	t.rules, err = t.count()
	return err
}

// Owned reports whether the kernel lets nobody else change the table, and
// removes it with the process.
func (t *Table) Owned() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.owned
}

// Change makes changes of the table, all or none.
func (t *Table) Change(change func(*nftables.Conn, *nftables.Table)) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	change(t.conn, t.table())
	if err := t.conn.Flush(); err != nil {
		return fmt.Errorf("change table inet %s: %w", t.o.Name, err)
	}
	return nil
}

// Intact reports whether every chain still has its rules.
func (t *Table) Intact() (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now, err := t.count()
	if err != nil {
		return false, fmt.Errorf("list table inet %s: %w", t.o.Name, err)
	}
	for chain, n := range t.rules {
		if now[chain] != n {
			return false, nil
		}
	}
	return len(t.rules) > 0, nil
}

// count asks for the number of rules in each of the table's chains.
func (t *Table) count() (map[string]int, error) {
	chains, err := t.conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	n := make(map[string]int)
	for _, c := range chains {
		if c.Table.Name != t.o.Name {
			continue
		}
		rules, err := t.conn.GetRules(c.Table, c)
		if err != nil {
			return nil, err
		}
		n[c.Name] = len(rules)
	}
	return n, nil
}

// Close removes the table.
func (t *Table) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.conn.DelTable(t.table())
	err := t.conn.Flush()
	if errors.Is(err, unix.ENOENT) {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("remove table inet %s: %w", t.o.Name, err)
	}
	return errors.Join(err, t.conn.CloseLasting())
}

// addOwned adds a table that belongs to the socket. The library sends no table
// flags, so the message is made here: a batch of one NFT_MSG_NEWTABLE.
func (t *Table) addOwned() error {
	attributes, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: append([]byte(t.o.Name), 0)},
		{Type: unix.NFTA_TABLE_FLAGS, Data: binary.BigEndian.AppendUint32(nil, ownerFlag)},
	})
	if err != nil {
		return err
	}
	nfgenmsg := func(family uint8, resource uint16) []byte {
		return binary.BigEndian.AppendUint16([]byte{family, unix.NFNETLINK_V0}, resource)
	}
	if _, err := t.socket.SendMessages([]netlink.Message{
		{Header: netlink.Header{Type: unix.NFNL_MSG_BATCH_BEGIN, Flags: netlink.Request}, Data: nfgenmsg(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)},
		{
			Header: netlink.Header{
				Type:  unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWTABLE,
				Flags: netlink.Request | netlink.Acknowledge | netlink.Create,
			},
			Data: append(nfgenmsg(unix.NFPROTO_INET, 0), attributes...),
		},
		{Header: netlink.Header{Type: unix.NFNL_MSG_BATCH_END, Flags: netlink.Request}, Data: nfgenmsg(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)},
	}); err != nil {
		return err
	}
	_, err = t.socket.Receive()
	return err
}
