package tap

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/flowaudit/flowaudit/agent/nlmsg"
)

const (
	// notificationSize bounds a datagram of notifications.
	notificationSize = 64 << 10
	// noticed bounds how long a removal waits until it is read.
	noticed = 100 * time.Millisecond
	// nftaTable is NFTA_TABLE_NAME, NFTA_CHAIN_TABLE and NFTA_RULE_TABLE
	// (linux/netfilter/nf_tables.h).
	nftaTable = 1
)

// watch joins the kernel's notifications of changes of nftables.
func watch() (*nlmsg.Reader, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("open nftables notifications: %w", err)
	}
	if err := conn.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		return nil, errors.Join(fmt.Errorf("join nftables notifications: %w", err), conn.Close())
	}
	return nlmsg.NewReader(conn, notificationSize)
}

// removes reports whether a datagram of notifications tells that a part of the
// table was removed. Other programs' changes come by thousands, and each only
// has its header looked at. What cannot be read may be a removal.
func removes(datagram []byte, table string) bool {
	for len(datagram) > 0 {
		h, payload, rest, err := nlmsg.Message(datagram)
		if err != nil {
			return true
		}
		datagram = rest
		switch h.Type {
		case removal(unix.NFT_MSG_DELTABLE), removal(unix.NFT_MSG_DELCHAIN), removal(unix.NFT_MSG_DELRULE):
			if names(payload, table) {
				return true
			}
		}
	}
	return false
}

func removal(message uint16) uint16 { return unix.NFNL_SUBSYS_NFTABLES<<8 | message }

// names reports whether a message is about the table. The kernel writes the
// table's name first.
func names(message []byte, table string) bool {
	family, _, attributes, err := nlmsg.Family(message)
	if err != nil {
		return true
	}
	typ, name, _, err := nlmsg.Attribute(attributes)
	if err != nil || typ != nftaTable {
		return true
	}
	return family == unix.NFPROTO_INET && string(bytes.TrimRight(name, "\x00")) == table
}
