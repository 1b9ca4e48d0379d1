package nflog

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"github.com/flowaudit/flowaudit/flow"
)

// attr builds an attribute as the kernel does.
func attr(typ uint16, payload []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(payload)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, payload...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func record(attrs ...[]byte) []byte {
	b := []byte{0, 0, 0, 100} // nfgenmsg, group 100
	for _, a := range attrs {
		b = append(b, a...)
	}
	return b
}

func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

// Packets as recorded on a node.
const (
	synV4   = "4500003c1c4640003f060a7c 0af4010d 0af4020a bee40cea 11111111 00000000 a002fd5c00000000"
	udpV4   = "450000211c4640003f110a7c 0af4010d 0af4020a bee414e9 000d0000"
	icmpV4  = "450000541c4640003f010a7c 0af4010d 0af4020a 0800 1234 0001 0001"
	sctpV4  = "450000441c4640003f840a7c 0af4010d 0af4020a 1388 0b57 00000000"
	fragV4  = "4500003c1c4600b93f110a7c 0af4010d 0af4020a deadbeef"
	optsV4  = "4700003c1c4640003f060a7c 0af4010d 0af4020a 0101010101010101 bee40cea 11111111 00000000 a012"
	greV4   = "4500003c1c4640003f2f0a7c 0af4010d 0af4020a 00000800"
	synV6   = "6000000000280640 fd000001000000000000000000000001 fd000002000000000000000000000001 a4b00050 11111111 00000000 a002"
	hopV6   = "6000000000300040 fd000001000000000000000000000001 fd000002000000000000000000000001 1100050200000000 00350035 00080000"
	fragV6  = "6000000000302c40 fd000001000000000000000000000001 fd000002000000000000000000000001 1100000912345678 deadbeef"
	frag0V6 = "6000000000302c40 fd000001000000000000000000000001 fd000002000000000000000000000001 1100000112345678 00350036 00080000"
)

func TestDecodePacket(t *testing.T) {
	v4 := flow.Tuple{Src: netip.MustParseAddr("10.244.1.13"), Dst: netip.MustParseAddr("10.244.2.10")}
	v6 := flow.Tuple{Src: netip.MustParseAddr("fd00:1::1"), Dst: netip.MustParseAddr("fd00:2::1")}
	ports := func(t flow.Tuple, src, dst uint16) flow.Tuple { t.SrcPort, t.DstPort = src, dst; return t }
	for _, c := range []struct {
		name, packet string
		want         flow.Observation
	}{
		{"a TCP SYN", synV4, flow.Observation{Protocol: flow.TCP, Size: 60, TCPFlags: flow.TCPSyn, Sequence: 0x11111111, Original: ports(v4, 48868, 3306)}},
		{"UDP", udpV4, flow.Observation{Protocol: flow.UDP, Size: 33, Original: ports(v4, 48868, 5353)}},
		{"ICMP", icmpV4, flow.Observation{Protocol: flow.ICMP, Size: 84, ICMPType: 8, ICMPID: 1, Original: v4}},
		{"SCTP", sctpV4, flow.Observation{Protocol: flow.SCTP, Size: 68, Original: ports(v4, 5000, 2903)}},
		{"a later fragment has no ports", fragV4, flow.Observation{Protocol: flow.UDP, Size: 60, Fragment: true, Original: v4}},
		{"options before TCP", optsV4, flow.Observation{Protocol: flow.TCP, Size: 60, TCPFlags: flow.TCPSyn | flow.TCPAck, Original: ports(v4, 48868, 3306)}},
		{"a protocol without a name", greV4, flow.Observation{Protocol: 47, Size: 60, Original: v4}},
		{"ports that were cut off", synV4[:47], flow.Observation{Protocol: flow.TCP, Size: 60, Original: v4}},
		{"IPv6 TCP", synV6, flow.Observation{Protocol: flow.TCP, Size: 80, TCPFlags: flow.TCPSyn, Sequence: 0x11111111, Original: ports(v6, 42160, 80)}},
		{"IPv6 behind hop-by-hop options", hopV6, flow.Observation{Protocol: flow.UDP, Size: 88, Original: ports(v6, 53, 53)}},
		{"IPv6 later fragment", fragV6, flow.Observation{Protocol: flow.UDP, Size: 88, Fragment: true, Original: v6}},
		{"IPv6 first fragment", frag0V6, flow.Observation{Protocol: flow.UDP, Size: 88, Original: ports(v6, 53, 54)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got flow.Observation
			if err := decodePacket(unhex(c.packet), &got); err != nil {
				t.Fatal(err)
			}
			if got != c.want {
				t.Errorf("\n got %+v\nwant %+v", got, c.want)
			}
		})
	}
}

func TestDecodeNamesWhatIsWrong(t *testing.T) {
	lying := attr(nfulaPayload, unhex(synV4))
	binary.NativeEndian.PutUint16(lying, 9999)
	short := attr(nfulaMark, nil)
	binary.NativeEndian.PutUint16(short, 3)
	for _, c := range []struct {
		name    string
		message []byte
		want    string
	}{
		{"no family header", []byte{1, 2}, "nfgenmsg: length does not fit the message"},
		{"an attribute longer than the message", record(lying), "length does not fit the message"},
		{"an attribute shorter than its header", record(short), "length does not fit the message"},
		{"no packet", record(attr(nfulaMark, []byte{0, 0, 0, 1})), "NFULA_PAYLOAD: missing"},
		{"an empty packet", record(attr(nfulaPayload, nil)), "packet: shorter than its IP header"},
		{"a cut IP header", record(attr(nfulaPayload, unhex(synV4)[:19])), "packet: shorter than its IP header"},
		{"no IP version", record(attr(nfulaPayload, []byte{0x50})), "packet: neither IPv4 nor IPv6"},
		{"a header length below the least", record(attr(nfulaPayload, append([]byte{0x41}, unhex(synV4)[1:]...))), "packet: the IP header's length is impossible"},
		{"extension headers without end", record(attr(nfulaPayload, append(unhex(hopV6)[:40], make([]byte, 200)...))), "packet: IPv6 extension headers do not end"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var o flow.Observation
			_, _, err := newDecoder(Group{}).decode(c.message, &o)
			if err == nil || err.Error() != c.want {
				t.Errorf("error %v, want %s", err, c.want)
			}
		})
	}
}

