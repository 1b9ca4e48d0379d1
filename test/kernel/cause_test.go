package kernel

import (
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/test/netlab"
)

// standing are rules as kube-router, a host's firewall, an administrator and
// kube-proxy's two modes write them.
var standing = []string{
	"-N KUBE-ROUTER-FORWARD", "-N KUBE-POD-FW-ABCDEF", "-A FORWARD -j KUBE-ROUTER-FORWARD", "-A KUBE-ROUTER-FORWARD -d 10.1.0.2 -j KUBE-POD-FW-ABCDEF",
	"-A KUBE-POD-FW-ABCDEF -p tcp --dport 3001 -j REJECT",
	"-A FORWARD -p tcp --dport 3002 -j DROP",
	"-N KUBE-SERVICES", "-A FORWARD -j KUBE-SERVICES",
	"-A KUBE-SERVICES -d 10.96.0.7/32 -p tcp --dport 3003 -m comment --comment \"lab/empty has no endpoints\" -j REJECT --reject-with icmp-port-unreachable",
}

const proxy = `table inet office {
	chain in { type filter hook forward priority 5; policy accept; tcp dport 3004 drop
	}
}
table ip kube-proxy {
	chain filter-forward { type filter hook forward priority -110; ip daddr 10.96.0.8 tcp dport 3005 goto reject-chain
	}
	chain reject-chain { reject with icmp host-unreachable
	}
}`

// TestCauses: the kernel refuses connections of pod 1 in many ways, and each is
// told with what refused it.
func TestCauses(t *testing.T) {
	n := netlab.NodeT(t, "why", 1, 3)
	for _, rule := range standing {
		if out, err := n.Command(t.Context(), "iptables", splitRule(rule)...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", rule, err, out)
		}
	}
	must(t, n.NFT(proxy))
	// Services lead to pods' side of the node, as they would to a default route.
	must(t, n.IP("route", "add", "10.96.0.0/16", "dev", n.Pods[1].Veth))
	must(t, n.IP("route", "add", "prohibit", "198.51.100.0/24"))
	must(t, n.Sysctl("ipv4/conf/"+n.Pods[2].Veth+"/rp_filter", "1"))
	// Pod 3 has an address that the node knows elsewhere.
	must(t, n.Pods[2].Batch("addr add 10.1.0.99/32 dev lo"))
	must(t, n.Pods[2].Sysctl("ipv4/conf/all/arp_announce", "2")) // the filter is on questions for addresses, too
	must(t, n.IP("route", "add", "10.1.0.99", "dev", n.Pods[1].Veth))
	s := newSink(t)
	a := startAgent(t, n.Namespace, s, nil, "--node-name", "why", "--tap", "--manifests", manifests(t, map[string]*netlab.Node{"why": n}))
	s.reported("why")
	web := n.Pods[0]
	cases := []struct {
		name, to string
		from     *netlab.Pod
		local    string // the client's address, if not the pod's
		port     uint16
		want     flow.Reason
		chain    string // of the rule that is named
	}{
		{"kube-router's rule is a policy's", "10.1.0.2:3001", n.Pods[0], "", 3001, flow.ReasonNeverConfirmed, ""},
		{"a rule of the host's", "10.1.0.2:3002", web, "", 3002, flow.ReasonFirewall, "FORWARD"},
		{"an administrator's table", "10.1.0.2:3004", web, "", 3004, flow.ReasonFirewall, "in"},
		{"a Service without endpoints, by iptables", "10.96.0.7:3003", web, "", 3003, flow.ReasonNoEndpoint, "KUBE-SERVICES"},
		{"a Service without endpoints, by nftables", "10.96.0.8:3005", web, "", 3005, flow.ReasonNoEndpoint, "reject-chain"},
		{"no route", "203.0.113.9:3006", web, "", 3006, flow.ReasonNoRoute, ""},
		{"no route over IPv6", "[2001:db8::9]:3007", web, "", 3007, flow.ReasonNoRoute, ""},
		{"a route that prohibits", "198.51.100.9:3008", web, "", 3008, flow.ReasonNoRoute, ""},
		{"the reverse path filter", "10.1.0.2:3009", n.Pods[2], "10.1.0.99", 3009, flow.ReasonReversePath, ""},
	}
	var group errgroup.Group
	for _, c := range cases {
		group.Go(func() error { return attempt(c.from, c.local, c.to) })
	}
	must(t, group.Wait())
	for _, c := range cases {
		s.until(c.name, func(all []flow.Batch) bool {
			return slices.ContainsFunc(flows(all, port(c.port)), func(f flow.Flow) bool { return f.Reason == c.want && chainOf(&f) == c.chain })
		})
	}
	a.stop()
	all := s.all()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			for _, f := range flows(all, port(c.port)) {
				if f.Connections == 0 || f.Reason == flow.ReasonPending {
					continue
				}
				// Of a rejected program's first attempt there is no retry to be traced.
				first := f.Reason == flow.ReasonNeverConfirmed
				if f.Verdict != flow.VerdictDenied || f.Reason != c.want && !first {
					t.Errorf("%s (%s, chain %q), want denied (%s, chain %q)", f.Verdict, f.Reason, chainOf(&f), c.want, c.chain)
				}
			}
		})
	}
}

func chainOf(f *flow.Flow) string {
	for _, p := range f.Policies {
		if p.Kind == flow.KindNetfilter {
			return p.Name
		}
	}
	return ""
}

// splitRule splits a rule as a shell would.
func splitRule(rule string) []string {
	var out []string
	for i, part := range strings.Split(rule, `"`) {
		if i%2 == 1 {
			out = append(out, part)
		} else {
			out = append(out, strings.Fields(part)...)
		}
	}
	return out
}

// attempt dials until TCP, or a program that is rejected, has tried again:
// what becomes of that shows.
func attempt(from *netlab.Pod, local, to string) error {
	return from.Do(func() error {
		for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
			d := net.Dialer{Deadline: end}
			if local != "" {
				d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(local)}
			}
			if c, err := d.Dial("tcp", to); err == nil {
				return errors.Join(errors.New(to+" answers"), c.Close())
			}
		}
		return nil
	})
}
