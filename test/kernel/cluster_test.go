package kernel

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/test/netlab"
	"github.com/flowaudit/flowaudit/test/netlab/traffic"
)

// cluster is two nodes with two pods each, an agent on each node.
type cluster struct {
	a, b           *netlab.Node
	a1, a2, b1, b2 *netlab.Pod
	sink           *sink
	agents         []*agent
}

const (
	serviceIP = "10.96.0.1"
	nowhere   = "203.0.113.9"
)

// policy refuses by port, as a network plugin's chains do: 10xx is open, 20xx
// is dropped, 21xx rejected by ICMP, 22xx by RST.
const policy = `table inet cni {
	chain zones { type filter hook prerouting priority raw;
		udp dport 1008 ct zone set 7
		udp sport 1008 ct zone set 7
	}
	chain forward { type filter hook forward priority 0;
		ct state established,related accept
		iifname uplink accept comment "policy is applied where the pod is"
		oifname uplink accept
		jump pods
	}
	chain uplink { type filter hook forward priority 1;
		ct state established,related accept
		iifname uplink jump pods
	}
	chain pods {
		meta l4proto { tcp, udp, sctp } th dport 2000-2099 log group 100 drop
		icmp type echo-request ip daddr . ip saddr { 10.1.0.2 . 10.1.0.1 } log group 100 drop
		meta l4proto { tcp, udp } th dport 2100-2199 log group 100 reject with icmpx admin-prohibited
		tcp dport 2200-2299 log group 100 reject with tcp reset
	}
}
table ip nat {
	chain pre { type nat hook prerouting priority dstnat;
		ip daddr 10.96.0.1 tcp dport 80 dnat to 10.2.0.1:1004
	}
	chain post { type nat hook postrouting priority srcnat;
		oifname uplink tcp dport 1005 masquerade
	}
}`

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{a: netlab.NodeT(t, "ka", 1, 2), b: netlab.NodeT(t, "kb", 2, 2), sink: newSink(t)}
	c.a1, c.a2, c.b1, c.b2 = c.a.Pods[0], c.a.Pods[1], c.b.Pods[0], c.b.Pods[1]
	if err := netlab.Join(c.a, c.b); err != nil {
		t.Fatal(err)
	}
	if err := c.a.IP("route", "add", nowhere, "via", "172.31.0.2"); err != nil {
		t.Fatal(err)
	}
	if err := c.b.IP("route", "add", "blackhole", nowhere); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*netlab.Node{c.a, c.b} {
		if err := n.NFT(policy); err != nil {
			t.Fatal(err)
		}
	}
	names := manifests(t, map[string]*netlab.Node{"node-a": c.a, "node-b": c.b})
	for name, n := range map[string]*netlab.Node{"node-a": c.a, "node-b": c.b} {
		c.agents = append(c.agents, startAgent(t, n.Namespace, c.sink, nil, "--node-name", name, "--nflog-group", "100", "--manifests", names))
		c.sink.reported(name)
	}
	return c
}

func (c *cluster) stop() {
	for _, a := range c.agents {
		a.stop()
	}
}

