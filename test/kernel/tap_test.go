package kernel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/test/netlab"
	"github.com/flowaudit/flowaudit/test/netlab/traffic"
)

// tapTable is the table of the tap's rules.
const tapTable = "table inet flowaudit-tap"

func ruleset(t *testing.T, n *netlab.Namespace) string {
	t.Helper()
	out, err := n.Command(context.Background(), "nft", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("list rules: %v: %s", err, out)
	}
	return string(out)
}

// silent refuses and logs nothing: 20xx is dropped, 21xx rejected, also from
// and to the node. Port 80 of a Service leads to pod 2, and so does 81, which
// is refused there. Packets to port 5300 are not tracked.
const silent = `table inet cni {
	chain raw1 { type filter hook prerouting priority raw;
		udp dport 5300 notrack
		iifname veth1 udp sport 5300 notrack
		udp dport { 1008, 2008 } ct zone set 7
		udp sport 1008 ct zone set 7
	}
	chain pre { type nat hook prerouting priority dstnat;
		ip daddr 10.96.0.1 tcp dport 80 dnat ip to 10.1.0.2:1080
		ip daddr 10.96.0.1 tcp dport 81 dnat ip to 10.1.0.2:2081
	}
	chain out1 { type nat hook output priority -100;
		ip daddr 10.96.0.1 tcp dport 81 dnat ip to 10.1.0.2:2081
	}
	chain forward { type filter hook forward priority 0; ct state established,related accept
		jump pods
	}
	chain input { type filter hook input priority 0; ct state established,related accept
		jump pods
	}
	chain output { type filter hook output priority 0; ct state established,related accept
		jump pods
	}
	chain pods {
		meta l4proto { tcp, udp, sctp } th dport 2000-2099 drop
		meta l4proto { tcp, udp } th dport 2100-2199 reject with icmpx admin-prohibited
		icmp type echo-request ip daddr 10.1.0.1 drop
		icmpv6 type echo-request ip6 daddr fd00:1::1 drop
	}
}`

func newTapped(t *testing.T, label string, args ...string) (*netlab.Node, *sink, *agent) {
	t.Helper()
	n := netlab.NodeT(t, label, 1, 2)
	if err := n.NFT(silent); err != nil {
		t.Fatal(err)
	}
	s := newSink(t)
	a := startAgent(t, n.Namespace, s, nil, slices.Concat([]string{
		"--node-name", label, "--tap", "--trust-confirmed", "yes", "--manifests", manifests(t, map[string]*netlab.Node{label: n}),
	}, args)...)
	s.reported(label)
	return n, s, a
}

// fromNode runs knock in the node's own namespace.
func fromNode(t *testing.T, n *netlab.Node, network, to string) {
	t.Helper()
	knock(t, &netlab.Pod{Namespace: n.Namespace}, network, to)
}

