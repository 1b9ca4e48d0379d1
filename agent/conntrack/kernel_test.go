package conntrack

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ti-mo/conntrack"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/test/netlab"
)

// tracking switches connection tracking on, as any stateful rule does.
const tracking = `table inet track {
	chain fwd1 { type filter hook forward priority 0; ct state invalid counter
	}
}`

// reading is a source that runs in a namespace, and what it delivered.
type reading struct {
	t      *testing.T
	source *Source
	seen   chan flow.Observation
	gaps   chan flow.Gap
}

func read(t *testing.T, ns *netlab.Namespace, o Options) *reading {
	t.Helper()
	r := &reading{t: t, seen: make(chan flow.Observation, 1<<18), gaps: make(chan flow.Gap, 1024)}
	before := o.Deliver
	o.Deliver = func(s []flow.Observation) []flow.Observation {
		if before != nil {
			before(s)
		}
		for _, x := range s {
			r.seen <- x
		}
		return make([]flow.Observation, 0, 64)
	}
	o.Lost = func(g flow.Gap) { r.gaps <- g }
	o.Logger = slog.New(slog.DiscardHandler)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	opened := make(chan error, 1)
	go func() {
		done <- ns.Do(func() error { // dumps open their sockets while it runs
			s, err := Open(o)
			r.source = s
			opened <- err
			if err != nil {
				return nil
			}
			return s.Run(ctx)
		})
	}()
	if err := <-opened; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r
}

// until returns everything up to the first observation that is wanted, that one last.
func (r *reading) until(want func(*flow.Observation) bool) []flow.Observation {
	r.t.Helper()
	var all []flow.Observation
	for {
		select {
		case o := <-r.seen:
			all = append(all, o)
			if want(&o) {
				return all
			}
		case <-r.t.Context().Done():
			r.t.Fatalf("never came; saw %+v", all)
		}
	}
}

func event(e flow.Event, port uint16) func(*flow.Observation) bool {
	return func(o *flow.Observation) bool { return o.Event == e && o.Original.DstPort == port }
}

