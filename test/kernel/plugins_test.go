package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/test/netlab"
)

// plugin is a network plugin by the rules that it writes: pod 1 may reach pod 2
// on port 1001 and on no other. testdata/cni holds them, for IPv4.
type plugin struct {
	name string
	load []string // program and file, for each
	log  []string // arguments that read its log; none if it has none
	all  bool     // it logs every refusal
	ipv6 bool     // its rules exist for IPv6 too
}

func plugins() []plugin {
	return []plugin{
		{name: "kube-router", load: []string{"ipset", "kube-router.ipset", "iptables", "kube-router.iptables"}, log: []string{"--nflog-group", "100"}, ipv6: true},
		{name: "kube-router-nft", load: []string{"nft", "kube-router.nft"}, log: []string{"--nflog-group", "100"}, ipv6: true},
		{name: "k3s", load: []string{"ipset", "kube-router.ipset", "iptables", "k3s.iptables"}, log: []string{"--nflog-group", "100"}, ipv6: true},
		{name: "calico", load: []string{"ipset", "calico.ipset", "iptables", "calico.iptables"}, log: []string{"--nflog-group", "1=prefix"}, all: true, ipv6: true},
		{name: "weave", load: []string{"ipset", "weave.ipset", "iptables", "weave.iptables"}, log: []string{"--nflog-group", "86"}, all: true},
		{name: "romana", load: []string{"ipset", "romana.ipset", "iptables", "romana.iptables"}},
	}
}

// apply loads the plugin's rules into a node.
func (p plugin) apply(t *testing.T, n *netlab.Namespace) {
	t.Helper()
	for i := 0; i < len(p.load); i += 2 {
		b, err := os.ReadFile(filepath.Join("testdata", "cni", p.load[i+1]))
		if err != nil {
			t.Fatal(err)
		}
		pipe(t, n, program(p.load[i], false), string(b))
		if p.ipv6 {
			pipe(t, n, program(p.load[i], true), forIPv6(string(b)))
		}
	}
}

func program(name string, ipv6 bool) []string {
	switch {
	case name == "ipset":
		return []string{"ipset", "-exist", "restore"}
	case name == "nft":
		return []string{"nft", "-f", "-"}
	case ipv6:
		return []string{"ip6tables-restore"}
	}
	return []string{"iptables-restore"}
}

// forIPv6 makes of a plugin's rules those that it writes for IPv6.
func forIPv6(rules string) string {
	sets := strings.NewReplacer("create KUBE", "create inet6:KUBE", "add KUBE", "add inet6:KUBE", "match-set KUBE", "match-set inet6:KUBE", "cali40s", "cali60s").Replace(rules)
	return strings.NewReplacer(
		"10.1.0.1", "fd00:1::1", "10.1.0.2", "fd00:1::2", "family inet", "family inet6",
		"-p icmp", "-p icmpv6", "-m icmp --icmp-type 8", "-m icmp6 --icmpv6-type 128", "icmp-port-unreachable", "icmp6-port-unreachable",
		"table ip kube-router-filter-ipv4", "table ip6 kube-router-filter-ipv6",
		"type ipv4_addr", "type ipv6_addr", "ip saddr", "ip6 saddr", "ip daddr", "ip6 daddr", "icmp type", "icmpv6 type",
	).Replace(sets)
}