func TestTapVerdicts(t *testing.T) {
	n, s, a := newTapped(t, "tv")
	web, db := n.Pods[0], n.Pods[1]
	const (
		webIP, dbIP   = "10.1.0.1", "10.1.0.2"
		webIP6, dbIP6 = "fd00:1::1", "fd00:1::2"
		gateway       = "169.254.1.1" // the node, as its pods see it
	)
	denied := func(p flow.Protocol, src, dst string, port uint16) row {
		return row{p, src, dst, port, flow.VerdictDenied, flow.ReasonNeverConfirmed, 1}
	}
	allowed := func(p flow.Protocol, src, dst string, port uint16) row {
		return row{p, src, dst, port, flow.VerdictAllowed, flow.ReasonReply, 1}
	}
	echo4, echo6 := flow.ICMPPort(8, 0), flow.ICMPPort(128, 0)
	cases := []struct {
		name string
		port uint16
		act  func(port uint16)
		want []row
	}{
		{"what passes is allowed, once", 1001, func(p uint16) {
			serve(t, db, p)
			talk(t, web, "tcp", hostPort(db.IPv4, p), 10)
			talk(t, web, "udp", hostPort(db.IPv6, p), 10)
		}, []row{allowed(flow.TCP, webIP, dbIP, 1001), allowed(flow.UDP, webIP6, dbIP6, 1001)}},
		{"a closed port has passed", 1002, func(p uint16) {
			do(t, web, func() error {
				if c, err := net.Dial("tcp", hostPort(db.IPv4, p)); err == nil {
					return errors.Join(errors.New("a closed port answers"), c.Close())
				}
				return nil
			})
		}, []row{{flow.TCP, webIP, dbIP, 1002, flow.VerdictAllowed, flow.ReasonConfirmed, 1}}},
		{"dropped", 2001, func(p uint16) {
			knock(t, web, "tcp", hostPort(db.IPv4, p))
			knock(t, web, "udp", hostPort(db.IPv4, p))
			knock(t, web, "tcp", hostPort(db.IPv6, p))
			knock(t, web, "udp", hostPort(db.IPv6, p))
			must(t, traffic.InitSCTP(web, db.IPv4, p))
		}, []row{
			denied(flow.TCP, webIP, dbIP, 2001), denied(flow.UDP, webIP, dbIP, 2001),
			denied(flow.TCP, webIP6, dbIP6, 2001), denied(flow.UDP, webIP6, dbIP6, 2001), denied(flow.SCTP, webIP, dbIP, 2001),
		}},
		{"rejected", 2101, func(p uint16) {
			knock(t, web, "tcp", hostPort(db.IPv4, p))
			knock(t, web, "udp", hostPort(db.IPv6, p))
		}, []row{denied(flow.TCP, webIP, dbIP, 2101), denied(flow.UDP, webIP6, dbIP6, 2101)}},
		{"in fragments", 2005, func(p uint16) {
			do(t, web, func() error {
				u, err := net.Dial("udp", hostPort(db.IPv4, p))
				if err != nil {
					return err
				}
				_, err = u.Write(make([]byte, 4000))
				return errors.Join(err, u.Close())
			})
		}, []row{denied(flow.UDP, webIP, dbIP, 2005)}},
		{"from a pod to its node", 2006, func(p uint16) {
			knock(t, web, "udp", net.JoinHostPort(gateway, fmt.Sprint(p)))
		}, []row{denied(flow.UDP, webIP, gateway, 2006)}},
		{"from the node to a pod", 2007, func(p uint16) {
			fromNode(t, n, "tcp", hostPort(db.IPv4, p))
		}, []row{denied(flow.TCP, gateway, dbIP, 2007)}},
		{"in a conntrack zone", 2008, func(p uint16) {
			knock(t, web, "udp", hostPort(db.IPv4, p))
		}, []row{denied(flow.UDP, webIP, dbIP, 2008)}},
		{"in a conntrack zone, but it passes", 1008, func(p uint16) {
			serve(t, db, p)
			talk(t, web, "udp", hostPort(db.IPv4, p), 10)
		}, []row{allowed(flow.UDP, webIP, dbIP, 1008)}},
		{"through a Service that leads to a refusal", 2081, func(uint16) {
			knock(t, web, "tcp", net.JoinHostPort(serviceIP, "81"))
			fromNode(t, n, "tcp", net.JoinHostPort(serviceIP, "81"))
		}, []row{denied(flow.TCP, webIP, dbIP, 2081), denied(flow.TCP, gateway, dbIP, 2081)}},
		{"through a Service", 1080, func(p uint16) {
			serve(t, db, p)
			talk(t, web, "tcp", net.JoinHostPort(serviceIP, "80"), 10)
		}, []row{allowed(flow.TCP, webIP, dbIP, 1080)}},
		{"no echo of a Service's own address", 81, func(uint16) {}, nil},
		{"nothing within the loopback", 2009, func(p uint16) {
			fromNode(t, n, "tcp", net.JoinHostPort("127.0.0.1", fmt.Sprint(p)))
			fromNode(t, n, "tcp", net.JoinHostPort("::1", fmt.Sprint(p)))
		}, nil},
		{"ICMP", echo4, func(uint16) {
			ping(t, web, db.IPv4)
			ping(t, db, web.IPv4)
		}, []row{allowed(flow.ICMP, webIP, dbIP, echo4), denied(flow.ICMP, dbIP, webIP, echo4)}},
		{"ICMPv6", echo6, func(uint16) {
			ping(t, web, db.IPv6)
			ping(t, db, web.IPv6)
		}, []row{allowed(flow.ICMPv6, webIP6, dbIP6, echo6), denied(flow.ICMPv6, dbIP6, webIP6, echo6)}},
	}
	// The node's own address towards pod 2 must be the one that is expected.
	if err := n.IP("route", "add", serviceIP, "dev", db.Veth); err != nil {
		t.Fatal(err)
	}
	if err := db.NFT(traffic.NoSCTP); err != nil {
		t.Fatal(err)
	}
	for _, x := range cases {
		x.act(x.port)
	}
	knock(t, web, "udp", hostPort(db.IPv4, 2099))
	s.until("the last refusal", func(all []flow.Batch) bool { return len(rows(all, port(2099))) == 1 })
	a.stop()
	all := s.all()
	for _, x := range cases {
		t.Run(strings.ReplaceAll(x.name, " ", "_"), func(t *testing.T) {
			slices.SortFunc(x.want, func(a, b row) int { return strings.Compare(a.String(), b.String()) })
			if diff := cmp.Diff(x.want, rows(all, port(x.port))); diff != "" {
				t.Error(diff)
			}
		})
	}
	t.Run("the Service of a refusal is kept", func(t *testing.T) {
		f := flows(all, port(2081))
		if len(f) == 0 || f[0].Service == nil || f[0].Service.Addr.String() != serviceIP || f[0].Service.Port != 81 {
			t.Errorf("flows %+v, want the Service %s:81", f, serviceIP)
		}
	})
	t.Run("nothing else was refused, nothing was lost", func(t *testing.T) {
		for _, r := range rows(all, func(f *flow.Flow) bool {
			return f.Verdict == flow.VerdictUnknown || f.Verdict == flow.VerdictDenied && (f.Port < 2000 || f.Port > 2199) && f.Port != echo4
		}) {
			if r.Port != echo6 {
				t.Error(r)
			}
		}
		for _, b := range all {
			if len(b.Gaps) > 0 {
				t.Errorf("gaps %+v", b.Gaps)
			}
		}
	})
}

