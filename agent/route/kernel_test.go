package route

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/test/netlab"
)

// TestRefuses asks a node with two pods, veth0 with 10.1.0.1 and veth1 with
// 10.1.0.2, and a bridge with a port.
func TestRefuses(t *testing.T) {
	netlab.NeedRoot(t)
	addr := netip.MustParseAddr
	const none, noRoute, reversePath = flow.ReasonNone, flow.ReasonNoRoute, flow.ReasonReversePath
	for _, c := range []struct {
		name  string
		setUp func(*netlab.Node) error
		in    string // the interface
		p     Packet
		want  flow.Reason
	}{
		{"pod to pod", nil, "veth0", Packet{Src: addr("10.1.0.1"), Dst: addr("10.1.0.2")}, none},
		{"pod to its node", nil, "veth0", Packet{Src: addr("10.1.0.1"), Dst: addr("169.254.1.1")}, none},
		{"no route", nil, "veth0", Packet{Src: addr("10.1.0.1"), Dst: addr("203.0.113.9")}, noRoute},
		{"no route over IPv6", nil, "veth0", Packet{Src: addr("fd00:1::1"), Dst: addr("2001:db8::9")}, noRoute},
		{"pod to pod over IPv6", nil, "veth0", Packet{Src: addr("fd00:1::1"), Dst: addr("fd00:1::2")}, none},
		{"blackhole", route("blackhole", "198.51.100.0/24"), "veth0", Packet{Src: addr("10.1.0.1"), Dst: addr("198.51.100.1")}, noRoute},
		{"unreachable", route("unreachable", "198.51.100.0/24"), "veth0", Packet{Src: addr("10.1.0.1"), Dst: addr("198.51.100.1")}, noRoute},
		{"prohibit", route("prohibit", "198.51.100.0/24"), "veth0", Packet{Src: addr("10.1.0.1"), Dst: addr("198.51.100.1")}, noRoute},
		{"it does not forward", sysctl("ipv4/ip_forward", "0"), "veth0", Packet{Src: addr("10.1.0.1"), Dst: addr("10.1.0.2")}, noRoute},
		{"another pod's address, strictly", sysctl("ipv4/conf/veth0/rp_filter", "1"), "veth0", Packet{Src: addr("10.1.0.2"), Dst: addr("169.254.1.1")}, reversePath},
		{"another pod's address, to another", sysctl("ipv4/conf/all/rp_filter", "1"), "veth0", Packet{Src: addr("192.0.2.1"), Dst: addr("10.1.0.2")}, reversePath},
		{"its own address, strictly", sysctl("ipv4/conf/veth0/rp_filter", "1"), "veth0", Packet{Src: addr("10.1.0.1"), Dst: addr("10.1.0.2")}, none},
		{"an address without a route, loosely", sysctl("ipv4/conf/veth0/rp_filter", "2"), "veth0", Packet{Src: addr("192.0.2.1"), Dst: addr("10.1.0.2")}, reversePath},
		{"an address behind another interface, loosely", sysctl("ipv4/conf/veth0/rp_filter", "2"), "veth0", Packet{Src: addr("10.1.0.2"), Dst: addr("169.254.1.1")}, none},
		{"an address without a route, unfiltered", nil, "veth0", Packet{Src: addr("192.0.2.1"), Dst: addr("10.1.0.2")}, none},
		{"a port of a bridge, strictly", bridged, "port0", Packet{Src: addr("10.9.0.5"), Dst: addr("10.1.0.2")}, none},
		{"a port of a bridge, another's address", bridged, "port0", Packet{Src: addr("10.1.0.1"), Dst: addr("10.1.0.2")}, reversePath},
		{"a rule by mark", marked, "veth0", Packet{Src: addr("10.1.0.1"), Dst: addr("10.1.0.2"), Mark: 7}, noRoute},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := netlab.NodeT(t, "rt", 1, 2)
			if c.setUp != nil {
				if err := c.setUp(n); err != nil {
					t.Fatal(err)
				}
			}
			if err := n.Do(func() error {
				in, err := net.InterfaceByName(c.in)
				if err != nil {
					return err
				}
				table, err := Open()
				if err != nil {
					return err
				}
				c.p.InDev = uint32(in.Index)
				got, err := table.Refuses(c.p)
				if err != nil {
					t.Error(err)
				}
				if got != c.want {
					t.Errorf("refused: %q, want %q", got, c.want)
				}
				return table.Close()
			}); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func route(kind, to string) func(*netlab.Node) error {
	return func(n *netlab.Node) error { return n.IP("route", "add", kind, to) }
}

func sysctl(name, value string) func(*netlab.Node) error {
	return func(n *netlab.Node) error { return n.Sysctl(name, value) }
}

func bridged(n *netlab.Node) error {
	return errors.Join(n.Batch("link add br0 type bridge", "addr add 10.9.0.1/24 dev br0", "link set br0 up",
		"link add port0 type veth peer name far0", "link set port0 master br0", "link set port0 up", "link set far0 up"),
		n.Sysctl("ipv4/conf/br0/rp_filter", "1"))
}

func marked(n *netlab.Node) error { return n.IP("rule", "add", "fwmark", "7", "prohibit") }

func TestAnInterfaceThatIsGone(t *testing.T) {
	netlab.NeedRoot(t)
	n := netlab.NodeT(t, "rt", 1, 1)
	if err := n.Do(func() error {
		table, err := Open()
		if err != nil {
			return err
		}
		if got, err := table.Refuses(Packet{Src: netip.MustParseAddr("10.1.0.1"), Dst: netip.MustParseAddr("10.1.0.2"), InDev: 12345}); err == nil || got != flow.ReasonNone {
			t.Errorf("refused: %q, %v", got, err)
		}
		return table.Close()
	}); err != nil {
		t.Fatal(err)
	}
}

// FuzzRead: what the kernel may send is read or is an error.
func FuzzRead(f *testing.F) {
	f.Add([]byte{2, 32, 0, 0, 254, 2, 0, 1, 0, 0, 0, 0, 8, 0, 4, 0, 3, 0, 0, 0})
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, _ = readWay(b)
		_, _ = readLink(b)
	})
}
