package agent

import (
	"net/netip"
	"testing"

	"github.com/flowaudit/flowaudit/flow"
)

// BenchmarkUnconfirmed is what a record costs the table, its decision included.
func BenchmarkUnconfirmed(b *testing.B) {
	packet := func(s flow.Source, e flow.Event, v flow.Verdict) flow.Observation {
		return flow.Observation{
			Source: s, Event: e, Verdict: v, Protocol: flow.UDP, Size: 60,
			Original: flow.Tuple{Src: web, Dst: db, SrcPort: 4000, DstPort: 3306},
		}
	}
	for _, c := range []struct {
		name  string
		obs   flow.Observation
		ports int
	}{
		{"a plugin's refusals of one connection", packet(flow.SourceNFLOG, flow.EventPacket, flow.VerdictDenied), 1},
		{"a plugin's refusals of many", packet(flow.SourceNFLOG, flow.EventPacket, flow.VerdictDenied), 1 << 15},
		{"the tap's attempts of one connection", packet(flow.SourceTap, flow.EventAttempt, flow.VerdictUnknown), 1},
		{"the tap's attempts of many", packet(flow.SourceTap, flow.EventAttempt, flow.VerdictUnknown), 1 << 15},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := both()
			b.ReportAllocs()
			sec := 0.0
			for i := range b.N {
				o := &c.obs
				o.Original.Src, o.Original.SrcPort = netip.AddrFrom4([4]byte{10, 0, 0, 1}), uint16(i%c.ports)
				o.Time = at(sec)
				s.observe(o)
				if i%5000 == 4999 { // 20,000 a second
					sec += 0.25
					s.wait(sec, flow.EventAbsent)
				}
			}
		})
	}
}
