// Package route asks the kernel whether its routing refuses a packet.
package route

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/flowaudit/flowaudit/flow"
)

// Packet is one that came in, after DNAT.
type Packet struct {
	Src, Dst netip.Addr
	InDev    uint32 // index of the interface, or of a bridge's port
	Mark     uint32
}

// Table is the routing of one network namespace.
type Table struct {
	conn    *netlink.Conn
	sysctls string // the directory net of /proc/sys
}

// Open opens the routing of the calling thread's network namespace.
func Open() (*Table, error) {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, fmt.Errorf("open routing socket: %w", err)
	}
	return &Table{conn, "/proc/sys/net"}, nil
}

// Close closes the socket.
func (t *Table) Close() error { return t.conn.Close() }

// Refuses says why routing refuses a packet: ReasonNoRoute, ReasonReversePath,
// or ReasonNone where it does not, or not for one of these.
func (t *Table) Refuses(p Packet) (flow.Reason, error) {
	in, err := t.device(p.InDev)
	if err != nil {
		return flow.ReasonNone, err
	}
	_, err = t.ask(question{dst: p.Dst, src: p.Src, in: in.index, mark: p.Mark})
	if err == nil || !refusal(err) {
		return flow.ReasonNone, err
	}
	// It is refused; the rest finds out why, in the order of the kernel.
	way, err := t.ask(question{dst: p.Dst, mark: p.Mark})
	switch {
	case err != nil && refusal(err):
		return flow.ReasonNoRoute, nil
	case err != nil:
		return flow.ReasonNone, err
	case way.kind == unix.RTN_UNICAST && !t.on(family(p.Dst), in.name, "forwarding"):
		return flow.ReasonNoRoute, nil
	case p.Src.Is6(): // the filter of IPv6 is a netfilter rule
		return flow.ReasonNone, nil
	}
	return t.reversePath(p, in)
}

// reversePath reports whether the reverse path filter refuses a packet (RFC 3704).
func (t *Table) reversePath(p Packet, in device) (flow.Reason, error) {
	const strict, loose = 1, 2
	// The kernel takes the larger one: the looser.
	mode := max(t.number("ipv4", "all", "rp_filter"), t.number("ipv4", in.name, "rp_filter"))
	back := question{dst: p.Src}
	if t.on("ipv4", in.name, "src_valid_mark") || t.on("ipv4", "all", "src_valid_mark") {
		back.mark = p.Mark
	}
	way, err := t.ask(back)
	switch {
	case mode != strict && mode != loose:
		return flow.ReasonNone, nil
	case err != nil && refusal(err):
		return flow.ReasonReversePath, nil
	case err != nil:
		return flow.ReasonNone, err
	case mode == strict && way.out != in.index:
		return flow.ReasonReversePath, nil
	}
	return flow.ReasonNone, nil
}

// refusal reports whether an error is an answer of the routing: no route,
// unreachable, prohibit, blackhole, or the packet's source is not believed.
func refusal(err error) bool {
	for _, e := range []error{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.EINVAL, unix.EXDEV, unix.ESRCH} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// question is an RTM_GETROUTE.
type question struct {
	dst, src netip.Addr // src is the zero Addr where the answer shall not depend on it
	in       uint32     // 0 for a packet of this host
	mark     uint32
}

// way is where a route leads.
type way struct {
	out  uint32 // interface index
	kind uint8  // RTN_UNICAST, RTN_LOCAL, …
}

// sizeofRtMsg is the length of a struct rtmsg (linux/rtnetlink.h).
const sizeofRtMsg = 12

func (q *question) message() (netlink.Message, error) {
	header := make([]byte, sizeofRtMsg)
	header[0], header[1] = unix.AF_INET, uint8(q.dst.BitLen())
	if q.dst.Is6() {
		header[0] = unix.AF_INET6
	}
	e := netlink.NewAttributeEncoder()
	e.Bytes(unix.RTA_DST, q.dst.AsSlice())
	if q.src.IsValid() {
		header[2] = uint8(q.src.BitLen())
		e.Bytes(unix.RTA_SRC, q.src.AsSlice())
	}
	if q.in != 0 {
		e.Uint32(unix.RTA_IIF, q.in)
	}
	if q.mark != 0 {
		e.Uint32(unix.RTA_MARK, q.mark)
	}
	attributes, err := e.Encode()
	return netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETROUTE, Flags: netlink.Request},
		Data:   append(header, attributes...),
	}, err
}

