package traffic

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Arrival is what tells packets apart that arrive at a place: source and
// destination, the protocol's number, and the destination's port.
type Arrival struct {
	From, To netip.Addr
	Protocol uint8
	Port     uint16
}

// Arrivals are all packets that reached a place, whatever its kernel made of them.
type Arrivals struct {
	socket *os.File
	ended  chan struct{}

	mu   sync.Mutex
	seen map[Arrival]int
}

// Watch notes what arrives at a place from now on; the caller closes it.
func Watch(at Place) (*Arrivals, error) {
	a := &Arrivals{ended: make(chan struct{}), seen: make(map[Arrival]int)}
	err := at.Do(func() error {
		var all [2]byte
		binary.BigEndian.PutUint16(all[:], unix.ETH_P_ALL)
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(binary.NativeEndian.Uint16(all[:])))
		if err != nil {
			return err
		}
		a.socket = os.NewFile(uintptr(fd), "arrivals")
		return unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	})
	if err != nil {
		if a.socket != nil {
			_ = a.socket.Close()
		}
		return nil, fmt.Errorf("watch what arrives: %w", err)
	}
	go a.read()
	return a, nil
}

func (a *Arrivals) read() {
	defer close(a.ended)
	buf := make([]byte, 64<<10)
	for {
		n, err := a.socket.Read(buf)
		if err != nil {
			return // closed
		}
		if one, ok := parseArrival(buf[:n]); ok {
			a.mu.Lock()
			a.seen[one]++
			a.mu.Unlock()
		}
	}
}

// Count says how many packets of a kind have arrived.
func (a *Arrivals) Count(is func(Arrival) bool) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	sum := 0
	for one, n := range a.seen {
		if is(one) {
			sum += n
		}
	}
	return sum
}

// Close ends it.
func (a *Arrivals) Close() error {
	err := a.socket.Close()
	<-a.ended
	return err
}

// parseArrival reads an IP packet whose payload begins with two ports, as that
// of TCP, UDP and SCTP does. Others, and fragments but the first, are none.
func parseArrival(b []byte) (one Arrival, ok bool) {
	if len(b) == 0 {
		return one, false
	}
	header := 40
	switch b[0] >> 4 {
	case 4:
		header = int(b[0]&15) * 4
		if header < 20 || len(b) < header || binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
			return one, false
		}
		one = Arrival{From: netip.AddrFrom4([4]byte(b[12:16])), To: netip.AddrFrom4([4]byte(b[16:20])), Protocol: b[9]}
	case 6:
		if len(b) < header {
			return one, false
		}
		one = Arrival{From: netip.AddrFrom16([16]byte(b[8:24])), To: netip.AddrFrom16([16]byte(b[24:40])), Protocol: b[6]}
	default:
		return one, false
	}
	switch one.Protocol {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP:
	default:
		return one, false
	}
	if len(b) < header+4 {
		return one, false
	}
	one.Port = binary.BigEndian.Uint16(b[header+2:])
	return one, true
}
