package conntrack

import (
	"encoding/binary"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/test/netlab"
)

// BenchmarkKernelRead compares the source with the least that a reader of the
// same socket does: read(2) into one buffer and the addresses of the original
// tuple. An operation is one event that waits in the socket.
func BenchmarkKernelRead(b *testing.B) {
	node := netlab.NodeT(b, "bench", 4, 2)
	if err := node.NFT(tracking); err != nil {
		b.Fatal(err)
	}
	// The server answers nothing: what is measured is told by NEW and DESTROY.
	if err := node.Pods[1].NFT(`table inet quiet {
	chain in1 { type filter hook input priority 0; meta l4proto udp drop
	}
}`); err != nil {
		b.Fatal(err)
	}
	open := func(b *testing.B) *Source {
		var s *Source
		if err := node.Do(func() (err error) {
			s, err = Open(Options{
				Deliver: func(o []flow.Observation) []flow.Observation { return o[:0] },
				Lost:    func(g flow.Gap) { b.Errorf("lost: %+v", g) },
				Logger:  slog.New(slog.DiscardHandler),
			})
			return err
		}); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { s.events.Close(); s.dumps.Close() })
		return s
	}
	b.Run("bare", func(b *testing.B) {
		s := open(b)
		bare := bareReader{}
		measure(b, node, func(waiting int) {
			for range waiting {
				datagram, err := s.events.Poll()
				if err != nil {
					b.Fatal(err)
				}
				bare.take(datagram)
			}
		})
	})
	b.Run("source", func(b *testing.B) {
		s := open(b)
		out := make([]flow.Observation, 0, 256)
		measure(b, node, func(waiting int) {
			for until := s.read.Load() + uint64(waiting); s.read.Load() < until; {
				datagram, err := s.events.Next()
				if err != nil {
					b.Fatal(err)
				}
				if out, err = s.drain(datagram, 1, out); err != nil {
					b.Fatal(err)
				}
			}
		})
	})
}

// bareReader keeps the addresses of the original tuple.
type bareReader struct{ src, dst uint32 }

func (r *bareReader) take(event []byte) {
	const original = offAttributes + 3*attrHeader // CTA_TUPLE_ORIG, CTA_TUPLE_IP, source
	if len(event) >= original+12 {
		r.src, r.dst = binary.NativeEndian.Uint32(event[original:]), binary.NativeEndian.Uint32(event[original+8:])
	}
}

// measure lets events of both kinds wait in the sockets and times how long
// read takes for them.
func measure(b *testing.B, node *netlab.Node, read func(waiting int)) {
	const connections = 5000
	var sender net.PacketConn
	if err := node.Pods[0].Do(func() (err error) { sender, err = net.ListenPacket("udp4", ":0"); return err }); err != nil {
		b.Fatal(err)
	}
	defer sender.Close()
	events := 0
	b.ResetTimer()
	for events < b.N {
		b.StopTimer()
		for port := range connections {
			if _, err := sender.WriteTo([]byte("x"), &net.UDPAddr{IP: node.Pods[1].IPv4.AsSlice(), Port: 1 + port}); err != nil {
				b.Fatal(err)
			}
		}
		tracked(b, node, connections)
		flush(b, node.Namespace)
		events += 2 * connections
		b.StartTimer()
		read(2 * connections)
	}
	b.StopTimer()
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(events), "ns/event")
}

// tracked waits until the kernel has taken so many connections in.
func tracked(b *testing.B, node *netlab.Node, want int) {
	if err := node.Do(func() error {
		for {
			n, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
			if err != nil || strings.TrimSpace(string(n)) == strconv.Itoa(want) {
				return err
			}
		}
	}); err != nil {
		b.Fatal(err)
	}
}
