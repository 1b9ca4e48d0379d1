package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// LocalOptions configure a probe between two pods of this node. It needs root,
// and neither an image nor the API server: it dials from the namespace of one
// pod, and listens in that of the other.
type LocalOptions struct {
	From, To netip.Addr // the pods' addresses
	// Port to dial; 0 takes a free one, on which the probe itself listens.
	Port    uint16
	Timeout time.Duration // of the connection
}

// LocalResult is what became of the connection.
type LocalResult struct {
	From   netip.Addr `json:"from"`
	To     netip.Addr `json:"to"`
	Port   uint16     `json:"port"`
	Passed bool       `json:"passed"`
	// Error is why it did not pass: it was refused, or nothing came back.
	Error string `json:"error,omitempty"`
	// Served says that something of the pod listens there already.
	Served bool `json:"served"`
}

// Local dials once.
func Local(ctx context.Context, o LocalOptions) (LocalResult, error) {
	r := LocalResult{From: o.From, To: o.To, Port: o.Port}
	from, err := namespaceOf(o.From)
	if err != nil {
		return r, err
	}
	defer from.Close()
	to, err := namespaceOf(o.To)
	if err != nil {
		return r, err
	}
	defer to.Close()
	var listener net.Listener
	err = to.do(func() error {
		listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(o.To.String(), strconv.Itoa(int(o.Port))))
		return err
	})
	switch {
	case err == nil:
		defer listener.Close()
		go echo(listener)
		r.Port = netip.MustParseAddrPort(listener.Addr().String()).Port()
	case errors.Is(err, syscall.EADDRINUSE):
		r.Served = true
	default:
		return r, fmt.Errorf("listen in the pod %s: %w", o.To, err)
	}
	err = from.do(func() error {
		d := net.Dialer{Timeout: o.Timeout}
		c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(o.To, r.Port).String())
		if err != nil {
			return err
		}
		return errors.Join(exchange(c, r.Served, o.Timeout), c.Close())
	})
	if ctx.Err() != nil {
		return r, context.Cause(ctx)
	}
	if r.Passed = err == nil; err != nil {
		r.Error = reasonOf(err)
	}
	return r, nil
}

// exchange says a byte and hears it, where it is the probe that answers: some
// network plugins let a connection begin that they refuse.
func exchange(c net.Conn, served bool, timeout time.Duration) error {
	if served {
		return nil
	}
	b := []byte{'x'}
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if _, err := c.Write(b); err != nil {
		return err
	}
	_, err := io.ReadFull(c, b)
	return err
}

// echo echoes until the listener is closed.
func echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			_, _ = io.Copy(c, c) // the client's end tells what went wrong
			_ = c.Close()
		}()
	}
}

// reasonOf says in plain words why a connection did not come to be.
func reasonOf(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return "refused"
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
		return "unreachable"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "no answer"
	}
	return err.Error()
}