func pipe(t *testing.T, n *netlab.Namespace, args []string, input string) {
	t.Helper()
	cmd := n.Command(context.Background(), args[0], args[1:]...)
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// knocks sends the first packets of many connections from pod to pod: half
// of them as TCP, the rest as UDP. Each mode of a test has source ports of its own.
func knocks(t *testing.T, from, to *netlab.Pod, ipv6 bool, firstPort, n int, port uint16) {
	t.Helper()
	half := n / 2
	rawIPv4(t, from, to.IPv4, unix.IPPROTO_TCP, firstPort, half, port)
	if !ipv6 {
		rawIPv4(t, from, to.IPv4, unix.IPPROTO_UDP, firstPort, n-half, port)
		return
	}
	quarter := (n - half) / 2
	rawIPv4(t, from, to.IPv4, unix.IPPROTO_UDP, firstPort, quarter, port)
	do(t, from, func() error {
		for i := range n - half - quarter {
			c, err := net.DialUDP("udp6", &net.UDPAddr{Port: firstPort + i}, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.IPv6, port)))
			if err != nil {
				return err
			}
			_, err = c.Write([]byte("knock"))
			if err := c.Close(); err != nil {
				return err
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// rawIPv4 sends one packet from each of n source ports: a SYN, or a datagram.
func rawIPv4(t *testing.T, from *netlab.Pod, to netip.Addr, protocol, firstPort, n int, port uint16) {
	t.Helper()
	b := make([]byte, 20+20)
	b[0], b[8], b[9] = 0x45, 64, byte(protocol)
	copy(b[12:16], from.IPv4.AsSlice())
	copy(b[16:20], to.AsSlice())
	binary.BigEndian.PutUint16(b[22:], port)
	if protocol == unix.IPPROTO_UDP {
		b = b[:20+8+4]
		binary.BigEndian.PutUint16(b[24:], 8+4) // no checksum
	} else {
		b[32], b[33] = 5<<4, flow.TCPSyn
		binary.BigEndian.PutUint16(b[34:], 1<<15)
	}
	do(t, from, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for i := range n {
			binary.BigEndian.PutUint16(b[20:], uint16(firstPort+i))
			if protocol == unix.IPPROTO_TCP {
				setTCPChecksum(b)
			}
			if err := unix.Sendto(fd, b, 0, &unix.SockaddrInet4{Addr: to.As4()}); err != nil {
				return fmt.Errorf("send packet %d: %w", i, err)
			}
		}
		return nil
	})
}

// setTCPChecksum sums the pseudo header and the segment (RFC 9293, 3.1).
func setTCPChecksum(b []byte) {
	segment := b[20:]
	segment[16], segment[17] = 0, 0
	sum := uint32(unix.IPPROTO_TCP) + uint32(len(segment))
	for _, part := range [][]byte{b[12:20], segment} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(segment[16:], ^uint16(sum))
}

// forgetConnections empties a node's connection tracking: an agent would count
// what it finds there.
func forgetConnections(t *testing.T, n *netlab.Namespace) {
	t.Helper()
	if err := n.Do(func() error {
		c, err := conntrack.Dial(nil)
		if err != nil {
			return err
		}
		return errors.Join(c.Flush(), c.Close())
	}); err != nil {
		t.Fatal(err)
	}
}

// verdicts counts the connections to a port by verdict.
func verdicts(batches []flow.Batch, p uint16) map[flow.Verdict]uint64 {
	n := make(map[flow.Verdict]uint64)
	for _, r := range rows(batches, port(p)) {
		n[r.Verdict] += r.Connections
	}
	return n
}

// TestPlugins refuses 2,000 connections and lets as many pass, by the rules of
// each plugin, with each combination of witnesses.
func TestPlugins(t *testing.T) {
	const (
		each            = 2000
		open, refused   = 1001, 2001
		portsOfEachMode = 10_000
		limited         = 2 * 10 // for each address family, 10 at once
	)
	for _, p := range plugins() {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			n := netlab.NodeT(t, p.name, 1, 2)
			from, to := n.Pods[0], n.Pods[1]
			serve(t, to, open)
			serve(t, to, refused)
			names := manifests(t, map[string]*netlab.Node{p.name: n})
			tap := []string{"--tap"}
			for i, mode := range []struct {
				name string
				args []string
				all  bool // every refusal is seen
			}{
				{"with the tap alone", tap, true},
				{"with its log alone", p.log, p.all},
				{"with both", slices.Concat(tap, p.log), true},
			} {
				if len(p.log) == 0 && mode.name != "with the tap alone" {
					continue
				}
				t.Run(mode.name, func(t *testing.T) {
					p.apply(t, n.Namespace) // anew: its limits begin again
					forgetConnections(t, n.Namespace)
					s := newSink(t)
					a := startAgent(t, n.Namespace, s, nil, slices.Concat([]string{"--node-name", p.name, "--manifests", names, "--trust-confirmed", "yes"}, mode.args)...)
					s.reported(p.name)
					first := 10_000 + i*portsOfEachMode
					knocks(t, from, to, p.ipv6, first, each, refused)
					knocks(t, from, to, p.ipv6, first, each, open)
					s.until("every connection", func(all []flow.Batch) bool {
						denied := verdicts(all, refused)[flow.VerdictDenied]
						return verdicts(all, open)[flow.VerdictAllowed] >= each && (denied >= each || !mode.all && denied > 0)
					})
					a.stop()
					all := s.all()
					if got := verdicts(all, open); !maps.Equal(got, map[flow.Verdict]uint64{flow.VerdictAllowed: each}) {
						t.Errorf("connections that passed: %v, want all %d allowed", got, each)
					}
					got := verdicts(all, refused)
					if denied := got[flow.VerdictDenied]; len(got) != 1 || denied > each || mode.all && denied != each {
						t.Errorf("connections that were refused: %v of %d", got, each)
					}
					if !mode.all && got[flow.VerdictDenied] < limited {
						t.Errorf("its log told %d refusals, want the %d that its limits let through at once", got[flow.VerdictDenied], limited)
					}
					if _, packets, _ := total(all, refused); mode.all && packets != each {
						t.Errorf("%d packets for %d refused connections of one packet each", packets, each)
					}
					for _, b := range all {
						if len(b.Gaps) > 0 || b.Agent.Contradicted > 0 {
							t.Errorf("gaps %+v, %d records contradicted", b.Gaps, b.Agent.Contradicted)
						}
					}
				})
			}
		})
	}
}
