package conntrack

import (
	"errors"
	"net"
	"testing"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/test/netlab"
)

// TestTheKernelTellsLabels: the rule is kube-network-policies', which labels a
// connection before it is confirmed.
func TestTheKernelTellsLabels(t *testing.T) {
	node := netlab.NodeT(t, "lb", 1, 2)
	if err := node.NFT(`table inet kube-network-policies {
	chain postrouting { type filter hook postrouting priority srcnat - 5; udp dport 5001 ct label set 28
	}
}`); err != nil {
		t.Fatal(err)
	}
	r := read(t, node.Namespace, Options{Node: "n1"})
	send := func(to string) {
		t.Helper()
		if err := node.Pods[0].Do(func() error {
			c, err := net.Dial("udp", to)
			if err != nil {
				return err
			}
			_, err = c.Write([]byte("x"))
			return errors.Join(err, c.Close())
		}); err != nil {
			t.Fatal(err)
		}
	}
	for to, want := range map[string]bool{"10.1.0.2:5001": true, "10.1.0.2:5002": false, "[fd00:1::2]:5001": true} {
		send(to)
		all := r.until(func(o *flow.Observation) bool {
			return o.Event == flow.EventNew && net.JoinHostPort(o.Original.Dst.String(), map[uint16]string{5001: "5001", 5002: "5002"}[o.Original.DstPort]) == to
		})
		if got := all[len(all)-1].Permitted; got != want {
			t.Errorf("%s: permitted: %v, want %v", to, got, want)
		}
	}
}
