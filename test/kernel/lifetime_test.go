package kernel

import (
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ti-mo/conntrack"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/test/netlab"
)

// total sums the flows of a port that pass.
func total(batches []flow.Batch, p uint16) (connections, packets, bytes uint64) {
	for _, f := range flows(batches, port(p)) {
		connections += f.Connections
		packets += f.Sent.Packets
		bytes += f.Sent.Bytes
	}
	return connections, packets, bytes
}

// datagram is what an exchange of 100 bytes over UDP and IPv4 counts.
const datagram = 20 + 8 + 100

// node is one node with two pods behind policy, and an agent's arguments for it.
func newNode(t *testing.T, label string, subnet uint8) (*netlab.Node, []string) {
	t.Helper()
	n := netlab.NodeT(t, label, subnet, 2)
	if err := n.NFT(policy); err != nil {
		t.Fatal(err)
	}
	return n, []string{"--node-name", label, "--nflog-group", "100", "--manifests", manifests(t, map[string]*netlab.Node{label: n})}
}

func TestALongConnectionIsCountedOnceAndMeasuredAlways(t *testing.T) {
	n, args := newNode(t, "kl", 4)
	s := newSink(t)
	a := startAgent(t, n.Namespace, s, nil, args...)
	s.reported("kl")
	serve(t, n.Pods[1], 1001)
	c := connect(t, n.Pods[0], "udp", hostPort(n.Pods[1].IPv4, 1001))
	defer c.Close()
	for sent := uint64(1); sent <= 4; sent++ {
		exchange(t, c, 100)
		s.until("the connection's new bytes, while it lives", func(all []flow.Batch) bool {
			_, _, bytes := total(all, 1001)
			return bytes == sent*datagram
		})
	}
	a.stop()
	if connections, packets, bytes := total(s.all(), 1001); connections != 1 || packets != 4 || bytes != 4*datagram {
		t.Errorf("%d connections, %d packets, %d bytes; want 1, 4, %d", connections, packets, bytes, 4*datagram)
	}
}

func TestRestart(t *testing.T) {
	for _, c := range []struct {
		name   string
		signal syscall.Signal
		keep   bool
	}{
		{"a stopped agent with a place for its state counts everything once", syscall.SIGTERM, true},
		{"one without counts live connections again", syscall.SIGTERM, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, args := newNode(t, "kr", 5)
			if c.keep {
				args = append(args, "--state-dir", t.TempDir())
			}
			s := newSink(t)
			a := startAgent(t, n.Namespace, s, nil, args...)
			s.reported("kr")
			serve(t, n.Pods[1], 1001)
			conn := connect(t, n.Pods[0], "udp", hostPort(n.Pods[1].IPv4, 1001))
			defer conn.Close()
			exchange(t, conn, 100)
			s.until("the connection", func(all []flow.Batch) bool { n, _, _ := total(all, 1001); return n == 1 })
			a.end(c.signal, false)

			before := len(s.all())
			exchange(t, conn, 100) // while nobody watches
			a = startAgent(t, n.Namespace, s, nil, args...)
			s.until("the next agent", func(all []flow.Batch) bool { return len(all) > before })
			exchange(t, conn, 100)
			want := uint64(1)
			bytes := uint64(3 * datagram)
			if !c.keep {
				want, bytes = 2, 2*datagram // what it moved before the agent is not of its windows
			}
			s.until("what came after the restart", func(all []flow.Batch) bool { _, _, b := total(all, 1001); return b >= bytes })
			a.stop()
			if n, _, b := total(s.all(), 1001); n != want || b != bytes {
				t.Errorf("%d connections, %d bytes; want %d, %d", n, b, want, bytes)
			}
		})
	}
}

// TestEveryConnectionIsAccountedFor sends 100,000 connections at once, every
// tenth of them to a port that is refused. With FLOWAUDIT_SOAK it goes on for
// that long.
func TestEveryConnectionIsAccountedFor(t *testing.T) {
	n, args := newNode(t, "kh", 6)
	from, to := n.Pods[0], n.Pods[1]
	if err := n.IP("route", "add", "10.200.0.0/16", "dev", from.Veth); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_max", []byte("1048576"), 0); err != nil {
		t.Fatal(err)
	}
	if err := n.Sysctl("netfilter/nf_conntrack_udp_timeout", "5"); err != nil {
		t.Fatal(err)
	}
	s := newSink(t)
	a := startAgent(t, n.Namespace, s, nil, args...)
	s.reported("kh")
	serve(t, to, 1001)
	const each = 100_000
	for round, until := 1, soakEnd(t); ; round++ {
		burst(t, from, to.IPv4, each*(round-1), each, func(i int) uint16 {
			if i%10 == 0 {
				return 2001
			}
			return 1001
		})
		want := uint64(each * round)
		s.until("every connection", func(all []flow.Batch) bool {
			allowed, denied := count(all)
			return allowed+denied >= want
		})
		allowed, denied := count(s.all())
		t.Logf("round %d: %d allowed, %d denied", round, allowed, denied)
		if allowed != want/10*9 || denied != want/10 {
			t.Fatalf("%d allowed and %d denied, want %d and %d", allowed, denied, want/10*9, want/10)
		}
		if time.Now().After(until) {
			break
		}
		forget(t, n)
	}
	a.stop()
	for _, b := range s.all() {
		if len(b.Gaps) > 0 {
			t.Errorf("gaps %+v", b.Gaps)
		}
	}
}