func TestDecodeRecord(t *testing.T) {
	stamp := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, 1_700_000_000), 250_000)
	message := record(
		attr(nfulaPacketHeader, []byte{8, 0, 2, 0}), attr(nfulaPrefix, []byte("note\x00")), attr(nfulaMark, []byte{0, 2, 0, 0}),
		attr(nfulaIndexIn, []byte{0, 0, 0, 7}), attr(nfulaPhysIndexIn, []byte{0, 0, 0, 9}), attr(nfulaIndexOut, []byte{0, 0, 0, 8}),
		attr(nfulaTimestamp, stamp), attr(nfulaSequence, []byte{0, 0, 1, 0}), attr(nfulaPayload, unhex(synV4)))
	o := flow.Observation{Time: 1}
	seq, hasSeq, err := newDecoder(Group{Number: 100}).decode(message, &o)
	if err != nil || seq != 256 || !hasSeq {
		t.Fatalf("sequence %d %t, error %v; want 256", seq, hasSeq, err)
	}
	want := flow.Observation{
		Time: 1_700_000_000_250_000_000, Source: flow.SourceNFLOG, Event: flow.EventPacket, Verdict: flow.VerdictDenied,
		Protocol: flow.TCP, TCPFlags: flow.TCPSyn, Hook: 2, Group: 100, Mark: 0x20000, InDev: 9, OutDev: 8, Size: 60, Sequence: 0x11111111, Prefix: "note",
		Original: flow.Tuple{Src: netip.MustParseAddr("10.244.1.13"), Dst: netip.MustParseAddr("10.244.2.10"), SrcPort: 48868, DstPort: 3306},
	}
	if o != want {
		t.Errorf("\n got %+v\nwant %+v", o, want)
	}
}

func TestDecodeAttempts(t *testing.T) {
	for prefix, want := range map[string]flow.Observation{
		"":               {Event: flow.EventAttempt},
		AttemptInZone:    {Event: flow.EventAttempt, Zone: flow.ZoneNotDefault},
		AttemptAfterNAT:  {Event: flow.EventAttempt, Status: flow.StatusDstNAT},
		AttemptInZoneNAT: {Event: flow.EventAttempt, Zone: flow.ZoneNotDefault, Status: flow.StatusDstNAT},
		AttemptUntracked: {Event: flow.EventUntracked},
	} {
		var o flow.Observation
		d := newDecoder(Group{Number: 4242, Meaning: MeaningAttempt})
		if _, _, err := d.decode(record(attr(nfulaPrefix, []byte(prefix+"\x00")), attr(nfulaPayload, unhex(icmpV4))), &o); err != nil {
			t.Fatal(err)
		}
		if o.Source != flow.SourceTap || o.Verdict != flow.VerdictUnknown || o.Event != want.Event || o.Zone != want.Zone || o.Status != want.Status || o.ICMPID != 1 {
			t.Errorf("prefix %q: %+v", prefix, o)
		}
	}
}

