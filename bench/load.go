package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
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

// pace calls f for runs of numbers from 0 on, at a rate.
func pace(ctx context.Context, rate, total int, f func(from, until int) error) error {
	const burst = 32
	began := time.Now()
	for n := 0; n < total && ctx.Err() == nil; {
		until := min(n+burst, total)
		if due := int(time.Since(began).Seconds() * float64(rate)); due < until {
			time.Sleep(100 * time.Microsecond)
			continue
		}
		if err := f(n, until); err != nil {
			return err
		}
		n = until
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
		defer func() { _ = unix.Close(r.fd) }() // nothing is buffered
		return pace(ctx, rate, total, func(from, until int) error {
			for n := from; n < until; n++ {
				c := connection(n)
				if err := r.send(c.Addr(), c.Port(), connectionPort); err != nil {
					return fmt.Errorf("send: %w", err)
				}
			}
			return nil
		})
	})
}

// end removes the connections at the same rate: the kernel by itself would
// collect them in bursts, and take a minute.
func (l *lab) end(ctx context.Context, rate, total int) error {
	return l.node.Do(func() error {
		c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
		if err != nil {
			return err
		}
		defer c.Close()
		return pace(ctx, rate, total, func(from, until int) error {
			var requests []netlink.Message
			for n := from; n < until; n++ {
				m, err := removal(connection(n))
				if err != nil {
					return err
				}
				requests = append(requests, m)
			}
			_, err := c.SendMessages(requests)
			return err
		})
	})
}

// removal asks for the end of a connection, and for no answer (IPCTNL_MSG_CT_DELETE,
// linux/netfilter/nfnetlink_conntrack.h).
func removal(from netip.AddrPort) (netlink.Message, error) {
	const (
		tupleOrig, tupleIP, tupleProto = 1, 1, 2 // CTA_TUPLE_ORIG, CTA_TUPLE_IP, CTA_TUPLE_PROTO
		v4Src, v4Dst                   = 1, 2    // CTA_IP_V4_SRC, CTA_IP_V4_DST
		number, srcPort, dstPort       = 1, 2, 3 // CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT
		deleteMessage                  = 2       // IPCTNL_MSG_CT_DELETE
	)
	e := netlink.NewAttributeEncoder()
	e.ByteOrder = binary.BigEndian
	e.Nested(tupleOrig, func(e *netlink.AttributeEncoder) error {
		e.Nested(tupleIP, func(e *netlink.AttributeEncoder) error {
			e.Bytes(v4Src, from.Addr().AsSlice())
			e.Bytes(v4Dst, target().AsSlice())
			return nil
		})
		e.Nested(tupleProto, func(e *netlink.AttributeEncoder) error {
			e.Uint8(number, unix.IPPROTO_UDP)
			e.Uint16(srcPort, from.Port())
			e.Uint16(dstPort, connectionPort)
			return nil
		})
		return nil
	})
	b, err := e.Encode()
	return netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_CTNETLINK<<8 | deleteMessage, Flags: netlink.Request},
		Data:   append([]byte{unix.AF_INET, unix.NFNETLINK_V0, 0, 0}, b...),
	}, err
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
