package tap

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flowaudit/flowaudit/agent/nlmsg"
	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/test/netlab"
)

// walls drop packets in many ways.
const walls = `table inet host {
	chain pre { type nat hook prerouting priority dstnat; ip daddr 10.96.0.1 udp dport 53 dnat ip to 10.1.0.2:4004;
	}
	chain forward { type filter hook forward priority 10; policy accept;
		udp dport 4001 drop
		udp dport 4002 reject
		udp dport 4003 jump deeper
		udp dport 4004 drop
	}
	chain deeper { udp dport 4003 counter drop; }
	chain last { type filter hook forward priority 20; policy drop; udp dport != 4005 accept; }
}`

// TestTraces follows packets of pod 1 to pod 2 and finds what dropped them.
func TestTraces(t *testing.T) {
	node := netlab.NodeT(t, "tr", 1, 2)
	if err := node.NFT(walls); err != nil {
		t.Fatal(err)
	}
	if out, err := node.Command(t.Context(), "iptables", "-A", "FORWARD", "-p", "udp", "--dport", "4006", "-j", "DROP").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r := read(t, node, nil)
	for _, c := range []struct {
		name, to   string
		dst        string
		port, seen uint16 // as the tap logs it, and as it is dropped
		want       flow.PolicyRef
	}{
		{"a rule", "10.1.0.2:4001", "10.1.0.2", 4001, 4001, flow.PolicyRef{Namespace: "inet host", Name: "forward"}},
		{"a rule, over IPv6", "[fd00:1::2]:4001", "fd00:1::2", 4001, 4001, flow.PolicyRef{Namespace: "inet host", Name: "forward"}},
		{"a rejecting rule", "10.1.0.2:4002", "10.1.0.2", 4002, 4002, flow.PolicyRef{Namespace: "inet host", Name: "forward"}},
		{"a rule of a chain below", "10.1.0.2:4003", "10.1.0.2", 4003, 4003, flow.PolicyRef{Namespace: "inet host", Name: "deeper"}},
		{"behind a Service", "10.96.0.1:53", "10.96.0.1", 53, 4004, flow.PolicyRef{Namespace: "inet host", Name: "forward"}},
		{"a chain's policy", "10.1.0.2:4005", "10.1.0.2", 4005, 4005, flow.PolicyRef{Namespace: "inet host", Name: "last", Rule: "policy drop"}},
		{"a rule of iptables", "10.1.0.2:4006", "10.1.0.2", 4006, 4006, flow.PolicyRef{Namespace: "ip filter", Name: "FORWARD"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dst, src := netip.MustParseAddr(c.dst), node.Pods[0].IPv4
			if dst.Is6() {
				src = node.Pods[0].IPv6
			}
			for !r.source.Trace([]Traced{{flow.UDP, src, dst, c.port}}) {
				time.Sleep(time.Millisecond)
			}
			var got flow.Observation
			for got.Event != flow.EventDropped { // the set may not have it yet
				r.send(c.to)
				got = r.dropped(c.seen, 200*time.Millisecond)
			}
			ref := got.Told.Policies[0]
			if ref.Kind != flow.KindNetfilter || ref.Namespace != c.want.Namespace || ref.Name != c.want.Name || c.want.Rule != "" && ref.Rule != c.want.Rule {
				t.Errorf("dropped by %+v, want %+v", ref, c.want)
			}
			if got.Protocol != flow.UDP || got.Original.Src != src || got.Original.DstPort != c.seen || got.Source != flow.SourceTap {
				t.Errorf("dropped %+v", got)
			}
		})
	}
	t.Run("nothing of what is not asked for", func(t *testing.T) {
		r.send("10.1.0.2:4099")
		if o := r.dropped(4099, 300*time.Millisecond); o.Event == flow.EventDropped {
			t.Errorf("%+v", o)
		}
	})
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
}

