package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/ti-mo/conntrack"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// rawUDP sends datagrams with source addresses and ports of its own, so that
// each begins a connection.
type rawUDP struct {
	fd     int
	packet []byte
	to     unix.SockaddrInet4
}

func newRawUDP(to netip.Addr) (*rawUDP, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
	if err != nil {
		return nil, fmt.Errorf("open raw socket: %w", err)
	}
	r := &rawUDP{fd: fd, packet: make([]byte, 20+8+8), to: unix.SockaddrInet4{Addr: to.As4()}}
	b := r.packet
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	copy(b[16:20], to.AsSlice())
	binary.BigEndian.PutUint16(b[24:], 16) // UDP length; no checksum
	return r, nil
}

func (r *rawUDP) send(src netip.Addr, srcPort, dstPort uint16) error {
	copy(r.packet[12:16], src.AsSlice())
	binary.BigEndian.PutUint16(r.packet[20:], srcPort)
	binary.BigEndian.PutUint16(r.packet[22:], dstPort)
	return unix.Sendto(r.fd, r.packet, 0, &r.to)
}

// connection numbers the connections of 10.200.0.0/16.
func connection(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 200, byte(n >> 23), byte(n >> 15)}), uint16(1024+n&0x7fff))
}

const (
	connectionPort = 9000
	connectionLife = time.Second
)

// pace calls f for 0, 1, 2 … at a rate.
func pace(ctx context.Context, rate, total int, f func(n int) error) error {
	began := time.Now()
	for n := 0; n < total && ctx.Err() == nil; {
		if due := int(time.Since(began).Seconds() * float64(rate)); due <= n {
			time.Sleep(100 * time.Microsecond)
			continue
		}
		if err := f(n); err != nil {
			return err
		}
		n++
	}
	return ctx.Err()
}

// begin begins UDP connections at a rate.
func (l *lab) begin(ctx context.Context, rate, total int) error {
	return l.pod.Do(func() error {
		r, err := newRawUDP(target())
		if err != nil {
			return err
		}
		defer unix.Close(r.fd)
		return pace(ctx, rate, total, func(n int) error {
			from := connection(n)
			if err := r.send(from.Addr(), from.Port(), connectionPort); err != nil {
				return fmt.Errorf("send: %w", err)
			}
			return nil
		})
	})
}

// end removes the connections at the same rate: the kernel by itself would
// collect them in bursts, and take a minute.
func (l *lab) end(ctx context.Context, rate, total int) error {
	return l.node.Do(func() error {
		c, err := conntrack.Dial(nil)
		if err != nil {
			return err
		}
		defer c.Close()
		return pace(ctx, rate, total, func(n int) error {
			from := connection(n)
			f := conntrack.NewFlow(unix.IPPROTO_UDP, 0, from.Addr(), target(), from.Port(), connectionPort, 0, 0)
			if err := c.Delete(f); err != nil {
				return fmt.Errorf("remove connection %d: %w", n, err)
			}
			return nil
		})
	})
}

// churn begins and ends connections at a rate: two events each.
func (l *lab) churn(ctx context.Context, rate, total int) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return l.begin(ctx, rate, total) })
	group.Go(func() error {
		time.Sleep(connectionLife)
		return l.end(ctx, rate, total)
	})
	return group.Wait()
}