// serve answers every connection or datagram with an echo, until the test ends.
func serve(t *testing.T, pod *netlab.Namespace, network, addr string) {
	t.Helper()
	if err := pod.Do(func() error {
		if strings.HasPrefix(network, "udp") {
			c, err := net.ListenPacket(network, addr)
			if err != nil {
				return err
			}
			t.Cleanup(func() { c.Close() })
			go func() {
				buf := make([]byte, 1500)
				for {
					n, from, err := c.ReadFrom(buf)
					if err != nil {
						return
					}
					_, _ = c.WriteTo(buf[:n], from)
				}
			}()
			return nil
		}
		l, err := net.Listen(network, addr)
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { _, _ = io.Copy(c, c); c.Close() }()
			}
		}()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// talk sends a few bytes and waits for their echo.
func talk(t *testing.T, pod *netlab.Namespace, network, addr string) {
	t.Helper()
	if err := pod.Do(func() error {
		c, err := net.Dial(network, addr)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.Write([]byte("hello")); err != nil {
			return err
		}
		_, err = io.ReadFull(c, make([]byte, 5))
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// flush ends every tracked connection now.
func flush(t testing.TB, ns *netlab.Namespace) {
	t.Helper()
	if err := ns.Do(func() error {
		c, err := conntrack.Dial(nil)
		if err != nil {
			return err
		}
		defer c.Close()
		return c.Flush()
	}); err != nil {
		t.Fatal(err)
	}
}

func setup(t *testing.T, label string) *netlab.Node {
	node := netlab.NodeT(t, label, 3, 2)
	if err := node.NFT(tracking); err != nil {
		t.Fatal(err)
	}
	return node
}

func TestKernelEvents(t *testing.T) {
	node := setup(t, "events")
	a, b := node.Pods[0], node.Pods[1]
	r := read(t, node.Namespace, Options{DumpInterval: time.Hour})
	r.until(func(o *flow.Observation) bool { return o.Event == flow.EventDumpEnd })
	for _, to := range []string{b.IPv4.String(), b.IPv6.String()} {
		addr := net.JoinHostPort(to, "80")
		serve(t, b.Namespace, "tcp", addr)
		serve(t, b.Namespace, "udp", net.JoinHostPort(to, "53"))
		t.Run("TCP to "+to+" is three events, the end with counters", func(t *testing.T) {
			talk(t, a.Namespace, "tcp", addr)
			seen := r.until(func(o *flow.Observation) bool { return event(flow.EventUpdate, 80)(o) && o.Original.Dst.String() == to })
			id := seen[len(seen)-1].ID
			flush(t, node.Namespace)
			seen = append(seen, r.until(func(o *flow.Observation) bool { return o.Event == flow.EventDestroy && o.ID == id })...)
			events := slices.DeleteFunc(seen, func(o flow.Observation) bool { return o.ID != id })
			if len(events) != 3 || events[0].Event != flow.EventNew || events[1].Event != flow.EventUpdate || events[1].Status&flow.StatusSeenReply == 0 {
				t.Fatalf("events %+v, want NEW, UPDATE with a reply, DESTROY", events)
			}
			end := events[2]
			if !end.Counted || end.Sent.Packets < 2 || end.Received.Packets < 1 || end.Original.Dst.String() != to || end.Reply.Src.String() != to || end.ID != events[0].ID {
				t.Errorf("end %+v", end)
			}
		})
		t.Run("UDP to "+to+" tells its reply", func(t *testing.T) {
			talk(t, a.Namespace, "udp", net.JoinHostPort(to, "53"))
			events := r.until(event(flow.EventUpdate, 53))
			if o := events[len(events)-1]; o.Status&flow.StatusSeenReply == 0 || o.Protocol != flow.UDP {
				t.Errorf("update %+v, want a reply seen", o)
			}
		})
	}
}

func TestKernelTranslation(t *testing.T) {
	node := setup(t, "nat")
	a, b := node.Pods[0], node.Pods[1]
	if err := node.NFT(fmt.Sprintf(`table ip nat {
	chain pre { type nat hook prerouting priority -100; ip daddr 10.96.0.1 tcp dport 80 dnat to %s:8080
	}
	chain post { type nat hook postrouting priority 100; ip saddr %s masquerade
	}
}`, b.IPv4, a.IPv4)); err != nil {
		t.Fatal(err)
	}
	serve(t, b.Namespace, "tcp", net.JoinHostPort(b.IPv4.String(), "8080"))
	r := read(t, node.Namespace, Options{})
	r.until(func(o *flow.Observation) bool { return o.Event == flow.EventDumpEnd })
	talk(t, a.Namespace, "tcp", "10.96.0.1:80")
	o := r.until(event(flow.EventNew, 80))[0]
	if o.Original.Dst.String() != "10.96.0.1" || o.Reply.Src != b.IPv4 || o.Reply.SrcPort != 8080 || o.Reply.Dst == a.IPv4 || o.Original.Src != a.IPv4 {
		t.Errorf("%+v, want DNAT to %s:8080 and a translated source", o, b.IPv4)
	}
}

func TestKernelDumpFindsEarlierConnections(t *testing.T) {
	node := setup(t, "dump")
	a, b := node.Pods[0], node.Pods[1]
	addr := net.JoinHostPort(b.IPv4.String(), "80")
	serve(t, b.Namespace, "tcp", addr)
	var c net.Conn
	if err := a.Do(func() (err error) { c, err = net.Dial("tcp", addr); return err }); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := read(t, node.Namespace, Options{})
	all := r.until(func(o *flow.Observation) bool { return o.Event == flow.EventDumpEnd })
	begun := slices.IndexFunc(all, func(o flow.Observation) bool { return o.Event == flow.EventDumpBegin })
	first := slices.IndexFunc(all, func(o flow.Observation) bool { return o.Event == flow.EventDump })
	if begun < 0 || first < begun {
		t.Errorf("the dump's begin is at %d, its first connection at %d", begun, first)
	}
	for _, o := range all {
		if event(flow.EventDump, 80)(&o) && o.Counted && o.TCPState == flow.TCPStateEstablished {
			return
		}
	}
	t.Errorf("dump %+v does not hold the connection", all)
}

func TestKernelZone(t *testing.T) {
	node := setup(t, "zone")
	if err := node.NFT(`table inet zone {
	chain pre { type filter hook prerouting priority -300; ct zone set 7
	}
}`); err != nil {
		t.Fatal(err)
	}
	a, b := node.Pods[0], node.Pods[1]
	addr := net.JoinHostPort(b.IPv4.String(), "80")
	serve(t, b.Namespace, "tcp", addr)
	r := read(t, node.Namespace, Options{})
	talk(t, a.Namespace, "tcp", addr)
	all := r.until(event(flow.EventNew, 80))
	if o := all[len(all)-1]; o.Zone != 7 {
		t.Errorf("zone %d, want 7", o.Zone)
	}
}

func TestKernelLoopbackIsNotTold(t *testing.T) {
	node := setup(t, "loop")
	if err := node.NFT(`table inet own {
	chain out { type filter hook output priority 0; ct state invalid counter
	}
}`); err != nil {
		t.Fatal(err)
	}
	b := node.Pods[1]
	for _, addr := range []string{"127.0.0.1:81", "[::1]:81"} {
		serve(t, node.Namespace, "tcp", addr)
	}
	serve(t, b.Namespace, "tcp", net.JoinHostPort(b.IPv4.String(), "80"))
	r := read(t, node.Namespace, Options{})
	r.until(func(o *flow.Observation) bool { return o.Event == flow.EventDumpEnd })
	talk(t, node.Namespace, "tcp", "127.0.0.1:81")
	talk(t, node.Namespace, "tcp", "[::1]:81")
	talk(t, node.Namespace, "tcp", net.JoinHostPort(b.IPv4.String(), "80"))
	for _, o := range r.until(event(flow.EventNew, 80)) {
		if o.Original.DstPort == 81 {
			t.Errorf("told of loopback: %+v", o)
		}
	}
}

func TestKernelOverrunIsToldAndHealed(t *testing.T) {
	node := setup(t, "overrun")
	a, b := node.Pods[0], node.Pods[1]
	addr := net.JoinHostPort(b.IPv4.String(), "53")
	serve(t, b.Namespace, "udp", addr)
	held, release := make(chan struct{}), make(chan struct{})
	blocked := false
	r := read(t, node.Namespace, Options{ReceiveBuffer: 4096, Deliver: func(s []flow.Observation) []flow.Observation {
		if len(s) > 0 && s[0].Event == flow.EventNew && !blocked {
			blocked = true
			close(held)
			<-release
		}
		return nil
	}})
	r.until(func(o *flow.Observation) bool { return o.Event == flow.EventDumpEnd })
	talk(t, a.Namespace, "udp", addr)
	<-held
	for range 200 {
		talk(t, a.Namespace, "udp", addr)
	}
	close(release)
	if g := <-r.gaps; g.Kind != flow.GapOverrun || g.End.Before(g.Start) {
		t.Errorf("gap %+v", g)
	}
	known := make(map[uint16]bool)
	r.until(func(o *flow.Observation) bool {
		if o.Original.DstPort == 53 {
			known[o.Original.SrcPort] = true
		}
		return o.Event == flow.EventDumpEnd
	})
	if len(known) < 190 { // the kernel may give a source port twice
		t.Errorf("after the healing dump %d connections are known, want 201", len(known))
	}
}

func TestKernelActivate(t *testing.T) {
	node := netlab.NodeT(t, "activate", 3, 2)
	a, b := node.Pods[0], node.Pods[1]
	addr := net.JoinHostPort(b.IPv4.String(), "80")
	serve(t, b.Namespace, "tcp", addr)
	var release func() error
	if err := a.Do(func() (err error) {
		if release, err = Activate(); err != nil {
			return err
		}
		return Account()
	}); err != nil {
		t.Fatal(err)
	}
	r := read(t, a.Namespace, Options{})
	talk(t, a.Namespace, "tcp", addr)
	r.until(event(flow.EventNew, 80))
	if err := release(); err != nil {
		t.Fatal(err)
	}
	cmd := a.Command(t.Context(), "nft", "list", "tables")
	if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), tableName) {
		t.Errorf("tables after release: %s %v", out, err)
	}
}
