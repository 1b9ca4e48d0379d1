package nflog

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	nflog "github.com/florianl/go-nflog/v2"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Messages and attributes that configure a group (enum nfulnl_msg_types and
// nfulnl_attr_config, linux/netfilter/nfnetlink_log.h).
const (
	configMessage = 1 // NFULNL_MSG_CONFIG
	cfgCommand    = 1 // NFULA_CFG_CMD
	cfgMode       = 2 // NFULA_CFG_MODE
	cfgBufferSize = 3 // NFULA_CFG_NLBUFSIZ
	cfgTimeout    = 4 // NFULA_CFG_TIMEOUT
	cfgThreshold  = 5 // NFULA_CFG_QTHRESH
	cfgFlags      = 6 // NFULA_CFG_FLAGS
	commandBind   = 1 // NFULNL_CFG_CMD_BIND
)

// TakenError says that another program reads a group.
type TakenError struct {
	Group uint16
	Owner string // "ulogd (pid 123)", or the port id where no process has it
}

// Error says who, and what to do.
func (e *TakenError) Error() string {
	return fmt.Sprintf("bind NFLOG group %d: %s already reads it, and a group has one reader: stop that program, or choose another group", e.Group, e.Owner)
}

// bind takes the group and says how its records are sent, in one message: no
// record can come between. go-nflog can open the socket, but binds only
// together with a reading loop of its own.
func bind(conn *netlink.Conn, group uint16) error {
	mode := make([]byte, 6) // struct nfulnl_msg_config_mode: u32 copy range, u8 mode, padding
	binary.BigEndian.PutUint32(mode, copyRange)
	mode[4] = nflog.CopyPacket
	err := configure(conn, group,
		netlink.Attribute{Type: cfgCommand, Data: []byte{commandBind}},
		netlink.Attribute{Type: cfgMode, Data: mode},
		netlink.Attribute{Type: cfgFlags, Data: binary.BigEndian.AppendUint16(nil, nflog.FlagSeq)},
		netlink.Attribute{Type: cfgBufferSize, Data: binary.BigEndian.AppendUint32(nil, kernelBuffer)},
		netlink.Attribute{Type: cfgTimeout, Data: binary.BigEndian.AppendUint32(nil, flushTimeout)},
		netlink.Attribute{Type: cfgThreshold, Data: binary.BigEndian.AppendUint32(nil, queueThreshold)})
	if err != nil {
		return explain(err, group)
	}
	return nil
}

func configure(conn *netlink.Conn, group uint16, attributes ...netlink.Attribute) error {
	encoded, err := netlink.MarshalAttributes(attributes)
	if err != nil {
		return err
	}
	family := binary.BigEndian.AppendUint16([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0}, group)
	_, err = conn.Execute(netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_ULOG<<8 | configMessage),
			Flags: netlink.Request | netlink.Acknowledge,
		},
		Data: append(family, encoded...),
	})
	return err
}

// explain tells a taken group from a missing right: the kernel says EPERM for both.
func explain(err error, group uint16) error {
	if !errors.Is(err, os.ErrPermission) && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("bind NFLOG group %d: %w", group, err)
	}
	// The list of the thread's own network namespace.
	if f, openErr := os.Open("/proc/thread-self/net/netfilter/nfnetlink_log"); openErr == nil {
		defer f.Close()
		if port, taken := ownerOf(f, group); taken {
			return &TakenError{Group: group, Owner: processOf(port)}
		}
	}
	return fmt.Errorf("bind NFLOG group %d: %w: the agent needs CAP_NET_ADMIN in this network namespace", group, err)
}

// ownerOf finds the netlink port id that has a group: lines of
// nfnetlink_log begin with group, port id, queue length.
func ownerOf(r io.Reader, group uint16) (port uint32, taken bool) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		var g, p uint32
		if n, _ := fmt.Sscan(lines.Text(), &g, &p); n == 2 && g == uint32(group) {
			return p, true
		}
	}
	return 0, false
}

// processOf names the process behind a port id. By default that is its pid.
func processOf(port uint32) string {
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", port))
	if err != nil {
		return fmt.Sprintf("the program with netlink port %d", port)
	}
	return fmt.Sprintf("%s (pid %d)", strings.TrimSpace(string(comm)), port)
}

// Owners lists the groups that are read in the network namespace of the
// calling thread, and by whom.
func Owners() (map[uint16]string, error) {
	f, err := os.Open("/proc/thread-self/net/netfilter/nfnetlink_log")
	if err != nil {
		return nil, fmt.Errorf("list NFLOG groups: %w", err)
	}
	defer f.Close()
	owners := make(map[uint16]string)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var group uint16
		var port uint32
		if n, _ := fmt.Sscan(lines.Text(), &group, &port); n == 2 {
			owners[group] = processOf(port)
		}
	}
	return owners, nil
}
