package conntrack

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/flowaudit/flowaudit/agent/nlmsg"
	"github.com/flowaudit/flowaudit/flow"
)

// attr builds an attribute as the kernel does: nested ones are marked so.
func attr(typ uint16, parts ...[]byte) []byte {
	b := make([]byte, 4)
	for _, p := range parts {
		b = append(b, p...)
	}
	binary.NativeEndian.PutUint16(b, uint16(len(b)))
	if len(parts) > 1 {
		typ |= unix.NLA_F_NESTED
	}
	binary.NativeEndian.PutUint16(b[2:], typ)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func u16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
func u32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
func u64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

func ip(s string) []byte { return netip.MustParseAddr(s).AsSlice() }

func tuple4(typ uint16, src, dst string, proto uint8, sport, dport uint16) []byte {
	return attr(typ, attr(ctaTupleIP, attr(ctaIPv4Src, ip(src)), attr(ctaIPv4Dst, ip(dst))),
		attr(ctaTupleProto, attr(ctaProtoNum, []byte{proto}), attr(ctaProtoSrcPort, u16(sport)), attr(ctaProtoDstPort, u16(dport))))
}

func tuple6(typ uint16, src, dst string, icmpType, code uint8) []byte {
	return attr(typ, attr(ctaTupleIP, attr(ctaIPv6Src, ip(src)), attr(ctaIPv6Dst, ip(dst))),
		attr(ctaTupleProto, attr(ctaProtoNum, []byte{58}), attr(ctaProtoICMPv6Type, []byte{icmpType}), attr(ctaProtoICMPv6Code, []byte{code})))
}

func counters(typ uint16, packets, bytes uint64) []byte {
	return attr(typ, attr(ctaCountersPackets, u64(packets)), attr(ctaCountersBytes, u64(bytes)))
}

func message(attrs ...[]byte) []byte {
	b := []byte{unix.AF_INET, 0, 0, 0}
	for _, a := range attrs {
		b = append(b, a...)
	}
	return b
}

// destroyed is the end of a TCP connection through a Service.
func destroyed() []byte {
	return message(
		tuple4(ctaTupleOrig, "10.244.1.11", "10.96.84.14", 6, 36482, 3306), tuple4(ctaTupleReply, "10.244.2.10", "10.244.1.11", 6, 3307, 36482),
		attr(ctaZone, u16(7)), attr(ctaID, u32(2669064660)), attr(ctaStatus, u32(0x0e)), attr(ctaMark, u32(5)),
		counters(ctaCountersOrig, 5, 373), counters(ctaCountersReply, 4, 789),
		attr(ctaProtoinfo, attr(ctaProtoinfoTCP, attr(ctaProtoinfoTCPState, []byte{7}), attr(2, []byte{1}))))
}

func TestDecode(t *testing.T) {
	a := netip.MustParseAddr
	tcp := flow.Observation{
		Source: flow.SourceConntrack, Event: flow.EventDestroy, Protocol: flow.TCP, TCPState: 7, Counted: true, Zone: 7, Mark: 5,
		ID: 2669064660, Status: 0x0e,
		Original: flow.Tuple{Src: a("10.244.1.11"), Dst: a("10.96.84.14"), SrcPort: 36482, DstPort: 3306},
		Reply:    flow.Tuple{Src: a("10.244.2.10"), Dst: a("10.244.1.11"), SrcPort: 3307, DstPort: 36482},
		Sent:     flow.Counters{Packets: 5, Bytes: 373}, Received: flow.Counters{Packets: 4, Bytes: 789},
	}
	with := func(e flow.Event) flow.Observation { o := tcp; o.Event = e; return o }
	ping := message(tuple6(ctaTupleOrig, "fd00::1", "fd00::2", 128, 0), tuple6(ctaTupleReply, "fd00::2", "fd00::1", 129, 0))
	for _, c := range []struct {
		name    string
		header  nlmsg.Header
		message []byte
		want    flow.Observation
	}{
		{"a connection that ended", nlmsg.Header{Type: messageDelete}, destroyed(), tcp},
		{"a new one", nlmsg.Header{Type: messageNew, Flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL}, destroyed(), with(flow.EventNew)},
		{"a change", nlmsg.Header{Type: messageNew}, destroyed(), with(flow.EventUpdate)},
		{"an entry of a dump", nlmsg.Header{Type: messageNew, Flags: unix.NLM_F_MULTI}, destroyed(), with(flow.EventDump)},
		{"since when it is", nlmsg.Header{Type: messageDelete}, append(destroyed(), attr(ctaTimestamp, attr(ctaTimestampStart, u64(1_790_000_000_123_456_789)), attr(2, u64(1_790_000_009_000_000_000)))...), func() flow.Observation {
			o := tcp
			o.Began = 1_790_000_000_123_456_789
			return o
		}()},
		{"ICMP keeps the original's type", nlmsg.Header{Type: messageDelete}, ping, flow.Observation{
			Source: flow.SourceConntrack, Event: flow.EventDestroy, Protocol: flow.ICMPv6, ICMPType: 128,
			Original: flow.Tuple{Src: a("fd00::1"), Dst: a("fd00::2")}, Reply: flow.Tuple{Src: a("fd00::2"), Dst: a("fd00::1")},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got flow.Observation
			if err := Decode(c.header, c.message, &got); err != nil {
				t.Fatal(err)
			}
			if got != c.want {
				t.Errorf("\n got %+v\nwant %+v", got, c.want)
			}
		})
	}
}

func TestDecodeNamesWhatIsWrong(t *testing.T) {
	orig, reply := tuple4(ctaTupleOrig, "10.0.0.1", "10.0.0.2", 6, 1, 2), tuple4(ctaTupleReply, "10.0.0.2", "10.0.0.1", 6, 2, 1)
	lying := attr(ctaStatus, u32(1))
	binary.NativeEndian.PutUint16(lying, 200)
	for _, c := range []struct {
		name    string
		typ     uint16
		message []byte
		want    string
	}{
		{"another message", 0x0101, message(orig, reply), "message: neither new, update nor delete"},
		{"nothing", messageDelete, nil, "nfgenmsg: length does not fit the message"},
		{"no original tuple", messageDelete, message(reply), "CTA_TUPLE_ORIG: missing or without addresses"},
		{"no reply tuple", messageDelete, message(orig), "CTA_TUPLE_REPLY: missing or without addresses"},
		{"a lying length", messageDelete, message(orig, reply, lying), "attribute: length does not fit the message"},
		{"a status of two bytes", messageDelete, message(orig, reply, attr(ctaStatus, u16(1))), "CTA_STATUS: a value of another length than its type has"},
		{"a time of four bytes", messageDelete, message(orig, reply, attr(ctaTimestamp, attr(ctaTimestampStart, u32(1)), attr(2, u64(1)))), "CTA_TIMESTAMP: a value of another length than its type has"},
		{"an address of three bytes", messageDelete, message(attr(ctaTupleOrig, attr(ctaTupleIP, attr(ctaIPv4Src, []byte{1, 2, 3})))), "CTA_TUPLE_ORIG: a value of another length than its type has"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := Decode(nlmsg.Header{Type: c.typ}, c.message, new(flow.Observation))
			if err == nil || err.Error() != c.want {
				t.Errorf("error %v, want %s", err, c.want)
			}
		})
	}
}

