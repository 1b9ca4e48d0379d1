package nflog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/test/netlab"
)

// reading is a source that runs in a node, and what it delivered.
type reading struct {
	seen   chan flow.Observation
	gaps   chan flow.Gap
	source *Source
}

func read(t *testing.T, node *netlab.Node, o Options) *reading {
	t.Helper()
	r := &reading{seen: make(chan flow.Observation, 1<<17), gaps: make(chan flow.Gap, 1024)}
	deliver := o.Deliver
	o.Deliver = func(s []flow.Observation) []flow.Observation {
		if deliver != nil {
			deliver(s)
		}
		for _, x := range s {
			r.seen <- x
		}
		return make([]flow.Observation, 0, 256)
	}
	o.Lost = func(g flow.Gap) { r.gaps <- g }
	o.Logger, o.Node = slog.New(slog.DiscardHandler), "n1"
	if err := node.Do(func() (err error) {
		r.source, err = Open(o)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.source.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r
}

func refuse(group int) string {
	return fmt.Sprintf(`table inet cni {
	chain pods {
		type filter hook forward priority 0; policy accept;
		ct state established,related accept
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
		log group %d
		drop
	}
}`, group)
}

// send writes datagrams from a pod; nobody answers.
func send(t *testing.T, from *netlab.Pod, network, to string, n int) {
	t.Helper()
	if err := from.Do(func() error {
		c, err := net.Dial(network, to)
		if err != nil {
			return err
		}
		defer c.Close()
		for range n {
			if _, err := c.Write([]byte("x")); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestKernelRecords(t *testing.T) {
	node := netlab.NodeT(t, "log", 1, 2)
	if err := node.NFT(refuse(100)); err != nil {
		t.Fatal(err)
	}
	a, b := node.Pods[0], node.Pods[1]
	r := read(t, node, Options{Group: Group{Number: 100}})
	for _, to := range []string{b.IPv4.String(), b.IPv6.String()} {
		send(t, a, "udp", net.JoinHostPort(to, "5353"), 1)
		o := <-r.seen
		if o.Protocol != flow.UDP || o.Original.Dst.String() != to || o.Original.DstPort != 5353 || o.Verdict != flow.VerdictDenied || o.Time == 0 || o.InDev == 0 {
			t.Errorf("UDP to %s: %+v", to, o)
		}
		if err := a.Do(func() error {
			d := net.Dialer{}
			ctx, cancel := context.WithCancel(context.Background())
			go func() {
				o := <-r.seen
				if o.Protocol != flow.TCP || o.TCPFlags != flow.TCPSyn || o.Original.DstPort != 3306 {
					t.Errorf("TCP to %s: %+v", to, o)
				}
				cancel()
			}()
			if c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(to, "3306")); err == nil {
				c.Close()
				return errors.New("a refused connection got through")
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
}

func TestKernelLossIsSeen(t *testing.T) {
	node := netlab.NodeT(t, "loss", 1, 2)
	if err := node.NFT(refuse(100)); err != nil {
		t.Fatal(err)
	}
	held, hold := make(chan struct{}), make(chan struct{})
	first := true
	r := read(t, node, Options{Group: Group{Number: 100}, ReceiveBuffer: 4096, Deliver: func(s []flow.Observation) []flow.Observation {
		if len(s) > 0 && first {
			first = false
			close(held)
			<-hold
		}
		return nil
	}})
	to := net.JoinHostPort(node.Pods[1].IPv4.String(), "5353")
	send(t, node.Pods[0], "udp", to, 1)
	<-held
	sent := uint64(5000)
	send(t, node.Pods[0], "udp", to, int(sent))
	close(hold)
	kinds := map[flow.GapKind]bool{}
	for !kinds[flow.GapOverrun] || !kinds[flow.GapSequence] {
		select {
		case g := <-r.gaps:
			kinds[g.Kind] = true
		case <-r.seen:
			// Each further packet may be the one that shows the gap in the numbers.
		default:
			send(t, node.Pods[0], "udp", to, 1)
			sent++
		}
	}
	if lost := r.source.Stats().Lost; lost == 0 || lost > sent {
		t.Errorf("%d of %d records lost", lost, sent)
	}
}

func TestKernelTakenGroup(t *testing.T) {
	node := netlab.NodeT(t, "taken", 1, 0)
	read(t, node, Options{Group: Group{Number: 100}})
	err := node.Do(func() error {
		_, err := Open(Options{
			Group: Group{Number: 100}, Deliver: func(s []flow.Observation) []flow.Observation { return s },
			Lost: func(flow.Gap) {}, Logger: slog.New(slog.DiscardHandler),
		})
		return err
	})
	var taken *TakenError
	if !errors.As(err, &taken) || taken.Group != 100 || !strings.Contains(taken.Owner, "pid") && !strings.Contains(taken.Owner, "port") {
		t.Errorf("error %v, want a TakenError that names the owner", err)
	}
}