// count sums the connections of all flows: allowed, by reply or because they
// passed the policy, and denied. Others fit neither, and are missed.
func count(batches []flow.Batch) (allowed, denied uint64) {
	for _, b := range batches {
		for i := range b.Flows {
			switch f := &b.Flows[i]; f.Verdict {
			case flow.VerdictAllowed:
				allowed += f.Connections
			case flow.VerdictDenied:
				denied += f.Connections
			}
		}
	}
	return allowed, denied
}

// soakEnd is when a soak ends; now, if there is none.
func soakEnd(t *testing.T) time.Time {
	t.Helper()
	s := os.Getenv("FLOWAUDIT_SOAK")
	if s == "" {
		return time.Now()
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatalf("FLOWAUDIT_SOAK: %v", err)
	}
	return time.Now().Add(d)
}

// forget makes the kernel forget its connections, so that its table has room.
func forget(t *testing.T, n *netlab.Node) {
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

// TestFragmentsWithoutTracking: where nothing is tracked, rules see fragments,
// and only the first names its ports.
func TestFragmentsWithoutTracking(t *testing.T) {
	n := netlab.NodeT(t, "kf", 7, 2)
	if err := n.NFT("table inet cni {\n chain forward { type filter hook forward priority 0; ip daddr 10.7.0.2 log group 100 drop\n }\n}"); err != nil {
		t.Fatal(err)
	}
	s := newSink(t)
	a := startAgent(t, n.Namespace, s, nil, "--node-name", "kf", "--nflog-group", "100", "--conntrack=false")
	s.reported("kf")
	do(t, n.Pods[0], func() error {
		c, err := net.Dial("udp", hostPort(n.Pods[1].IPv4, 2001))
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write(make([]byte, 4000))
		return err
	})
	s.until("the denial", func(all []flow.Batch) bool { return len(rows(all, port(2001))) > 0 })
	a.stop()
	want := row{flow.UDP, "10.7.0.1", "10.7.0.2", 2001, flow.VerdictDenied, flow.ReasonLogged, 1}
	if got := rows(s.all(), nil); !slices.Equal(got, []row{want}) {
		t.Errorf("reported:\n%swant:\n%s", show(got), show([]row{want}))
	}
}

// TestPodScope: an agent in the pod's own namespace sees what its pod does,
// and says what it cannot see.
func TestPodScope(t *testing.T) {
	n, _ := newNode(t, "kp", 8)
	pod, peer := n.Pods[0], n.Pods[1]
	serve(t, peer, 1001)
	serve(t, pod, 1002)
	s := newSink(t)
	env := []string{"POD_NAMESPACE=lab", "POD_NAME=web-0", "POD_IPS=" + pod.IPv4.String() + "," + pod.IPv6.String(), "NODE_NAME=kp"}
	a := startAgent(t, pod.Namespace, s, env, "--scope", "pod")
	s.reported("lab/web-0")
	talk(t, pod, "tcp", hostPort(peer.IPv4, 1001), 100)
	talk(t, peer, "tcp", hostPort(pod.IPv6, 1002), 100)
	knock(t, pod, "tcp", hostPort(peer.IPv4, 2001))
	knock(t, peer, "tcp", hostPort(pod.IPv4, 2002))
	s.until("the unanswered one", func(all []flow.Batch) bool { return len(rows(all, port(2001))) > 0 })
	if tables(t, pod) == "" {
		t.Error("tracking is not switched on by a table")
	}
	a.stop()
	if left := tables(t, pod); left != "" {
		t.Errorf("the agent left %s", left)
	}
	want := []row{
		{flow.TCP, "10.8.0.1", "10.8.0.2", 1001, flow.VerdictAllowed, flow.ReasonReply, 1},
		{flow.TCP, "10.8.0.1", "10.8.0.2", 2001, flow.VerdictUnanswered, flow.ReasonNoReply, 1},
		{flow.TCP, "fd00:8::2", "fd00:8::1", 1002, flow.VerdictAllowed, flow.ReasonReply, 1},
	}
	all := s.all()
	if got := rows(all, func(f *flow.Flow) bool { return f.Protocol == flow.TCP }); !slices.Equal(got, want) {
		t.Errorf("reported:\n%swant:\n%s", show(got), show(want))
	}
	last := all[len(all)-1]
	if last.Scope != flow.ScopePod || !strings.Contains(strings.Join(last.Agent.Limits, "; "), "unanswered") {
		t.Errorf("scope %v, limits %q: want the pod's, and what cannot be seen", last.Scope, last.Agent.Limits)
	}
	for _, f := range flows(all, port(1001)) {
		if f.Source == nil || f.Source.Pod != "web-0" || f.Source.Namespace != "lab" {
			t.Errorf("source %+v, want lab/web-0", f.Source)
		}
	}
}

func TestAKilledPodAgentLeavesNoTable(t *testing.T) {
	n := netlab.NodeT(t, "kk", 9, 1)
	s := newSink(t)
	a := startAgent(t, n.Pods[0].Namespace, s, []string{"POD_NAMESPACE=lab", "POD_NAME=web-0"}, "--scope", "pod")
	s.reported("lab/web-0")
	a.end(syscall.SIGKILL, true)
	if left := tables(t, n.Pods[0]); left != "" {
		t.Errorf("the agent left %s", left)
	}
}

// tables lists the nftables tables of a pod.
func tables(t *testing.T, pod *netlab.Pod) string {
	t.Helper()
	out, err := pod.Command(t.Context(), "nft", "list", "tables").CombinedOutput()
	if err != nil {
		t.Fatalf("nft list tables: %v: %s", err, out)
	}
	return strings.TrimSpace(string(out))
}