func TestDecodeAllocatesNothing(t *testing.T) {
	m := destroyed()
	var o flow.Observation
	if n := testing.AllocsPerRun(100, func() { _ = Decode(nlmsg.Header{Type: messageDelete}, m, &o) }); n != 0 {
		t.Errorf("%v allocations a message, want 0", n)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(uint16(messageDelete), uint16(0), destroyed())
	f.Add(uint16(messageNew), uint16(unix.NLM_F_CREATE), message(tuple6(ctaTupleOrig, "fd00::1", "fd00::2", 128, 0), tuple6(ctaTupleReply, "fd00::2", "fd00::1", 129, 0)))
	f.Fuzz(func(t *testing.T, typ, flags uint16, b []byte) {
		var o flow.Observation
		if err := Decode(nlmsg.Header{Type: typ, Flags: flags}, b, &o); err == nil && !o.Original.Src.IsValid() {
			t.Errorf("decoded without an address: %+v", o)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	m := destroyed()
	b.ReportAllocs()
	for b.Loop() {
		var o flow.Observation
		if err := Decode(nlmsg.Header{Type: messageDelete}, m, &o); err != nil {
			b.Fatal(err)
		}
	}
}

func TestTheLabelOfWhatWasPermitted(t *testing.T) {
	for _, c := range []struct {
		name   string
		labels []byte
		want   bool
	}{
		{"bit 28", binary.NativeEndian.AppendUint64(nil, 1<<28), true},
		{"among others", binary.NativeEndian.AppendUint64(make([]byte, 0, 16), 1<<28|1<<3|1<<60), true},
		{"as the wire has it", []byte{0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, true}, // captured on x86-64
		{"others", binary.NativeEndian.AppendUint64(nil, 1<<27|1<<29), false},
		{"too short", []byte{0, 0, 0, 0x10}, false},
		{"none", nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var o flow.Observation
			m := message(tuple4(ctaTupleOrig, "10.0.0.1", "10.0.0.2", 6, 40000, 80), tuple4(ctaTupleReply, "10.0.0.2", "10.0.0.1", 6, 80, 40000), attr(ctaLabels, c.labels))
			if err := Decode(nlmsg.Header{Type: messageNew, Flags: unix.NLM_F_CREATE}, m, &o); err != nil {
				t.Fatal(err)
			}
			if o.Permitted != c.want {
				t.Errorf("permitted: %v, want %v", o.Permitted, c.want)
			}
		})
	}
}
