package conntrack

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/flowaudit/flowaudit/flow"
)

// filtered is a pair of datagram sockets with the filter on the reading one:
// the kernel itself runs the program, and no privilege is needed.
type filtered struct{ write, read int }

func newFiltered(t *testing.T, program []bpf.RawInstruction) filtered {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
	err = unix.SetsockoptSockFprog(fds[1], unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{
		Len: uint16(len(program)), Filter: (*unix.SockFilter)(unsafe.Pointer(&program[0])),
	})
	if err != nil {
		t.Fatal(err)
	}
	return filtered{write: fds[0], read: fds[1]}
}

// passes sends a message and reports whether it comes out whole.
func (f filtered) passes(t *testing.T, message []byte) bool {
	t.Helper()
	if err := unix.Send(f.write, message, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.Read(f.read, make([]byte, len(message)))
	if errors.Is(err, unix.EAGAIN) {
		return false
	}
	if err != nil || n != len(message) {
		t.Fatalf("%d of %d bytes came out: %v", n, len(message), err)
	}
	return true
}

func newFilter(t *testing.T) filtered {
	program, err := filter()
	if err != nil {
		t.Fatal(err)
	}
	return newFiltered(t, program)
}

func TestFilterOnCapturedEvents(t *testing.T) {
	f := newFilter(t)
	passed := make(map[string]int) // events of a connection that pass, by its id
	for _, c := range readCaptured(t) {
		if strings.HasPrefix(c.line, "[DUMP]") {
			continue
		}
		t.Run(c.line, func(t *testing.T) {
			o := c.observation(t)
			got := f.passes(t, c.message)
			if want := o.Event != flow.EventUpdate || o.Status&flow.StatusAssured == 0; got != want {
				t.Errorf("passes: %v, want %v", got, want)
			}
			if got && o.Protocol == flow.TCP {
				_, id, _ := strings.Cut(c.line, " id=")
				passed[id]++
			}
		})
	}
	for id, n := range passed {
		if n != 3 {
			t.Errorf("%d events of TCP connection %s pass, want NEW, the update with the reply, and DESTROY", n, id)
		}
	}
}

// netlinkMessage puts a struct nlmsghdr before an event.
func netlinkMessage(typ, flags uint16, body []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(offAttributes-4+len(body)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, flags)
	return append(append(b, make([]byte, 8)...), body...)
}

func TestFilter(t *testing.T) {
	const created = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	tuples := func(src, dst, replySrc string) []byte {
		return append(tuple4(ctaTupleOrig, src, dst, 6, 1, 2), tuple4(ctaTupleReply, replySrc, src, 6, 2, 1)...)
	}
	tuples6 := func(src, dst string) []byte {
		return append(tuple6(ctaTupleOrig, src, dst, 128, 0), tuple6(ctaTupleReply, dst, src, 129, 0)...)
	}
	status := func(bits uint32) []byte { return attr(ctaStatus, u32(flow.StatusConfirmed|bits)) }
	state := func(s uint8) []byte {
		return attr(ctaProtoinfo, attr(ctaProtoinfoTCP, attr(ctaProtoinfoTCPState, []byte{s})))
	}
	pods := tuples("10.0.0.1", "10.0.0.2", "10.0.0.2")
	for _, c := range []struct {
		name       string
		typ, flags uint16
		body       []byte
		want       bool
	}{
		{"an update with the first reply", messageNew, 0, message(pods, status(flow.StatusSeenReply)), true},
		{"an update with the first reply of a handshake", messageNew, 0, message(pods, status(flow.StatusSeenReply), state(2)), true},
		{"the same between two that open at once", messageNew, 0, message(pods, status(flow.StatusSeenReply), state(9)), true},
		{"an update before any reply", messageNew, 0, message(pods, status(0), attr(ctaMark, u32(1))), false},
		{"an update of an assured connection", messageNew, 0, message(pods, status(flow.StatusSeenReply|flow.StatusAssured)), false},
		{"an update of an established connection", messageNew, 0, message(pods, status(flow.StatusSeenReply), state(3)), false},
		{"an update of a closed connection", messageNew, 0, message(pods, status(flow.StatusSeenReply), state(8)), false},
		{"an update without a status", messageNew, 0, message(pods), true},
		{"a new connection that is picked up established", messageNew, created, message(pods, status(0), state(3)), true},
		{"a new connection with a reply", messageNew, created, message(pods, status(flow.StatusSeenReply|flow.StatusAssured)), true},
		{"the end of an assured connection", messageDelete, 0, message(pods, status(flow.StatusSeenReply|flow.StatusAssured), state(7)), true},
		{"a message of another subsystem", 0x0201, 0, message(pods, status(0)), true},
		{"an event without attributes", messageNew, created, message(), true},
		{"a lying length", messageNew, created, message([]byte{200, 0, 1, 0}), true},

		{"IPv4 loopback, new", messageNew, created, message(tuples("127.0.0.1", "127.0.0.1", "127.0.0.1"), status(0)), false},
		{"IPv4 loopback, end", messageDelete, 0, message(tuples("127.8.0.1", "127.0.0.1", "127.0.0.1"), status(0)), false},
		{"IPv4 loopback translated to a pod", messageNew, created, message(tuples("127.0.0.1", "127.0.0.1", "10.0.0.2"), status(0)), true},
		{"IPv6 loopback", messageNew, created, message(tuples6("::1", "::1"), status(0)), false},
		{"an IPv6 address that begins with 127", messageNew, created, message(tuples6("7f00::1", "fd00::1"), status(0)), true},
		{"an IPv6 address that ends with 1", messageNew, created, message(tuples6("fd00::1", "fd00::2"), status(0)), true},
		{"the unspecified IPv6 address", messageNew, created, message(tuples6("::", "ff02::1"), status(0)), true},
		{"the unspecified IPv4 address", messageNew, created, message(tuples("0.0.0.0", "255.255.255.255", "255.255.255.255"), status(0)), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := newFilter(t).passes(t, netlinkMessage(c.typ, c.flags, c.body)); got != c.want {
				t.Errorf("passes: %v, want %v", got, c.want)
			}
		})
	}
}
