package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flowaudit/flowaudit/test/netlab"
)

// short bounds how long a client waits for an answer that does not come.
const short = 300 * time.Millisecond

// do runs f inside a pod.
func do(t *testing.T, pod *netlab.Pod, f func() error) {
	t.Helper()
	if err := pod.Do(f); err != nil {
		t.Fatal(err)
	}
}

// serve echoes on a port, TCP and UDP, until the test ends.
func serve(t *testing.T, pod *netlab.Pod, port uint16) {
	t.Helper()
	do(t, pod, func() error {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { _, _ = io.Copy(c, c); c.Close() }() // a client that goes away ends it
			}
		}()
		u, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		t.Cleanup(func() { u.Close() })
		go echo(u)
		return nil
	})
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

func hostPort(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }

// talk sends bytes to an echo server and reads them back, on a connection of its own.
func talk(t *testing.T, from *netlab.Pod, network, to string, size int) {
	t.Helper()
	c := connect(t, from, network, to)
	defer c.Close()
	exchange(t, c, size)
}

func connect(t *testing.T, from *netlab.Pod, network, to string) (c net.Conn) {
	t.Helper()
	do(t, from, func() (err error) {
		c, err = net.DialTimeout(network, to, patience)
		return err
	})
	return c
}

func exchange(t *testing.T, c net.Conn, size int) {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, size)); err != nil {
		t.Fatal(err)
	}
}

// knock tries to connect, or sends a datagram, and expects no answer.
func knock(t *testing.T, from *netlab.Pod, network, to string) {
	t.Helper()
	do(t, from, func() error {
		c, err := net.DialTimeout(network, to, short)
		if err != nil {
			return nil // refused, as it should be
		}
		defer c.Close()
		if strings.HasPrefix(network, "tcp") {
			return fmt.Errorf("%s let a connection in", to)
		}
		_, err = c.Write([]byte("knock"))
		return err
	})
}

// ping sends one echo request (RFC 792, RFC 4443). The kernel fills in
// ICMPv6's checksum.
func ping(t *testing.T, from *netlab.Pod, to netip.Addr) {
	t.Helper()
	network, typ := "ip4:icmp", uint8(8)
	if to.Is6() {
		network, typ = "ip6:ipv6-icmp", 128
	}
	b := []byte{typ, 0, 0, 0, 0, 1, 0, 1}
	if typ == 8 {
		binary.BigEndian.PutUint16(b[2:], ^(uint16(typ)<<8 + 2))
	}
	do(t, from, func() error {
		c, err := net.ListenPacket(network, "")
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.WriteTo(b, &net.IPAddr{IP: to.AsSlice()})
		return err
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

// associate sends the packets of an SCTP handshake, the server's too: the
// kernel may know no SCTP.
func associate(t *testing.T, client, server *netlab.Pod, port uint16) {
	t.Helper()
	const clientPort, clientTag, serverTag = 40000, 0xc11e, 0x5e12
	sendRaw(t, client, unix.IPPROTO_SCTP, server.IPv4, sctpPacket(clientPort, port, 0, sctpInit, sctpInitValue(clientTag)))
	sendRaw(t, server, unix.IPPROTO_SCTP, client.IPv4, sctpPacket(port, clientPort, clientTag, sctpInitAck, sctpInitValue(serverTag)))
	sendRaw(t, client, unix.IPPROTO_SCTP, server.IPv4, sctpPacket(clientPort, port, serverTag, sctpCookieEcho, make([]byte, 8)))
	sendRaw(t, server, unix.IPPROTO_SCTP, client.IPv4, sctpPacket(port, clientPort, clientTag, sctpCookieAck, nil))
}

// sendRaw sends one packet of a protocol.
func sendRaw(t *testing.T, from *netlab.Pod, protocol int, to netip.Addr, packet []byte) {
	t.Helper()
	do(t, from, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, protocol)
		if err != nil {
			return err
		}
		return errors.Join(unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: to.As4()}), unix.Close(fd))
	})
}

// noSCTP keeps a pod's kernel from answering SCTP by itself.
const noSCTP = `table inet quiet {
	chain in1 { type filter hook input priority 0; meta l4proto sctp drop
	}
}`

// burst sends UDP datagrams from many addresses and ports, a connection each:
// number n comes from 10.200.0.0 + n/30000, port 1024 + n%30000.
func burst(t *testing.T, from *netlab.Pod, to netip.Addr, first, n int, port func(i int) uint16) {
	t.Helper()
	do(t, from, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		b := make([]byte, 20+8+4)
		b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_UDP
		copy(b[16:20], to.AsSlice())
		binary.BigEndian.PutUint16(b[24:], 8+4) // no checksum
		for i := first; i < first+n; i++ {
			copy(b[12:16], []byte{10, 200, byte(i / 30000 >> 8), byte(i / 30000)})
			binary.BigEndian.PutUint16(b[20:], uint16(1024+i%30000))
			binary.BigEndian.PutUint16(b[22:], port(i))
			for {
				err := unix.Sendto(fd, b, 0, &unix.SockaddrInet4{Addr: to.As4()})
				if err == nil {
					break
				}
				if !errors.Is(err, syscall.ENOBUFS) {
					return fmt.Errorf("send datagram %d: %w", i, err)
				}
			}
		}
		return nil
	})
}