// dropped is the next dropped packet of a port that comes in time.
func (r *reading) dropped(port uint16, in time.Duration) flow.Observation {
	timeout := time.After(in)
	for {
		select {
		case o := <-r.seen:
			if o.Event == flow.EventDropped && o.Original.DstPort == port {
				return o
			}
		case <-timeout:
			return flow.Observation{}
		}
	}
}

// attribute is a netlink attribute with its padding.
func attribute(typ uint16, payload ...byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(payload)))
	b = append(binary.NativeEndian.AppendUint16(b, typ), payload...)
	return append(b, make([]byte, (4-len(b)%4)%4)...)
}

// traceMessage is what the kernel sends of a packet.
func traceMessage(parts ...[]byte) []byte {
	b := []byte{unix.NFPROTO_IPV4, 0, 0, 0}
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

func TestTraceMessages(t *testing.T) {
	ip := []byte{0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 1, 0, 1, 10, 1, 0, 2}
	tcp := []byte{0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0}
	id := attribute(nftaTraceID, 7, 0, 0, 0)
	packet := append(attribute(nftaTraceNetwork, ip...), attribute(nftaTraceTransport, tcp...)...)
	where := append(attribute(nftaTraceTable, 'f', 0), attribute(nftaTraceChain, 'c', 0)...)
	rule, verdict := attribute(nftaTraceType, 0, 0, 0, traceTypeRule), func(code ...byte) []byte {
		return attribute(nftaTraceVerdict, attribute(nftaVerdictCode, code...)...)
	}
	drop := traceMessage(id, where, rule, verdict(0, 0, 0, 0))
	for _, c := range []struct {
		name     string
		messages [][]byte
		want     bool
	}{
		{"dropped with its first message", [][]byte{traceMessage(id, where, rule, packet, verdict(0, 0, 0, 0))}, true},
		{"dropped later", [][]byte{traceMessage(id, where, rule, packet, verdict(0xff, 0xff, 0xff, 0xff)), drop}, true},
		{"dropped with an error", [][]byte{traceMessage(id, where, rule, packet, verdict(0xff, 0x8f, 0, 0))}, true},
		{"of a packet that nobody knows", [][]byte{drop}, false},
		{"accepted", [][]byte{traceMessage(id, where, rule, packet, verdict(0, 0, 0, 1))}, false},
		{"a rule without a verdict", [][]byte{traceMessage(id, where, rule, packet)}, false},
		{"a policy that drops", [][]byte{traceMessage(id, where, attribute(nftaTraceType, 0, 0, 0, traceTypePolicy), packet, attribute(nftaTracePolicy, 0, 0, 0, 0))}, true},
		{"a policy that accepts", [][]byte{traceMessage(id, where, attribute(nftaTraceType, 0, 0, 0, traceTypePolicy), packet, attribute(nftaTracePolicy, 0, 0, 0, 1))}, false},
		{"a message that is cut", [][]byte{traceMessage(id, where, rule, packet, verdict(0, 0, 0, 0))[:30]}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := traceDecoder{packets: make(map[uint32]flow.Observation)}
			var o flow.Observation
			var ok bool
			for _, m := range c.messages {
				o, ok = d.decode(nlmsg.Header{Type: messageTrace}, m)
			}
			if ok != c.want {
				t.Fatalf("dropped: %v, want %v", ok, c.want)
			}
			if ok && (o.Original.DstPort != 80 || o.Protocol != flow.TCP || o.Told.Policies[0].Namespace != "ip f" || o.Told.Policies[0].Name != "c") {
				t.Errorf("%+v, %+v", o, o.Told)
			}
		})
	}
}

func FuzzTrace(f *testing.F) {
	f.Add(traceMessage(attribute(nftaTraceID, 7, 0, 0, 0), attribute(nftaTraceType, 0, 0, 0, 3)))
	f.Fuzz(func(t *testing.T, b []byte) {
		d := traceDecoder{packets: make(map[uint32]flow.Observation)}
		if o, ok := d.decode(nlmsg.Header{Type: messageTrace}, b); ok && o.Told == nil {
			t.Error("dropped by nothing")
		}
	})
}