func TestDecodeAllocatesNothing(t *testing.T) {
	for prefix, meaning := range map[string]Meaning{"DPI|default": MeaningPrefix, AttemptInZoneNAT: MeaningAttempt} {
		d := newDecoder(Group{Number: 100, Meaning: meaning})
		message := record(attr(nfulaPrefix, []byte(prefix+"\x00")), attr(nfulaSequence, []byte{0, 0, 0, 1}), attr(nfulaPayload, unhex(synV6)))
		var o flow.Observation
		if n := testing.AllocsPerRun(100, func() {
			if _, _, err := d.decode(message, &o); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%v allocations a record with prefix %q, want 0", n, prefix)
		}
	}
}

func TestPrefixes(t *testing.T) {
	g := newGrammars()
	for prefix, want := range map[string]flow.Verdict{
		"":                                  flow.VerdictDenied,
		"DROP by policy default/deny-all":   flow.VerdictUnknown,
		"API0|np/namespace1/default.policy": flow.VerdictAllowed,
		"PRE999|short.profile.name":         flow.VerdictUnknown,
		"DPI88|gnp/_12IXaBPahNM7a7dZhI8zg6PStmHsgneYaax8LVSIq_RSTUVWXYZ0": flow.VerdictDenied,
		"DPE|tier-1": flow.VerdictDenied,
		"DRI":        flow.VerdictDenied,
		"DPI0|kcnp/kcnp.kube-admin.policy-1.1.1.1": flow.VerdictDenied,
		"APE2|calico-system/knp.default.whisker":   flow.VerdictAllowed,
		"[UFW BLOCK] ":                             flow.VerdictDenied,
		"fw-reject: ":                              flow.VerdictDenied,
		"ACCEPT ":                                  flow.VerdictAllowed,
		"policy-log":                               flow.VerdictUnknown,
		"DropBox":                                  flow.VerdictUnknown,
		"allow or deny":                            flow.VerdictUnknown,
	} {
		if got := g.verdict(prefix); got != want {
			t.Errorf("prefix %q: %s, want %s", prefix, got, want)
		}
	}
}

func TestAHintDecidesNothingInAGroupOfDenials(t *testing.T) {
	var o flow.Observation
	_, _, err := newDecoder(Group{Number: 100}).decode(record(attr(nfulaPrefix, []byte("DROP by policy a/b\x00")), attr(nfulaPayload, unhex(synV4))), &o)
	if err != nil || o.Verdict != flow.VerdictUnknown {
		t.Errorf("verdict %s, error %v; want unknown", o.Verdict, err)
	}
}

func TestParseGroup(t *testing.T) {
	for in, want := range map[string]Group{
		"100": {100, MeaningDenied}, "100=denied": {100, MeaningDenied}, "7=allowed": {7, MeaningAllowed}, "0=prefix": {0, MeaningPrefix}, "1=calico": {1, MeaningCalico}, "100=kube-router": {100, MeaningKubeRouter},
	} {
		if got, err := ParseGroup(in); err != nil || got != want {
			t.Errorf("ParseGroup(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "x", "70000", "-1", "1=maybe", "1="} {
		if g, err := ParseGroup(in); err == nil {
			t.Errorf("ParseGroup(%q) = %v, want an error", in, g)
		}
	}
}

func TestOwnerOf(t *testing.T) {
	list := "  100  31337     0 2 65535     1  1\n    1   4711     0 2 65535   100  2\n"
	if port, taken := ownerOf(strings.NewReader(list), 1); !taken || port != 4711 {
		t.Errorf("port %d, %t; want 4711", port, taken)
	}
	if _, taken := ownerOf(strings.NewReader(list), 7); taken {
		t.Error("group 7 is free, and said to be taken")
	}
}

func FuzzDecode(f *testing.F) {
	for _, p := range []string{synV4, udpV4, icmpV4, sctpV4, fragV4, optsV4, synV6, hopV6, fragV6} {
		f.Add(record(attr(nfulaPacketHeader, []byte{8, 0, 2, 0}), attr(nfulaPrefix, []byte("DPI|x\x00")), attr(nfulaPayload, unhex(p))))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var o flow.Observation
		_, _, err := newDecoder(Group{Meaning: MeaningPrefix}).decode(b, &o)
		if err == nil && (!o.Original.Src.IsValid() || !o.Original.Dst.IsValid()) {
			t.Errorf("decoded without addresses: %+v", o)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	for name, p := range map[string]string{"IPv4": synV4, "IPv6": synV6} {
		b.Run(name, func(b *testing.B) {
			d := newDecoder(Group{Number: 100})
			m := record(attr(nfulaPacketHeader, []byte{8, 0, 2, 0}), attr(nfulaPrefix, []byte{0}), attr(nfulaIndexIn, []byte{0, 0, 0, 7}),
				attr(nfulaIndexOut, []byte{0, 0, 0, 8}), attr(nfulaSequence, []byte{0, 0, 1, 0}), attr(nfulaPayload, unhex(p)))
			b.ReportAllocs()
			for b.Loop() {
				var o flow.Observation
				if _, _, err := d.decode(m, &o); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
