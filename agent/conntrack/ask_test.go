package conntrack

import (
	"net"
	"net/netip"
	"testing"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/test/netlab/traffic"
)

// answers asks, and gives the answers by the questions' IDs, and what came before the last.
func (r *reading) answers(questions ...Question) map[uint32]flow.Event {
	r.t.Helper()
	for !r.source.Ask(questions) {
		r.t.Fatal("the source does not take questions")
	}
	got := make(map[uint32]flow.Event)
	r.until(func(o *flow.Observation) bool {
		switch o.Event {
		case flow.EventFound, flow.EventAbsent, flow.EventUnanswered:
			got[o.ID] = o.Event
		}
		return len(got) == len(questions)
	})
	return got
}

func TestKernelAnswers(t *testing.T) {
	node := setup(t, "ask")
	if err := node.NFT(`table inet zone {
	chain pre { type filter hook prerouting priority -300; udp dport 54 ct zone set 7
		udp sport 54 ct zone set 7
	}
}`); err != nil {
		t.Fatal(err)
	}
	a, b := node.Pods[0], node.Pods[1]
	r := read(t, node.Namespace, Options{})
	want := make(map[uint32]flow.Event)
	var questions []Question
	ask := func(q Question, e flow.Event) {
		q.ID = uint32(len(questions) + 1)
		questions, want[q.ID] = append(questions, q), e
	}
	for _, server := range []netip.Addr{b.IPv4, b.IPv6} {
		for _, port := range []string{"53", "54"} {
			addr := net.JoinHostPort(server.String(), port)
			serve(t, b.Namespace, "udp", addr)
			talk(t, a.Namespace, "udp", addr)
		}
		o := r.until(event(flow.EventNew, 54))
		for _, o := range o {
			if o.Event != flow.EventNew || o.Original.Dst != server {
				continue
			}
			q := Question{Original: o.Original, Protocol: flow.UDP, Zone: o.Zone}
			ask(q, flow.EventFound)
			reply := q
			reply.Original = o.Reply
			ask(reply, flow.EventFound)
			elsewhere := q
			elsewhere.Zone = 9
			ask(elsewhere, flow.EventAbsent)
			q.Original.SrcPort++
			ask(q, flow.EventAbsent)
		}
	}
	ping := Question{Original: flow.Tuple{Src: a.IPv4, Dst: b.IPv4}, Protocol: flow.ICMP, ICMPType: 8, ICMPID: 77}
	ask(ping, flow.EventAbsent)
	ping6 := Question{Original: flow.Tuple{Src: a.IPv6, Dst: b.IPv6}, Protocol: flow.ICMPv6, ICMPType: 128, ICMPID: 77}
	ask(ping6, flow.EventAbsent)
	ask(Question{Original: flow.Tuple{Src: a.IPv4, Dst: b.IPv4}, Protocol: 47}, flow.EventAbsent)
	if len(questions) < 19 {
		t.Fatalf("%d questions only", len(questions))
	}
	for id, got := range r.answers(questions...) {
		if got != want[id] {
			t.Errorf("question %+v: event %d, want %d", questions[id-1], got, want[id])
		}
	}
}

// TestKernelAnswersComeBehindTheEvents: who sees that a connection is absent
// has seen all that became of it.
func TestKernelAnswersComeBehindTheEvents(t *testing.T) {
	node := setup(t, "order")
	a, b := node.Pods[0], node.Pods[1]
	addr := net.JoinHostPort(b.IPv4.String(), "53")
	serve(t, b.Namespace, "udp", addr)
	r := read(t, node.Namespace, Options{})
	r.until(func(o *flow.Observation) bool { return o.Event == flow.EventDumpEnd })
	const connections = 100
	for i := range connections {
		// From a port of its own: the kernel may choose one twice, and that is one connection.
		if err := (traffic.Caller{From: a.Namespace, Port: uint16(10000 + i)}).Talk(t.Context(), "udp", addr, 5); err != nil {
			t.Fatal(err)
		}
	}
	if !r.source.Ask([]Question{{ID: 1, Original: flow.Tuple{Src: a.IPv4, Dst: b.IPv4, SrcPort: 1, DstPort: 1}, Protocol: flow.UDP}}) {
		t.Fatal("the source does not take questions")
	}
	begun := make(map[uint32]bool)
	for _, o := range r.until(func(o *flow.Observation) bool { return o.Event == flow.EventAbsent }) {
		if o.Event == flow.EventNew {
			begun[o.ID] = true
		}
	}
	if len(begun) != connections {
		t.Errorf("%d of %d connections were told before the answer", len(begun), connections)
	}
}
