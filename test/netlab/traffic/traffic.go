// Package traffic talks between network namespaces: echo servers, clients that succeed and clients that are refused.
package traffic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"
)

// Place is where traffic begins or ends, such as a pod's network namespace.
type Place interface {
	// Do runs f inside.
	Do(f func() error) error
}

const (
	// patience bounds what must succeed.
	patience = 30 * time.Second
	// short bounds how long a client waits for an answer that does not come.
	short = 300 * time.Millisecond
)

// Server is an echo server on one port.
type Server struct{ closers []io.Closer }

// Close ends the server; its connections go on until their clients end them.
func (s *Server) Close() error {
	var errs []error
	for _, c := range s.closers {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// Serve echoes on a port of every address, TCP and UDP.
func Serve(at Place, port uint16) (*Server, error) {
	s := &Server{}
	err := at.Do(func() error {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		s.closers = append(s.closers, l)
		u, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		s.closers = append(s.closers, u)
		go accept(l)
		go echo(u)
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("serve port %d: %w", port, err), s.Close())
	}
	return s, nil
}

func accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c) // a client that goes away ends it
		}()
	}
}

func echo(u net.PacketConn) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := u.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil { // an ICMP error is none of the server's
			_, _ = u.WriteTo(buf[:n], from)
		}
	}
}

// Caller is who connects: from a place, and from a port of its own choice or,
// with 0, of the kernel's. The kernel may choose a port again that is free: two
// datagrams from one port are one connection to whoever looks at them.
type Caller struct {
	From Place
	Port uint16
}

// Talk sends bytes to an echo server and reads them back, on a connection of
// its own. Network is tcp or udp, the address host:port.
func Talk(ctx context.Context, from Place, network, to string, size int) error {
	return Caller{From: from}.Talk(ctx, network, to, size)
}

// Talk is the function Talk from the caller's port.
func (a Caller) Talk(ctx context.Context, network, to string, size int) error {
	c, err := a.connect(ctx, network, to)
	if err != nil {
		return err
	}
	defer c.Close()
	return Exchange(c, size)
}

// Connect opens a connection, which the caller closes.
func Connect(ctx context.Context, from Place, network, to string) (net.Conn, error) {
	return Caller{From: from}.connect(ctx, network, to)
}

// dialer binds the caller's port.
func (a Caller) dialer(network string, timeout time.Duration) *net.Dialer {
	d := &net.Dialer{Timeout: timeout}
	switch {
	case a.Port == 0:
	case strings.HasPrefix(network, "udp"):
		d.LocalAddr = &net.UDPAddr{Port: int(a.Port)}
	default:
		d.LocalAddr = &net.TCPAddr{Port: int(a.Port)}
	}
	return d
}

func (a Caller) connect(ctx context.Context, network, to string) (c net.Conn, err error) {
	err = a.From.Do(func() (err error) {
		c, err = a.dialer(network, patience).DialContext(ctx, network, to)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", to, err)
	}
	return c, nil
}

// Exchange sends bytes to an echo server and reads them back.
func Exchange(c net.Conn, size int) error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	if _, err := c.Write(make([]byte, size)); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	if _, err := io.ReadFull(c, make([]byte, size)); err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	return nil
}

// ErrLetIn says that a connection got through that was to be refused.
var ErrLetIn = errors.New("it was let in and must be refused")

// Knock tries to connect, or sends one datagram, where no answer may come. A
// connection that gets through is an error.
func Knock(ctx context.Context, from Place, network, to string) error {
	return Caller{From: from}.Knock(ctx, network, to)
}

// Knock is the function Knock from the caller's port.
func (a Caller) Knock(ctx context.Context, network, to string) error {
	return a.From.Do(func() error {
		c, err := a.dialer(network, short).DialContext(ctx, network, to)
		if err != nil {
			return refusal(to, err)
		}
		defer c.Close()
		if strings.HasPrefix(network, "tcp") {
			return fmt.Errorf("try %s: %w", to, ErrLetIn)
		}
		if _, err = c.Write([]byte("knock")); err != nil {
			return fmt.Errorf("send a datagram to %s: %w", to, err)
		}
		return nil
	})
}

// refusal tells a refused connection from one that could not be tried.
func refusal(to string, err error) error {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return nil
	}
	for _, refused := range []error{syscall.ECONNREFUSED, syscall.EACCES, syscall.EHOSTUNREACH, syscall.ENETUNREACH} {
		if errors.Is(err, refused) {
			return nil
		}
	}
	return fmt.Errorf("try %s: %w", to, err)
}
