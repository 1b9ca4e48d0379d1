package kube

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// An address that nobody has may be of a pod that is told in a moment, unless
// pods are where podCIDRs say and it is not.
func TestWhereAPodMayBe(t *testing.T) {
	for _, c := range []struct {
		name, node, cidrs, pods string
		waits, outside          string
	}{
		{"pods of podCIDRs", "192.168.0.1", "10.244.0.0/24", "10.244.0.7", "10.244.0.200 10.244.0.8", "10.245.0.1 192.168.0.9 100.64.0.1 203.0.113.1"},
		{"no pod is known yet", "192.168.0.1", "10.244.0.0/24", "", "10.244.0.200 192.168.7.7 100.64.0.1", "203.0.113.1 2001:db8::1"},
		{"pools beside the podCIDRs", "172.16.0.1", "10.244.0.0/24", "192.168.4.5", "192.168.200.1 10.9.9.9 198.19.1.1", "203.0.113.1 198.51.100.1"},
		{"one pod of many is elsewhere", "172.16.0.1", "10.244.0.0/24", "10.244.0.7 10.244.0.8 192.168.4.5", "192.168.200.1", "203.0.113.1"},
		{"addresses of the cloud's network", "10.0.1.1", "", "10.0.3.4", "10.0.200.1 100.100.0.1", "203.0.113.1"},
		{"public ones of it, too", "203.0.113.1", "", "2001:db8:1:2::5", "203.0.200.7 2001:db8:1:2:ffff::9", "198.51.100.1 2001:db8:1:3::5"},
		{"a podCIDR that is less than a /24", "192.168.0.1", "10.244.0.64/26", "10.244.0.70", "10.244.0.71", "10.245.0.1"},
		{"each family by itself", "192.168.0.1", "10.244.0.0/24 fd00:1::/64", "10.244.0.7 fd00:2::1", "fd00:9::1", "10.245.0.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStage(t)
			n := newNode("n1", c.node)
			n.Spec.PodCIDRs = strings.Fields(c.cidrs)
			s.setNode(n, live(sec(0)))
			for i, a := range strings.Fields(c.pods) {
				s.set(1, runs(fmt.Sprint("p", i), a, 0.5))
			}
			for _, list := range []struct {
				addrs string
				wait  bool
			}{{c.waits, true}, {c.outside, false}} {
				for _, a := range strings.Fields(list.addrs) {
					if _, news := s.Holder(netip.MustParseAddr(a), sec(10), sec(10)); (news > 0) != list.wait {
						t.Errorf("%s: news may come for %s, want some: %t", a, news, list.wait)
					}
				}
			}
		})
	}
}

func TestPodCIDRsAreTrustedAgainWhenTheOthersAreForgotten(t *testing.T) {
	s := newStage(t)
	n := newNode("n1", "192.168.0.1")
	n.Spec = corev1.NodeSpec{PodCIDR: "10.244.0.0/24"}
	s.setNode(n, live(sec(0)))
	s.set(1, runs("in", "10.244.0.7", 0.5))
	p := runs("out", "10.9.0.7", 0.5)
	s.set(1, p)
	s.gone(9, finished(p, 8))
	waits := func() bool { return s.networks.mayContain(netip.MustParseAddr("10.7.0.1")) }
	if !waits() {
		t.Error("a pod was outside of the podCIDRs a moment ago, and another cannot be")
	}
	s.mu.Lock()
	s.forget(sec(20 + historyKept.Seconds()).UnixNano())
	s.mu.Unlock()
	if waits() {
		t.Error("the last pod outside of the podCIDRs is forgotten, and another is waited for")
	}
}
