package traffic

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// Ping sends one echo request (RFC 792, RFC 4443) and waits for nothing.
func Ping(from Place, to netip.Addr) error {
	network, typ := "ip4:icmp", uint8(8)
	if to.Is6() {
		network, typ = "ip6:ipv6-icmp", 128
	}
	b := []byte{typ, 0, 0, 0, 0, 1, 0, 1}
	if typ == 8 { // the kernel fills in ICMPv6's checksum
		binary.BigEndian.PutUint16(b[2:], ^(uint16(typ)<<8 + 2))
	}
	return from.Do(func() error {
		c, err := net.ListenPacket(network, "")
		if err != nil {
			return fmt.Errorf("ping %s: %w", to, err)
		}
		defer c.Close()
		if _, err = c.WriteTo(b, &net.IPAddr{IP: to.AsSlice()}); err != nil {
			return fmt.Errorf("ping %s: %w", to, err)
		}
		return nil
	})
}

// Chunk types of SCTP (RFC 9260, section 3.2).
const (
	sctpInit       = 1
	sctpInitAck    = 2
	sctpCookieEcho = 10
	sctpCookieAck  = 11
)

// sctpPacket is the common header of RFC 9260, section 3.1, and one chunk.
func sctpPacket(from, to uint16, tag uint32, chunk uint8, value []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, from)
	b = binary.BigEndian.AppendUint16(b, to)
	b = binary.BigEndian.AppendUint32(b, tag)
	b = append(b, 0, 0, 0, 0, chunk, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(4+len(value)))
	b = append(b, value...)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// sctpInitValue is the fixed part of INIT and INIT ACK: tag, window, one
// stream each way, first TSN.
func sctpInitValue(tag uint32) []byte {
	b := binary.BigEndian.AppendUint32(nil, tag)
	b = binary.BigEndian.AppendUint32(b, 1<<16)
	b = append(b, 0, 1, 0, 1)
	return binary.BigEndian.AppendUint32(b, 1)
}

const clientTag, serverTag = 0xc11e, 0x5e12

// sctpPort is a client's port. It is another each time: conntrack takes a
// second association between the same ports for more of the first.
func sctpPort() uint16 { return uint16(32768 + rand.IntN(28232)) }

// Associate sends the packets of an SCTP handshake, the server's too: the
// kernel may know no SCTP. NoSCTP must keep both kernels quiet.
func Associate(client, server Place, clientAddr, serverAddr netip.Addr, port uint16) error {
	from := sctpPort()
	return errors.Join(
		sendRaw(client, unix.IPPROTO_SCTP, serverAddr, sctpPacket(from, port, 0, sctpInit, sctpInitValue(clientTag))),
		sendRaw(server, unix.IPPROTO_SCTP, clientAddr, sctpPacket(port, from, clientTag, sctpInitAck, sctpInitValue(serverTag))),
		sendRaw(client, unix.IPPROTO_SCTP, serverAddr, sctpPacket(from, port, serverTag, sctpCookieEcho, make([]byte, 8))),
		sendRaw(server, unix.IPPROTO_SCTP, clientAddr, sctpPacket(port, from, clientTag, sctpCookieAck, nil)))
}

// InitSCTP sends an association's first packet only.
func InitSCTP(client Place, to netip.Addr, port uint16) error {
	return sendRaw(client, unix.IPPROTO_SCTP, to, sctpPacket(sctpPort(), port, 0, sctpInit, sctpInitValue(clientTag)))
}

// NoSCTP is a rule set, in nft(8)'s language, that keeps a namespace's kernel
// from answering SCTP by itself.
const NoSCTP = `table inet quiet {
	chain in1 { type filter hook input priority 0; meta l4proto sctp drop
	}
}`

// sendRaw sends one IPv4 packet of a protocol.
func sendRaw(from Place, protocol int, to netip.Addr, packet []byte) error {
	return from.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, protocol)
		if err != nil {
			return fmt.Errorf("open a raw socket: %w", err)
		}
		return errors.Join(unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: to.As4()}), unix.Close(fd))
	})
}

// Datagram is one of a burst.
type Datagram struct {
	From, To netip.AddrPort // IPv4
}

// Burst sends datagrams from any address, each a connection of its own. Next
// gives them until it says no.
func Burst(from Place, next func() (Datagram, bool)) error {
	return from.Do(func() (err error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
		if err != nil {
			return fmt.Errorf("open a raw socket: %w", err)
		}
		defer func() { err = errors.Join(err, unix.Close(fd)) }()
		const length = 20 + 8 + 4
		b := make([]byte, length)
		b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_UDP
		binary.BigEndian.PutUint16(b[24:], 8+4) // no checksum
		for d, more := next(); more; d, more = next() {
			src, dst := d.From.Addr().As4(), d.To.Addr().As4()
			copy(b[12:16], src[:])
			copy(b[16:20], dst[:])
			binary.BigEndian.PutUint16(b[20:], d.From.Port())
			binary.BigEndian.PutUint16(b[22:], d.To.Port())
			if err := send(fd, b, dst); err != nil {
				return fmt.Errorf("send a datagram from %s to %s: %w", d.From, d.To, err)
			}
		}
		return nil
	})
}

// send waits for room in the interface's queue.
func send(fd int, b []byte, to [4]byte) error {
	for {
		err := unix.Sendto(fd, b, 0, &unix.SockaddrInet4{Addr: to})
		if !errors.Is(err, syscall.ENOBUFS) {
			return err
		}
	}
}
