package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/flowaudit/flowaudit/test/netlab"
)

const (
	floodSenders = 2
	floodBurst   = 64
	floodPorts   = 1024 // so that there are many flows
)

// flood sends UDP datagrams to many ports at a rate, in ready-made frames: at
// 500,000 a second the sender's own IP stack would take the processor that the
// reader needs.
func (l *lab) flood(ctx context.Context, rate, seconds int) (sent uint64, took time.Duration, err error) {
	began := time.Now()
	counts := make([]uint64, floodSenders)
	group, ctx := errgroup.WithContext(ctx)
	for i := range counts {
		group.Go(func() error {
			return l.pod.Do(func() error {
				s, err := newFrameSocket(l.node, l.pod, target())
				if err != nil {
					return err
				}
				counts[i], err = s.sendAt(ctx, rate/floodSenders, rate/floodSenders*seconds)
				return errors.Join(err, unix.Close(s.fd))
			})
		})
	}
	err = group.Wait()
	for _, n := range counts {
		sent += n
	}
	return sent, time.Since(began), err
}

// frameSocket is a packet socket with the messages of one burst for each group
// of ports.
type frameSocket struct {
	fd     int
	bursts [][]mmsghdr
}

// mmsghdr is struct mmsghdr of sendmmsg(2).
type mmsghdr struct {
	header unix.Msghdr
	length uint32
	_      [4]byte
}

func newFrameSocket(node *netlab.Node, pod *netlab.Pod, to netip.Addr) (*frameSocket, error) {
	from, err := net.InterfaceByName("eth0")
	if err != nil {
		return nil, err
	}
	gateway, err := hardwareAddr(node, pod.Veth)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	s := &frameSocket{fd: fd}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
		return nil, errors.Join(fmt.Errorf("bypass the queue: %w", err), unix.Close(fd))
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: from.Index}); err != nil {
		return nil, errors.Join(fmt.Errorf("bind packet socket: %w", err), unix.Close(fd))
	}
	for port := 0; port < floodPorts; port += floodBurst {
		burst := make([]mmsghdr, floodBurst)
		for i := range burst {
			frame := udpFrame(gateway, from.HardwareAddr, pod.IPv4, to, uint16(1000+port+i))
			burst[i].header.Iov = &unix.Iovec{Base: &frame[0], Len: uint64(len(frame))}
			burst[i].header.Iovlen = 1
		}
		s.bursts = append(s.bursts, burst)
	}
	return s, nil
}

func hardwareAddr(node *netlab.Node, name string) (addr net.HardwareAddr, err error) {
	err = node.Do(func() error {
		dev, err := net.InterfaceByName(name)
		if err == nil {
			addr = dev.HardwareAddr
		}
		return err
	})
	return addr, err
}

func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// udpFrame is an Ethernet frame with a UDP datagram of 32 bytes.
func udpFrame(dst, src net.HardwareAddr, from, to netip.Addr, port uint16) []byte {
	const payload = 32
	b := append(append([]byte{}, dst...), src...)
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IP)
	ip := ipv4Header(from, to, unix.IPPROTO_UDP, 8+payload)
	b = append(b, ip...)
	b = binary.BigEndian.AppendUint16(b, 40000)
	b = binary.BigEndian.AppendUint16(b, port)
	b = binary.BigEndian.AppendUint16(b, 8+payload)
	b = append(b, 0, 0) // no checksum
	return append(b, make([]byte, payload)...)
}

func ipv4Header(from, to netip.Addr, protocol uint8, payload int) []byte {
	b := make([]byte, 20)
	b[0], b[8], b[9] = 0x45, 64, protocol
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)+payload))
	copy(b[12:], from.AsSlice())
	copy(b[16:], to.AsSlice())
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum&0xffff+sum>>16))
	return b
}

// sendAt sends so many frames at a rate.
func (s *frameSocket) sendAt(ctx context.Context, rate, total int) (sent uint64, err error) {
	began := time.Now()
	for burst := 0; sent < uint64(total) && ctx.Err() == nil; {
		due := uint64(time.Since(began).Seconds() * float64(rate))
		if due < sent+floodBurst && due < uint64(total) {
			time.Sleep(20 * time.Microsecond)
			continue
		}
		messages := s.bursts[burst%len(s.bursts)]
		messages = messages[:min(uint64(len(messages)), uint64(total)-sent)]
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&messages[0])), uintptr(len(messages)), 0, 0, 0)
		switch errno {
		case 0:
			sent += uint64(n)
			burst++
		case unix.ENOBUFS, unix.EAGAIN:
		default:
			return sent, fmt.Errorf("send: %w", errno)
		}
	}
	return sent, nil
}
