package tap

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/flowaudit/flowaudit/agent/nflog"
	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/test/netlab"
)

// reading is a source that runs in a node, and what it delivered.
type reading struct {
	t      *testing.T
	node   *netlab.Node
	source *Source
	seen   chan flow.Observation
	gaps   chan flow.Gap
	stop   func() error
}

func options(deliver func([]flow.Observation) []flow.Observation, lost func(flow.Gap)) Options {
	return Options{Group: 4242, Node: "n1", Deliver: deliver, Lost: lost, Logger: slog.New(slog.DiscardHandler)}
}

func read(t *testing.T, node *netlab.Node, change func(*Options)) *reading {
	t.Helper()
	r := &reading{t: t, node: node, seen: make(chan flow.Observation, 1<<16), gaps: make(chan flow.Gap, 64)}
	o := options(func(s []flow.Observation) []flow.Observation {
		for _, x := range s {
			r.seen <- x
		}
		return make([]flow.Observation, 0, 256)
	}, func(g flow.Gap) { r.gaps <- g })
	if change != nil {
		change(&o)
	}
	if err := node.Do(func() (err error) {
		r.source, err = Open(o)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.source.Run(ctx) }()
	r.stop = func() error { cancel(); return <-done }
	t.Cleanup(cancel)
	return r
}

// next is the next record of a port.
func (r *reading) next(port uint16) flow.Observation {
	r.t.Helper()
	for {
		select {
		case o := <-r.seen:
			if o.Original.DstPort == port {
				return o
			}
		case <-r.t.Context().Done():
			r.t.Fatal("no record comes")
		}
	}
}

// send writes a datagram from pod 1.
func (r *reading) send(to string) {
	r.t.Helper()
	if err := r.node.Pods[0].Do(func() error {
		c, err := net.Dial("udp", to)
		if err != nil {
			return err
		}
		_, err = c.Write([]byte("x"))
		return errors.Join(err, c.Close())
	}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *reading) nft(args ...string) string {
	r.t.Helper()
	out, err := r.node.Command(context.Background(), "nft", args...).CombinedOutput()
	if err != nil {
		r.t.Fatalf("nft %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestRecords(t *testing.T) {
	node := netlab.NodeT(t, "rec", 1, 2)
	if err := node.NFT(`table inet cni {
	chain zones { type filter hook prerouting priority raw; udp dport 5002 ct zone set 9
	}
	chain raw1 { type filter hook prerouting priority raw; udp dport 5003 notrack
	}
	chain nat1 { type nat hook prerouting priority dstnat; ip daddr 10.96.0.1 udp dport 5004 dnat ip to 10.1.0.2:5005
	}
}`); err != nil {
		t.Fatal(err)
	}
	r := read(t, node, nil)
	for _, c := range []struct {
		name, to string
		port     uint16
		want     func(*flow.Observation) bool
	}{
		{"an attempt", "10.1.0.2:5001", 5001, func(o *flow.Observation) bool { return o.Event == flow.EventAttempt && o.Zone == 0 && o.Status == 0 }},
		{"IPv6", "[fd00:1::2]:5001", 5001, func(o *flow.Observation) bool { return o.Event == flow.EventAttempt && o.Original.Dst.Is6() }},
		{"in a zone", "10.1.0.2:5002", 5002, func(o *flow.Observation) bool { return o.Event == flow.EventAttempt && o.Zone == flow.ZoneNotDefault }},
		{"untracked", "10.1.0.2:5003", 5003, func(o *flow.Observation) bool { return o.Event == flow.EventUntracked }},
		{"before NAT", "10.96.0.1:5004", 5004, func(o *flow.Observation) bool { return o.Status == 0 && o.Original.Dst.String() == "10.96.0.1" }},
		{"after NAT", "10.96.0.1:5004", 5005, func(o *flow.Observation) bool {
			return o.Status == flow.StatusDstNAT && o.Original.Dst.String() == "10.1.0.2"
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r.send(c.to)
			if o := r.next(c.port); o.Source != flow.SourceTap || o.Verdict != flow.VerdictUnknown || !c.want(&o) {
				t.Errorf("%+v", o)
			}
		})
	}
}

func TestOneRecordAConnection(t *testing.T) {
	node := netlab.NodeT(t, "one", 1, 2)
	r := read(t, node, nil)
	if err := node.Pods[1].Do(func() error { // a server that does not answer
		c, err := net.ListenPacket("udp", ":5001")
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := node.Pods[0].Do(func() error {
		c, err := net.Dial("udp", "10.1.0.2:5001")
		if err != nil {
			return err
		}
		for range 10 {
			if _, err := c.Write([]byte("x")); err != nil {
				return err
			}
		}
		return c.Close()
	}); err != nil {
		t.Fatal(err)
	}
	r.next(5001)
	r.send("10.1.0.2:5009")
	for o := range r.seen {
		if o.Original.DstPort == 5009 {
			break
		}
		if o.Original.DstPort == 5001 {
			t.Error("a second record of one connection")
		}
	}
}

// TestARemovedTableIsPutBack is about kernels on which another program can
// remove it.
func TestARemovedTableIsPutBack(t *testing.T) {
	node := netlab.NodeT(t, "back", 1, 2)
	r := read(t, node, func(o *Options) { o.Shared = true })
	r.send("10.1.0.2:5001")
	r.next(5001)
	for i, remove := range [][]string{
		{"flush", "ruleset"},
		{"delete", "table", "inet", tableName},
		{"flush", "table", "inet", tableName},
		{"flush", "chain", "inet", tableName, "output"},
	} {
		r.nft(remove...)
		g := <-r.gaps
		if g.Source != "tap" || g.Kind != flow.GapSource || !g.End.After(g.Start) {
			t.Errorf("nft %s: gap %+v", strings.Join(remove, " "), g)
		}
		to := uint16(5002 + i)
		r.send(netip.AddrPortFrom(node.Pods[1].IPv4, to).String())
		r.next(to)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if left := r.nft("list", "ruleset"); left != "" {
		t.Errorf("what is left:\n%s", left)
	}
}

func TestWithoutALeaseNothingIsLogged(t *testing.T) {
	node := netlab.NodeT(t, "lease", 1, 2)
	r := read(t, node, func(o *Options) { o.Shared = true })
	r.send("10.1.0.2:5001")
	r.next(5001)
	r.nft("flush", "set", "inet", tableName, leaseName) // as time does
	r.send("10.1.0.2:5002")
	r.nft("add", "element", "inet", tableName, leaseName, "{ ipv4, ipv6 }")
	r.send("10.1.0.2:5003")
	for o := range r.seen {
		switch o.Original.DstPort {
		case 5002:
			t.Error("logged without a lease")
		case 5003:
			return
		}
	}
}

func TestTheTableOfAKilledProcessIsReplaced(t *testing.T) {
	node := netlab.NodeT(t, "stale", 1, 2)
	if err := node.NFT("table inet " + tableName + " {\n chain old { type filter hook input priority 0; drop\n }\n}"); err != nil {
		t.Fatal(err)
	}
	r := read(t, node, nil)
	if rules := r.nft("list", "ruleset"); strings.Contains(rules, "chain old") || !strings.Contains(rules, tableName) {
		t.Errorf("rules:\n%s", rules)
	}
}

func TestOpenFails(t *testing.T) {
	deliver, lost := func(s []flow.Observation) []flow.Observation { return s }, func(flow.Gap) {}
	t.Run("the group is taken", func(t *testing.T) {
		node := netlab.NodeT(t, "taken", 1, 2)
		read(t, node, nil)
		err := node.Do(func() error {
			_, err := Open(options(deliver, lost))
			return err
		})
		var taken *nflog.TakenError
		if !errors.As(err, &taken) || taken.Group != 4242 {
			t.Errorf("%v, want that the group is taken", err)
		}
	})
	t.Run("another agent owns the table", func(t *testing.T) {
		node := netlab.NodeT(t, "owned", 1, 2)
		read(t, node, nil)
		err := node.Do(func() error {
			o := options(deliver, lost)
			o.Group++
			_, err := Open(o)
			return err
		})
		if err == nil || !strings.Contains(err.Error(), tableName) {
			t.Errorf("%v, want that the table is taken", err)
		}
	})
	t.Run("conntrack tells nothing", func(t *testing.T) {
		node := netlab.NodeT(t, "quiet", 1, 2)
		if err := node.Sysctl("netfilter/nf_conntrack_events", "0"); err != nil {
			t.Fatal(err)
		}
		err := node.Do(func() error {
			_, err := Open(options(deliver, lost))
			return err
		})
		if err == nil || !strings.Contains(err.Error(), "nf_conntrack_events") {
			t.Errorf("%v, want what to switch on", err)
		}
	})
}

func TestAStoppedTapLeavesNothing(t *testing.T) {
	node := netlab.NodeT(t, "clean", 1, 2)
	r := read(t, node, nil)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if left := r.nft("list", "ruleset"); left != "" {
		t.Errorf("what is left:\n%s", left)
	}
}
