package kernel

import (
	"net"
	"net/netip"
	"testing"

	"github.com/flowaudit/flowaudit/test/netlab"
	"github.com/flowaudit/flowaudit/test/netlab/traffic"
)

// must ends the test at an error: what follows would prove nothing.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// do runs f inside a pod.
func do(t *testing.T, pod *netlab.Pod, f func() error) {
	t.Helper()
	must(t, pod.Do(f))
}

// serve echoes on a port, TCP and UDP, until the test ends.
func serve(t *testing.T, pod *netlab.Pod, port uint16) {
	t.Helper()
	s, err := traffic.Serve(pod, port)
	must(t, err)
	t.Cleanup(func() { s.Close() })
}

func hostPort(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }

// talk sends bytes to an echo server and reads them back, on a connection of its own.
func talk(t *testing.T, from *netlab.Pod, network, to string, size int) {
	t.Helper()
	must(t, traffic.Talk(t.Context(), from, network, to, size))
}

func connect(t *testing.T, from *netlab.Pod, network, to string) net.Conn {
	t.Helper()
	c, err := traffic.Connect(t.Context(), from, network, to)
	must(t, err)
	return c
}

func exchange(t *testing.T, c net.Conn, size int) {
	t.Helper()
	must(t, traffic.Exchange(c, size))
}

// knock tries to connect, or sends a datagram, and expects no answer.
func knock(t *testing.T, from *netlab.Pod, network, to string) {
	t.Helper()
	must(t, traffic.Knock(t.Context(), from, network, to))
}

// ping sends one echo request.
func ping(t *testing.T, from *netlab.Pod, to netip.Addr) {
	t.Helper()
	must(t, traffic.Ping(from, to))
}

// burst sends UDP datagrams from many addresses and ports, a connection each:
// number n comes from 10.200.0.0 + n/30000, port 1024 + n%30000.
func burst(t *testing.T, from *netlab.Pod, to netip.Addr, first, n int, port func(i int) uint16) {
	t.Helper()
	i := first
	must(t, traffic.Burst(from, func() (traffic.Datagram, bool) {
		if i == first+n {
			return traffic.Datagram{}, false
		}
		d := traffic.Datagram{
			From: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 200, byte(i / 30000 >> 8), byte(i / 30000)}), uint16(1024+i%30000)),
			To:   netip.AddrPortFrom(to, port(i)),
		}
		i++
		return d, true
	}))
}