func TestTapGoesWithTheAgent(t *testing.T) {
	n, _, a := newTapped(t, "tg")
	if !strings.Contains(ruleset(t, n.Namespace), tapTable) {
		t.Fatal("the tap has no table")
	}
	before := ruleset(t, n.Namespace)
	if err := n.NFT("flush ruleset"); err != nil {
		t.Fatal(err)
	}
	if after := ruleset(t, n.Namespace); !strings.HasSuffix(strings.TrimSpace(before), strings.TrimSpace(after)) || after == "" {
		t.Errorf("a flush of the ruleset leaves:\n%s", after)
	}
	a.end(syscall.SIGKILL, true)
	if left := ruleset(t, n.Namespace); left != "" {
		t.Errorf("a killed agent leaves:\n%s", left)
	}
}

func TestTapIsLimitedToPods(t *testing.T) {
	n, s, a := newTapped(t, "tp", "--tap-pods", "10.1.0.1/32,fd00:1::1/128")
	web, db := n.Pods[0], n.Pods[1]
	knock(t, web, "udp", hostPort(db.IPv4, 2001))
	knock(t, web, "udp", hostPort(db.IPv6, 2001))
	knock(t, db, "udp", hostPort(web.IPv4, 2002))
	fromNode(t, n, "tcp", hostPort(db.IPv4, 2003))
	knock(t, db, "udp", net.JoinHostPort("169.254.1.1", "2004"))
	knock(t, web, "udp", hostPort(db.IPv4, 2099))
	s.until("the last refusal", func(all []flow.Batch) bool { return len(rows(all, port(2099))) == 1 })
	a.stop()
	for p, want := range map[uint16]int{2001: 2, 2002: 1, 2003: 0, 2004: 0} {
		if got := rows(s.all(), port(p)); len(got) != want {
			t.Errorf("port %d: %v, want %d flows", p, got, want)
		}
	}
}