// TestVerdicts does everything at once, waits for the last verdict, and then
// compares all that was reported with all that was done.
func TestVerdicts(t *testing.T) {
	c := newCluster(t)
	a1, a2, b1 := c.a1, c.a2, c.b1
	cases := []struct {
		name string
		port uint16
		act  func(port uint16)
		want []row
	}{
		{"allowed on one node", 1001, func(p uint16) {
			serve(t, a2, p)
			for range 3 {
				talk(t, a1, "tcp", hostPort(a2.IPv4, p), 1000)
			}
			talk(t, a1, "udp", hostPort(a2.IPv4, p), 1000)
		}, []row{
			{flow.TCP, "10.1.0.1", "10.1.0.2", 1001, flow.VerdictAllowed, flow.ReasonReply, 3},
			{flow.UDP, "10.1.0.1", "10.1.0.2", 1001, flow.VerdictAllowed, flow.ReasonReply, 1},
		}},
		{"allowed between nodes is one flow", 1002, func(p uint16) {
			serve(t, b1, p)
			talk(t, a1, "tcp", hostPort(b1.IPv4, p), 1000)
			talk(t, a1, "udp", hostPort(b1.IPv4, p), 1000)
		}, []row{
			{flow.TCP, "10.1.0.1", "10.2.0.1", 1002, flow.VerdictAllowed, flow.ReasonReply, 1},
			{flow.UDP, "10.1.0.1", "10.2.0.1", 1002, flow.VerdictAllowed, flow.ReasonReply, 1},
		}},
		{"IPv6", 1003, func(p uint16) {
			serve(t, b1, p)
			talk(t, a1, "tcp", hostPort(b1.IPv6, p), 1000)
		}, []row{{flow.TCP, "fd00:1::1", "fd00:2::1", 1003, flow.VerdictAllowed, flow.ReasonReply, 1}}},
		{"through a Service's address", 1004, func(p uint16) {
			serve(t, b1, p)
			talk(t, a1, "tcp", hostPort(netip.MustParseAddr(serviceIP), 80), 1000)
		}, []row{{flow.TCP, "10.1.0.1", "10.2.0.1", 1004, flow.VerdictAllowed, flow.ReasonReply, 1}}},
		{"behind SNAT both nodes mean one flow", 1005, func(p uint16) {
			serve(t, b1, p)
			talk(t, a1, "tcp", hostPort(b1.IPv4, p), 1000)
		}, []row{{flow.TCP, "10.1.0.1", "10.2.0.1", 1005, flow.VerdictAllowed, flow.ReasonReply, 1}}},
		{"an SCTP association", 1006, func(p uint16) {
			must(t, traffic.Associate(a1, b1, a1.IPv4, b1.IPv4, p))
		}, []row{{flow.SCTP, "10.1.0.1", "10.2.0.1", 1006, flow.VerdictAllowed, flow.ReasonReply, 1}}},
		{"in fragments", 1007, func(p uint16) {
			serve(t, b1, p)
			talk(t, a1, "udp", hostPort(b1.IPv4, p), 4000)
		}, []row{{flow.UDP, "10.1.0.1", "10.2.0.1", 1007, flow.VerdictAllowed, flow.ReasonReply, 1}}},
		{"in a conntrack zone", 1008, func(p uint16) {
			serve(t, b1, p)
			talk(t, a1, "udp", hostPort(b1.IPv4, p), 100)
		}, []row{{flow.UDP, "10.1.0.1", "10.2.0.1", 1008, flow.VerdictAllowed, flow.ReasonReply, 1}}},
		{"a datagram that needs no answer has passed the policy", 1009, func(p uint16) {
			knock(t, a1, "udp", hostPort(a2.IPv4, p))
		}, []row{{flow.UDP, "10.1.0.1", "10.1.0.2", 1009, flow.VerdictAllowed, flow.ReasonConfirmed, 1}}},
		{"nobody answers, nobody refuses", 1010, func(p uint16) {
			knock(t, a1, "tcp", net.JoinHostPort(nowhere, fmt.Sprint(p)))
			knock(t, a1, "udp", net.JoinHostPort(nowhere, fmt.Sprint(p)))
		}, []row{
			{flow.TCP, "10.1.0.1", nowhere, 1010, flow.VerdictUnanswered, flow.ReasonNoReply, 1},
			{flow.UDP, "10.1.0.1", nowhere, 1010, flow.VerdictUnanswered, flow.ReasonNoReply, 1},
		}},
		{"dropped on one node", 2001, func(p uint16) {
			knock(t, a1, "tcp", hostPort(a2.IPv4, p))
			knock(t, a1, "udp", hostPort(a2.IPv4, p))
		}, []row{
			{flow.TCP, "10.1.0.1", "10.1.0.2", 2001, flow.VerdictDenied, flow.ReasonLogged, 1},
			{flow.UDP, "10.1.0.1", "10.1.0.2", 2001, flow.VerdictDenied, flow.ReasonLogged, 1},
		}},
		{"dropped on the other node", 2002, func(p uint16) {
			knock(t, a1, "tcp", hostPort(b1.IPv4, p))
		}, []row{{flow.TCP, "10.1.0.1", "10.2.0.1", 2002, flow.VerdictDenied, flow.ReasonLogged, 1}}},
		{"dropped, IPv6", 2003, func(p uint16) {
			knock(t, a1, "tcp", hostPort(a2.IPv6, p))
			knock(t, a1, "tcp", hostPort(b1.IPv6, p))
		}, []row{
			{flow.TCP, "fd00:1::1", "fd00:1::2", 2003, flow.VerdictDenied, flow.ReasonLogged, 1},
			{flow.TCP, "fd00:1::1", "fd00:2::1", 2003, flow.VerdictDenied, flow.ReasonLogged, 1},
		}},
		{"dropped, SCTP", 2004, func(p uint16) {
			must(t, traffic.InitSCTP(a1, a2.IPv4, p))
		}, []row{{flow.SCTP, "10.1.0.1", "10.1.0.2", 2004, flow.VerdictDenied, flow.ReasonLogged, 1}}},
		{"dropped, in fragments", 2005, func(p uint16) {
			do(t, a1, func() error {
				u, err := net.Dial("udp", hostPort(a2.IPv4, p))
				if err != nil {
					return err
				}
				defer u.Close()
				_, err = u.Write(make([]byte, 4000))
				return err
			})
		}, []row{{flow.UDP, "10.1.0.1", "10.1.0.2", 2005, flow.VerdictDenied, flow.ReasonLogged, 1}}},
		{"rejected by ICMP on one node", 2101, func(p uint16) {
			knock(t, a1, "tcp", hostPort(a2.IPv4, p))
		}, []row{{flow.TCP, "10.1.0.1", "10.1.0.2", 2101, flow.VerdictDenied, flow.ReasonLogged, 1}}},
		{"rejected by ICMP on the other node", 2102, func(p uint16) {
			knock(t, a1, "tcp", hostPort(b1.IPv4, p))
			knock(t, a1, "udp", hostPort(b1.IPv4, p))
		}, []row{
			{flow.TCP, "10.1.0.1", "10.2.0.1", 2102, flow.VerdictDenied, flow.ReasonLogged, 1},
			{flow.UDP, "10.1.0.1", "10.2.0.1", 2102, flow.VerdictDenied, flow.ReasonLogged, 1},
		}},
		{"rejected by RST on one node", 2201, func(p uint16) {
			knock(t, a1, "tcp", hostPort(a2.IPv4, p))
		}, []row{{flow.TCP, "10.1.0.1", "10.1.0.2", 2201, flow.VerdictDenied, flow.ReasonLogged, 1}}},
		{"rejected by RST on the other node", 2202, func(p uint16) {
			knock(t, a1, "tcp", hostPort(b1.IPv4, p))
		}, []row{{flow.TCP, "10.1.0.1", "10.2.0.1", 2202, flow.VerdictDenied, flow.ReasonLogged, 1}}},
		{"ICMP", flow.ICMPPort(8, 0), func(uint16) {
			ping(t, a1, b1.IPv4)
			ping(t, a1, a2.IPv4)
		}, []row{
			{flow.ICMP, "10.1.0.1", "10.2.0.1", flow.ICMPPort(8, 0), flow.VerdictAllowed, flow.ReasonReply, 1},
			{flow.ICMP, "10.1.0.1", "10.1.0.2", flow.ICMPPort(8, 0), flow.VerdictDenied, flow.ReasonLogged, 1},
		}},
		{"ICMPv6", flow.ICMPPort(128, 0), func(uint16) {
			ping(t, a1, b1.IPv6)
		}, []row{{flow.ICMPv6, "fd00:1::1", "fd00:2::1", flow.ICMPPort(128, 0), flow.VerdictAllowed, flow.ReasonReply, 1}}},
	}
	for _, p := range []*netlab.Pod{a1, a2, b1} {
		if err := p.NFT(traffic.NoSCTP); err != nil {
			t.Fatal(err)
		}
	}
	for _, x := range cases {
		x.act(x.port)
	}
	c.sink.until("the unanswered ones", func(all []flow.Batch) bool { return len(rows(all, port(1010))) == 2 })
	c.stop()
	all := c.sink.all()
	for _, x := range cases {
		t.Run(strings.ReplaceAll(x.name, " ", "_"), func(t *testing.T) {
			slices.SortFunc(x.want, func(a, b row) int { return strings.Compare(a.String(), b.String()) })
			if diff := cmp.Diff(x.want, rows(all, port(x.port))); diff != "" {
				t.Error(diff)
			}
		})
	}
	t.Run("the Service is kept", func(t *testing.T) {
		f := flows(all, port(1004))
		if len(f) == 0 || f[0].Service == nil || f[0].Service.Addr.String() != serviceIP || f[0].Service.Port != 80 {
			t.Errorf("flows %+v, want the Service %s:80", f, serviceIP)
		}
	})
	t.Run("the zone hides nothing", func(t *testing.T) {
		if f := flows(all, port(1008)); len(f) != 1 || f[0].Sent.Bytes != 128 || f[0].Received.Bytes != 128 {
			t.Errorf("flows %+v, want 128 bytes each way", f)
		}
	})
	t.Run("nothing was lost", func(t *testing.T) {
		for _, b := range all {
			if len(b.Gaps) > 0 {
				t.Errorf("gaps %+v", b.Gaps)
			}
		}
	})
}

// TestFirstDenialIsEarly: it does not wait for its window.
func TestFirstDenialIsEarly(t *testing.T) {
	n := netlab.NodeT(t, "kc", 3, 2)
	if err := n.NFT(policy); err != nil {
		t.Fatal(err)
	}
	s := newSink(t)
	startAgent(t, n.Namespace, s, nil, "--node-name", "n", "--nflog-group", "100", "--window", "1h", "--conntrack=false")
	// No window ends in this test, so that no report shows that the agent is ready.
	deadline := time.After(patience)
	for len(rows(s.all(), port(2001))) == 0 {
		knock(t, n.Pods[0], "udp", hostPort(n.Pods[1].IPv4, 2001))
		select {
		case <-deadline:
			t.Fatal("the first denial waits for its window")
		case <-s.changedNow():
		case <-time.After(100 * time.Millisecond):
		}
	}
}
