// Package ipvs reads which addresses IPVS serves without connection tracking.
package ipvs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/flowaudit/flowaudit/flow"
)

// end is an address and port of a protocol.
type end struct {
	protocol flow.Protocol
	addr     netip.AddrPort
}

// Services are those that IPVS serves. The zero value has none.
type Services struct {
	virtual map[end]bool
	real    map[end]bool
	marks   map[uint32]bool // of services that are chosen by the packet's mark
}

// Len is how many there are.
func (s *Services) Len() int { return len(s.virtual) + len(s.marks) }

// To reports whether a packet goes to a service.
func (s *Services) To(p flow.Protocol, t flow.Tuple, mark uint32) bool {
	return s.virtual[end{p, netip.AddrPortFrom(t.Dst, t.DstPort)}] || mark != 0 && s.marks[mark]
}

// From reports whether a packet comes back from a server of one.
func (s *Services) From(p flow.Protocol, t flow.Tuple) bool {
	return s.real[end{p, netip.AddrPortFrom(t.Src, t.SrcPort)}]
}

// Tracked reports whether connection tracking sees the connections of IPVS in
// the network namespace of the calling thread: net.ipv4.vs.conntrack. It does
// where there is no IPVS. root is the directory that has proc.
func Tracked(root string) (bool, error) {
	b, err := os.ReadFile(filepath.Join(root, "proc/sys/net/ipv4/vs/conntrack"))
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return true, fmt.Errorf("read whether IPVS tracks connections: %w", err)
	}
	return strings.TrimSpace(string(b)) != "0", nil
}

// Read reads the services of the calling thread's network namespace; none where
// there is no IPVS. root is the directory that has proc.
func Read(root string) (*Services, error) {
	b, err := os.ReadFile(filepath.Join(root, "proc/thread-self/net/ip_vs"))
	if errors.Is(err, fs.ErrNotExist) {
		return &Services{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read IPVS' services: %w", err)
	}
	return parse(b)
}

var errLine = errors.New("neither a service nor a server")

// parse reads the form of /proc/net/ip_vs (net/netfilter/ipvs/ip_vs_ctl.c):
// numbers are hexadecimal, and IPv6 addresses stand in brackets.
func parse(b []byte) (*Services, error) {
	s := &Services{virtual: make(map[end]bool), real: make(map[end]bool), marks: make(map[uint32]bool)}
	var protocol flow.Protocol // of the service whose servers follow; 0 where it has a mark
	lines := bufio.NewScanner(bytes.NewReader(b))
	for n := 1; lines.Scan(); n++ {
		fields := strings.Fields(lines.Text())
		if n <= 3 || len(fields) == 0 { // the head
			continue
		}
		var err error
		if protocol, err = s.line(fields, protocol); err != nil {
			return nil, fmt.Errorf("read IPVS' services: line %d: %q: %w", n, lines.Text(), err)
		}
	}
	return s, lines.Err()
}

func (s *Services) line(fields []string, protocol flow.Protocol) (flow.Protocol, error) {
	if len(fields) < 2 {
		return protocol, errLine
	}
	switch fields[0] {
	case "FWM":
		mark, err := strconv.ParseUint(fields[1], 16, 32)
		s.marks[uint32(mark)] = true
		return 0, err
	case "->":
		addr, err := parseEnd(fields[1])
		if protocol != 0 {
			s.real[end{protocol, addr}] = true
			return protocol, err
		}
		for _, p := range []flow.Protocol{flow.TCP, flow.UDP, flow.SCTP} {
			s.real[end{p, addr}] = true
		}
		return protocol, err
	case "TCP", "UDP", "SCTP":
		p, err := flow.ParseProtocol(fields[0])
		if err != nil {
			return protocol, err
		}
		addr, err := parseEnd(fields[1])
		s.virtual[end{p, addr}] = true
		return p, err
	}
	return protocol, errLine
}

// parseEnd reads 0A600001:0050 or [fd00:…:0001]:0050.
func parseEnd(text string) (netip.AddrPort, error) {
	i := strings.LastIndexByte(text, ':')
	if i < 0 {
		return netip.AddrPort{}, errLine
	}
	port, err := strconv.ParseUint(text[i+1:], 16, 16)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if host, ok := strings.CutPrefix(text[:i], "["); ok {
		addr, err := netip.ParseAddr(strings.TrimSuffix(host, "]"))
		return netip.AddrPortFrom(addr.Unmap(), uint16(port)), err
	}
	v, err := strconv.ParseUint(text[:i], 16, 32)
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}), uint16(port)), err
}
