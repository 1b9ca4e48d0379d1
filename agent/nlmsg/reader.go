package nlmsg

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"
	"unsafe"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// pace lies at least between two waits. Events come one in a datagram, and
// waking for each costs several times what reading it does.
const pace = 20 * time.Millisecond

// ErrStopped is what Next returns after its context ended.
var ErrStopped = errors.New("reader was stopped")

// Reader reads datagrams of a netlink socket into one buffer. It waits with
// poll(2) on a thread of its own: the runtime's poller would be woken by each
// message, also while nobody waits for one.
type Reader struct {
	fd   int
	buf  []byte
	woke time.Time
	wait [2]unix.PollFd // the socket, and the eventfd that stops

	mu     sync.Mutex // between a stop, a send and Close
	closed bool
}

// NewReader takes the socket of conn over and closes conn, also when it fails.
// size bounds one datagram.
func NewReader(conn *netlink.Conn, size int) (*Reader, error) {
	fd, err := detach(conn)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("take socket over: %w", err), conn.Close())
	}
	if err := conn.Close(); err != nil {
		return nil, errors.Join(fmt.Errorf("take socket over: %w", err), unix.Close(fd))
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make eventfd: %w", err), unix.Close(fd))
	}
	return &Reader{
		fd: fd, buf: make([]byte, size),
		wait: [2]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(stop), Events: unix.POLLIN}},
	}, nil
}

// detach gives a second descriptor of the socket, which stays open, and
// unknown to the runtime's poller, when conn is closed.
func detach(conn *netlink.Conn) (fd int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return -1, err
	}
	ctlErr := raw.Control(func(old uintptr) {
		fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0)
	})
	return fd, errors.Join(ctlErr, err)
}

// Next waits for a datagram. It aliases the reader's buffer and is valid until
// the next call. ENOBUFS says that messages before it were lost.
func (r *Reader) Next() ([]byte, error) {
	for {
		b, err := r.Poll()
		if !errors.Is(err, unix.EAGAIN) {
			return b, err
		}
		time.Sleep(pace - time.Since(r.woke))
		_, err = unix.Poll(r.wait[:], -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return nil, err
		}
		if r.wait[1].Revents != 0 {
			return nil, ErrStopped
		}
		r.woke = time.Now()
	}
}

// Poll is Next without waiting: EAGAIN says that there is nothing.
func (r *Reader) Poll() ([]byte, error) {
	for {
		// read(2) needs no address, and so no allocation. The socket does not
		// block, so that the scheduler need not know of the call.
		n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(r.fd), uintptr(unsafe.Pointer(&r.buf[0])), uintptr(len(r.buf)))
		switch errno {
		case 0:
			return r.buf[:n], nil
		case unix.EINTR:
		default:
			return nil, errno
		}
	}
}

// Send sends a message to the kernel; answers come with Next.
func (r *Reader) Send(m netlink.Message) error {
	m.Header.Length = uint32(unix.NLMSG_HDRLEN + len(m.Data))
	b, err := m.MarshalBinary()
	if err != nil {
		return err
	}
	return r.SendRaw(b)
}

// SendRaw sends encoded messages to the kernel, one behind the other. The
// kernel answers each. It returns ErrStopped after Close.
func (r *Reader) SendRaw(b []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return ErrStopped
	}
	return unix.Sendto(r.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// StopWith makes Next return ErrStopped when ctx ends. The returned function
// undoes that.
func (r *Reader) StopWith(ctx context.Context) (undo func() bool) {
	return context.AfterFunc(ctx, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if !r.closed {
			_, _ = unix.Write(int(r.wait[1].Fd), binary.NativeEndian.AppendUint64(nil, 1)) // an eventfd takes a first one always
		}
	})
}

// Close closes the socket. No Next may be waiting.
func (r *Reader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	return errors.Join(unix.Close(r.fd), unix.Close(int(r.wait[1].Fd)))
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
