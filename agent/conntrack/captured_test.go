package conntrack

import (
	"encoding/hex"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/flowaudit/flowaudit/agent/nlmsg"
	"github.com/flowaudit/flowaudit/flow"
)

// captured is a message of a real kernel, and what conntrack(8) shows of it.
type captured struct {
	line    string
	message []byte // from struct nlmsghdr on
}

func readCaptured(t testing.TB) []captured {
	t.Helper()
	b, err := os.ReadFile("testdata/captured.txt")
	if err != nil {
		t.Fatal(err)
	}
	var all []captured
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '[':
			all = append(all, captured{line: line})
		default:
			m, err := hex.DecodeString(line)
			if err != nil {
				t.Fatal(err)
			}
			all[len(all)-1].message = m
		}
	}
	return all
}

// observation reads a line of conntrack(8).
func (c captured) observation(t *testing.T) flow.Observation {
	fields := strings.Fields(c.line)
	number := func(s string, bits int) uint64 {
		n, err := strconv.ParseUint(s, 10, bits)
		if err != nil {
			t.Fatalf("%s: %v", c.line, err)
		}
		return n
	}
	o := flow.Observation{
		Source: flow.SourceConntrack, Protocol: flow.Protocol(number(fields[4], 8)),
		Event:  map[string]flow.Event{"[NEW]": flow.EventNew, "[UPDATE]": flow.EventUpdate, "[DESTROY]": flow.EventDestroy, "[DUMP]": flow.EventDump}[fields[0]],
		Status: flow.StatusSeenReply,
	}
	tuple, counters := &o.Original, &o.Sent
	for _, f := range fields[5:] {
		key, value, _ := strings.Cut(f, "=")
		switch key {
		case "src":
			if tuple.Src.IsValid() {
				tuple, counters = &o.Reply, &o.Received
			}
			tuple.Src = netip.MustParseAddr(value)
		case "dst":
			tuple.Dst = netip.MustParseAddr(value)
		case "sport":
			tuple.SrcPort = uint16(number(value, 16))
		case "dport":
			tuple.DstPort = uint16(number(value, 16))
		case "type", "code":
			if tuple == &o.Original {
				*map[string]*uint8{"type": &o.ICMPType, "code": &o.ICMPCode}[key] = uint8(number(value, 8))
			}
		case "packets":
			o.Counted, counters.Packets = true, number(value, 64)
		case "bytes":
			counters.Bytes = number(value, 64)
		case "zone", "zone-orig":
			o.Zone = uint16(number(value, 16))
		case "mark":
			o.Mark = uint32(number(value, 32))
		case "id": // ICMP's own comes first, the entry's last
			if o.Protocol.IsICMP() && o.ICMPID == 0 {
				o.ICMPID = uint16(number(value, 16))
			} else {
				o.ID = uint32(number(value, 32))
			}
		case "[UNREPLIED]":
			o.Status &^= flow.StatusSeenReply
		case "[ASSURED]":
			o.Status |= flow.StatusAssured
		}
	}
	states := []string{"NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "CLOSE"}
	for i, s := range states {
		if o.Protocol == flow.TCP && slices.Contains(fields, s) {
			o.TCPState = uint8(i)
		}
	}
	return o
}

func TestDecodeSaysWhatConntrackSays(t *testing.T) {
	for _, c := range readCaptured(t) {
		t.Run(c.line, func(t *testing.T) {
			header, payload, rest, err := nlmsg.Message(c.message)
			if err != nil || len(rest) != 0 {
				t.Fatalf("message with %d bytes behind it: %v", len(rest), err)
			}
			var got flow.Observation
			if err := Decode(header, payload, &got); err != nil {
				t.Fatal(err)
			}
			got.Status &= flow.StatusSeenReply | flow.StatusAssured // the line shows no others
			if want := c.observation(t); got != want {
				t.Errorf("\n got %+v\nwant %+v", got, want)
			}
		})
	}
}

func TestDecodeStandsEveryTruncation(t *testing.T) {
	for _, c := range readCaptured(t) {
		header, payload, _, err := nlmsg.Message(c.message)
		if err != nil {
			t.Fatal(err)
		}
		for n := range payload {
			var o flow.Observation
			if err := Decode(header, payload[:n], &o); err == nil && (!o.Original.Src.IsValid() || !o.Reply.Dst.IsValid()) {
				t.Fatalf("%s: the first %d bytes are taken for a connection: %+v", c.line, n, o)
			}
		}
	}
}