func (t *Table) ask(q question) (w way, err error) {
	m, err := q.message()
	if err != nil {
		return w, fmt.Errorf("encode a question about routes: %w", err)
	}
	answers, err := t.conn.Execute(m)
	if err != nil {
		return w, fmt.Errorf("ask for a route: %w", err)
	}
	for _, a := range answers {
		if w, err := readWay(a.Data); a.Header.Type == unix.RTM_NEWROUTE || err != nil {
			return w, err
		}
	}
	return w, errors.New("ask for a route: no answer")
}

// readWay reads a struct rtmsg and its attributes.
func readWay(b []byte) (w way, err error) {
	if len(b) < sizeofRtMsg {
		return w, errors.New("read route: shorter than its header")
	}
	w.kind = b[7]
	d, err := netlink.NewAttributeDecoder(b[sizeofRtMsg:])
	if err != nil {
		return w, fmt.Errorf("read route: %w", err)
	}
	for d.Next() {
		if d.Type() == unix.RTA_OIF {
			w.out = d.Uint32()
		}
	}
	if err := d.Err(); err != nil {
		return w, fmt.Errorf("read route: %w", err)
	}
	// These are answers, too, and no errors where nobody's packet is asked about.
	switch w.kind {
	case unix.RTN_BLACKHOLE:
		return w, fmt.Errorf("read route: %w", unix.EINVAL)
	case unix.RTN_UNREACHABLE:
		return w, fmt.Errorf("read route: %w", unix.EHOSTUNREACH)
	case unix.RTN_PROHIBIT:
		return w, fmt.Errorf("read route: %w", unix.EACCES)
	}
	return w, nil
}

// device is an interface that packets come in by, as routing sees it.
type device struct {
	index uint32
	name  string
}

// device finds an interface; for a port of a bridge or bond, that.
func (t *Table) device(index uint32) (device, error) {
	l, err := t.link(index)
	if err != nil || l.master == 0 {
		return device{index, l.name}, err
	}
	m, err := t.link(l.master)
	if err != nil || m.kind == "vrf" {
		return device{index, l.name}, err
	}
	return device{l.master, m.name}, nil
}

type link struct {
	name, kind string
	master     uint32
}

// sizeofIfInfoMsg is the length of a struct ifinfomsg (linux/rtnetlink.h).
const sizeofIfInfoMsg = 16

func (t *Table) link(index uint32) (l link, err error) {
	header := make([]byte, sizeofIfInfoMsg)
	binary.NativeEndian.PutUint32(header[4:], index)
	answers, err := t.conn.Execute(netlink.Message{Header: netlink.Header{Type: unix.RTM_GETLINK, Flags: netlink.Request}, Data: header})
	if err != nil {
		return l, fmt.Errorf("ask for interface %d: %w", index, err)
	}
	for _, a := range answers {
		if a.Header.Type == unix.RTM_NEWLINK && len(a.Data) >= sizeofIfInfoMsg {
			return readLink(a.Data[sizeofIfInfoMsg:])
		}
	}
	return l, fmt.Errorf("ask for interface %d: no answer", index)
}

func readLink(b []byte) (l link, err error) {
	d, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return l, fmt.Errorf("read interface: %w", err)
	}
	for d.Next() {
		switch d.Type() {
		case unix.IFLA_IFNAME:
			l.name = d.String()
		case unix.IFLA_MASTER:
			l.master = d.Uint32()
		case unix.IFLA_LINKINFO:
			d.Nested(func(n *netlink.AttributeDecoder) error {
				for n.Next() {
					if n.Type() == unix.IFLA_INFO_KIND {
						l.kind = n.String()
					}
				}
				return nil
			})
		}
	}
	if err := d.Err(); err != nil {
		return l, fmt.Errorf("read interface: %w", err)
	}
	return l, nil
}

func family(a netip.Addr) string {
	if a.Is6() {
		return "ipv6"
	}
	return "ipv4"
}

func (t *Table) on(family, device, name string) bool { return t.number(family, device, name) > 0 }

// number reads a setting of an interface; what cannot be read is 0.
func (t *Table) number(family, device, name string) int {
	b, err := os.ReadFile(filepath.Join(t.sysctls, family, "conf", device, name))
	if err != nil {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0
	}
	return n
}
