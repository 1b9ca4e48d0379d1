package nlmsg

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

func attr(typ uint16, payload ...byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(payload)))
	b = append(binary.NativeEndian.AppendUint16(b, typ), payload...)
	return append(b, make([]byte, (4-len(b)%4)%4)...)
}

func TestAttribute(t *testing.T) {
	two := append(attr(1|unix.NLA_F_NESTED, 7, 8, 9), attr(2)...)
	typ, payload, rest, err := Attribute(two)
	if err != nil || typ != 1 || !bytes.Equal(payload, []byte{7, 8, 9}) || len(rest) != 4 {
		t.Fatalf("type %d, payload %v, %d bytes left, %v", typ, payload, len(rest), err)
	}
	typ, payload, rest, err = Attribute(rest)
	if err != nil || typ != 2 || len(payload) != 0 || len(rest) != 0 {
		t.Fatalf("type %d, payload %v, %d bytes left, %v", typ, payload, len(rest), err)
	}
	unpadded := attr(1, 7)[:5] // the last one may end without its padding
	if _, payload, rest, err := Attribute(unpadded); err != nil || len(payload) != 1 || len(rest) != 0 {
		t.Errorf("payload %v, %d bytes left, %v", payload, len(rest), err)
	}
	for name, b := range map[string][]byte{
		"no bytes": {}, "half a header": {8, 0, 1}, "shorter than its header": {3, 0, 1, 0}, "longer than the message": {9, 0, 1, 0, 5, 5, 5, 5},
	} {
		if _, _, _, err := Attribute(b); !errors.Is(err, ErrTruncated) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestValuesHaveTheirLength(t *testing.T) {
	if v, ok := Uint16([]byte{1, 2}); !ok || v != 0x102 {
		t.Errorf("Uint16: %#x, %v", v, ok)
	}
	if v, ok := Uint32([]byte{1, 2, 3, 4}); !ok || v != 0x1020304 {
		t.Errorf("Uint32: %#x, %v", v, ok)
	}
	if v, ok := Uint64([]byte{1, 2, 3, 4, 5, 6, 7, 8}); !ok || v != 0x102030405060708 {
		t.Errorf("Uint64: %#x, %v", v, ok)
	}
	if a, ok := Addr4([]byte{10, 0, 0, 1}); !ok || a != netip.MustParseAddr("10.0.0.1") {
		t.Errorf("Addr4: %v, %v", a, ok)
	}
	mapped := netip.MustParseAddr("::ffff:10.0.0.1").As16()
	if a, ok := Addr16(mapped[:]); !ok || a != netip.MustParseAddr("10.0.0.1") {
		t.Errorf("Addr16: %v, %v", a, ok)
	}
	for n := range 20 {
		b := make([]byte, n)
		_, is2 := Uint16(b)
		_, is4 := Uint32(b)
		_, is8 := Uint64(b)
		_, isV4 := Addr4(b)
		_, isV6 := Addr16(b)
		if is2 != (n == 2) || is4 != (n == 4) || is8 != (n == 8) || isV4 != (n == 4) || isV6 != (n == 16) {
			t.Errorf("%d bytes are taken for a value of another length", n)
		}
	}
}

// FuzzMessage: walking messages and attributes ends, and stays inside the bytes.
func FuzzMessage(f *testing.F) {
	f.Add(append([]byte{24, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, attr(1, 7, 8)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		total := 0
		for len(b) > 0 {
			_, payload, rest, err := Message(b)
			if err != nil {
				return
			}
			if len(rest) >= len(b) {
				t.Fatal("no progress")
			}
			b = rest
			for len(payload) > 0 {
				_, value, next, err := Attribute(payload)
				if err != nil {
					break
				}
				if len(next) >= len(payload) {
					t.Fatal("no progress")
				}
				total += len(value)
				payload = next
			}
		}
		if total > 1<<20 {
			t.Fatalf("%d bytes of values", total)
		}
	})
}

// newReader is a reader of a socket that echoes errors: NETLINK_ROUTE answers
// anybody.
func newReader(t *testing.T) *Reader {
	t.Helper()
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewReader(conn, 8<<10)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func TestReader(t *testing.T) {
	r := newReader(t)
	if _, err := r.Poll(); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("an empty socket says %v", err)
	}
	// An unknown message that wants an acknowledgement gets NLMSG_ERROR.
	if err := r.Send(netlink.Message{Header: netlink.Header{Type: 0xffff, Flags: netlink.Request | netlink.Acknowledge}}); err != nil {
		t.Fatal(err)
	}
	b, err := r.Next()
	if err != nil {
		t.Fatal(err)
	}
	if h, _, _, err := Message(b); err != nil || h.Type != unix.NLMSG_ERROR {
		t.Errorf("header %+v, %v; want NLMSG_ERROR", h, err)
	}
}

func TestReaderStops(t *testing.T) {
	r := newReader(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer r.StopWith(ctx)()
	got := make(chan error)
	go func() {
		_, err := r.Next()
		got <- err
	}()
	cancel()
	if err := <-got; !errors.Is(err, ErrStopped) {
		t.Errorf("a stopped reader says %v", err)
	}
}

func TestAClosedReaderIsNotStopped(t *testing.T) {
	r := newReader(t)
	ctx, cancel := context.WithCancel(t.Context())
	undo := r.StopWith(ctx)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if !undo() {
		t.Error("stopped before its time")
	}
	cancel()
}
