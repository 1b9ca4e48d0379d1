package traffic

import (
	"net/netip"
	"testing"
)

// packet is an IP header and the two ports behind it.
func packet(version, protocol byte, offset uint16) []byte {
	var b []byte
	switch version {
	case 4:
		b = make([]byte, 20)
		b[0], b[9] = 0x45, protocol
		b[6], b[7] = byte(offset>>8), byte(offset)
		copy(b[12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
	case 6:
		b = make([]byte, 40)
		b[0], b[6] = 0x60, protocol
		b[8], b[23], b[24], b[39] = 0xfd, 1, 0xfd, 2
	}
	return append(b, 0x9c, 0x40, 0x0c, 0xea) // 40000, 3306
}

func TestParseArrival(t *testing.T) {
	v4 := Arrival{From: netip.MustParseAddr("10.0.0.1"), To: netip.MustParseAddr("10.0.0.2"), Protocol: 6, Port: 3306}
	v6 := Arrival{From: netip.MustParseAddr("fd00::1"), To: netip.MustParseAddr("fd00::2"), Protocol: 17, Port: 3306}
	sctp := v4
	sctp.Protocol = 132
	options := append([]byte{0x46}, packet(4, 6, 0)[1:20]...)
	options = append(append(options, 1, 1, 1, 1), packet(4, 6, 0)[20:]...)
	for name, c := range map[string]struct {
		packet []byte
		want   Arrival // the zero value if it is none
	}{
		"TCP":               {packet(4, 6, 0), v4},
		"UDP on IPv6":       {packet(6, 17, 0), v6},
		"SCTP":              {packet(4, 132, 0), sctp},
		"IPv4 with options": {options, v4},
		"first fragment":    {packet(4, 6, 0x2000), v4},
		"later fragment":    {packet(4, 6, 0x2001), Arrival{}},
		"ICMP":              {packet(4, 1, 0), Arrival{}},
		"empty":             {nil, Arrival{}},
		"cut header":        {packet(4, 6, 0)[:19], Arrival{}},
		"cut IPv6 header":   {packet(6, 6, 0)[:39], Arrival{}},
		"cut ports":         {packet(4, 6, 0)[:23], Arrival{}},
		"header too short":  {append([]byte{0x44}, packet(4, 6, 0)[1:]...), Arrival{}},
		"no IP":             {append([]byte{0x15}, packet(4, 6, 0)[1:]...), Arrival{}},
	} {
		got, ok := parseArrival(c.packet)
		if !ok {
			got = Arrival{}
		}
		if got != c.want || ok != (c.want != Arrival{}) {
			t.Errorf("%s: %+v, %t; want %+v", name, got, ok, c.want)
		}
	}
}

// FuzzParseArrival: foreign bytes are a packet or none, and nothing else.
func FuzzParseArrival(f *testing.F) {
	f.Add(packet(4, 6, 0))
	f.Add(packet(6, 17, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		if one, ok := parseArrival(b); ok && (!one.From.IsValid() || !one.To.IsValid()) {
			t.Errorf("%x: %+v", b, one)
		}
	})
}