func TestTapTellsUntrackedPackets(t *testing.T) {
	n, s, a := newTapped(t, "tu")
	web, db := n.Pods[0], n.Pods[1]
	serve(t, db, 5300)
	talk(t, web, "udp", hostPort(db.IPv4, 5300), 100)
	talk(t, web, "udp", hostPort(db.IPv6, 5300), 100)
	s.until("the untracked packets", func(all []flow.Batch) bool { return len(rows(all, port(5300))) == 2 })
	a.stop()
	want := []row{
		{flow.UDP, "10.1.0.1", "10.1.0.2", 5300, flow.VerdictUnknown, flow.ReasonUntracked, 1},
		{flow.UDP, "fd00:1::1", "fd00:1::2", 5300, flow.VerdictUnknown, flow.ReasonUntracked, 1},
	}
	all := s.all()
	if diff := cmp.Diff(want, rows(all, port(5300))); diff != "" {
		t.Error(diff)
	}
	if limits := all[len(all)-1].Agent.Limits; !slices.ContainsFunc(limits, func(l string) bool { return strings.Contains(l, "NOTRACK") }) {
		t.Errorf("limits %q do not tell it", limits)
	}
}

// TestTapNeedsItsGroupAlone: the rest of the agent goes on.
func TestTapSaysWhoHasItsGroup(t *testing.T) {
	n, _, first := newTapped(t, "tt")
	s := newSink(t)
	second := startAgent(t, n.Namespace, s, nil, "--node-name", "second", "--tap")
	s.reported("second")
	second.stop()
	if log := second.log.String(); !strings.Contains(log, "NFLOG group 4242") || !strings.Contains(log, "already reads it") {
		t.Errorf("the log does not name the group and its owner:\n%s", log)
	}
	first.stop()
}

// TestContradictedLogs: a rule logs like a refusal, and a later one accepts.
func TestContradictedLogs(t *testing.T) {
	n := netlab.NodeT(t, "tc", 1, 2)
	if err := n.NFT(`table inet cni {
	chain forward { type filter hook forward priority 0;
		ct state established,related accept
		udp dport 1000-2999 log group 100
		udp dport 2000-2999 drop
	}
	chain pre { type nat hook prerouting priority dstnat; ip daddr 10.96.0.1 udp dport 80 dnat ip to 10.1.0.2:1080
	}
}`); err != nil {
		t.Fatal(err)
	}
	for _, tap := range []bool{false, true} {
		t.Run(fmt.Sprintf("tap=%v", tap), func(t *testing.T) {
			forgetConnections(t, n.Namespace)
			s := newSink(t)
			a := startAgent(t, n.Namespace, s, nil, "--node-name", "tc", "--nflog-group", "100", fmt.Sprintf("--tap=%v", tap),
				"--manifests", manifests(t, map[string]*netlab.Node{"tc": n}))
			s.reported("tc")
			web, db := n.Pods[0], n.Pods[1]
			for _, p := range []uint16{1001, 1080} {
				serve(t, db, p)
			}
			talk(t, web, "udp", hostPort(db.IPv4, 1001), 10)
			talk(t, web, "udp", hostPort(netip.MustParseAddr(serviceIP), 80), 10)
			knock(t, web, "udp", hostPort(db.IPv4, 2001))
			s.until("the refusal", func(all []flow.Batch) bool { return len(rows(all, port(2001))) == 1 })
			a.stop()
			all := s.all()
			want := []row{
				{flow.UDP, "10.1.0.1", "10.1.0.2", 1001, flow.VerdictAllowed, flow.ReasonContradicted, 1},
				{flow.UDP, "10.1.0.1", "10.1.0.2", 1080, flow.VerdictAllowed, flow.ReasonContradicted, 1},
				{flow.UDP, "10.1.0.1", "10.1.0.2", 2001, flow.VerdictDenied, flow.ReasonLogged, 1},
			}
			if diff := cmp.Diff(want, rows(all, nil)); diff != "" {
				t.Error(diff)
			}
			if got := all[len(all)-1].Agent.Contradicted; got != 2 {
				t.Errorf("%d records contradicted, want 2", got)
			}
		})
	}
}
