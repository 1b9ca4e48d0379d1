package nlmsg

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Reader reads datagrams of a netlink socket into one buffer.
type Reader struct {
	conn *netlink.Conn
	raw  syscall.RawConn
	buf  []byte
	n    int
	err  error
	wait func(fd uintptr) bool // made once: a closure a read would be an allocation a read
	poll func(fd uintptr) bool
}

// NewReader reads from conn; size bounds one datagram.
func NewReader(conn *netlink.Conn, size int) (*Reader, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("get socket: %w", err)
	}
	r := &Reader{conn: conn, raw: raw, buf: make([]byte, size)}
	r.wait = func(fd uintptr) bool { return r.read(fd) != unix.EAGAIN }
	r.poll = func(fd uintptr) bool { r.read(fd); return true }
	return r, nil
}

// read uses read(2): it needs no address, and so no allocation.
func (r *Reader) read(fd uintptr) error {
	for {
		r.n, r.err = unix.Read(int(fd), r.buf)
		if r.err != unix.EINTR {
			return r.err
		}
	}
}

// Next waits for a datagram. It aliases the reader's buffer and is valid until
// the next call. ENOBUFS says that messages before it were lost.
func (r *Reader) Next() ([]byte, error) {
	if err := r.raw.Read(r.wait); err != nil {
		return nil, err
	}
	return r.result()
}

// Poll is Next without waiting: EAGAIN says that there is nothing.
func (r *Reader) Poll() ([]byte, error) {
	if err := r.raw.Read(r.poll); err != nil {
		return nil, err
	}
	return r.result()
}

func (r *Reader) result() ([]byte, error) {
	if r.err != nil {
		return nil, r.err
	}
	return r.buf[:r.n], nil
}

// StopWith makes a waiting Next return os.ErrDeadlineExceeded when ctx ends.
// The returned function undoes that.
func (r *Reader) StopWith(ctx context.Context) (undo func() bool) {
	return context.AfterFunc(ctx, func() { _ = r.conn.SetReadDeadline(time.Unix(1, 0)) })
}

// Stopped reports whether err is what Next returns after its context ended, or
// the socket was closed.
func Stopped(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, os.ErrClosed)
}

// ReceiveBuffer sets the size of the socket's receive buffer, beyond
// net.core.rmem_max where CAP_NET_ADMIN allows it.
func ReceiveBuffer(conn *netlink.Conn, bytes int) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("get socket: %w", err)
	}
	var setErr error
	if err := raw.Control(func(fd uintptr) {
		setErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bytes)
		if setErr != nil {
			setErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, bytes)
		}
	}); err != nil {
		return fmt.Errorf("get socket: %w", err)
	}
	if setErr != nil {
		return fmt.Errorf("set receive buffer to %d bytes: %w", bytes, setErr)
	}
	return nil
}
