package flow

import (
	"fmt"
	"strconv"
	"strings"
)

// Protocol is an IANA protocol number, as in the IP header.
type Protocol uint8

// The protocols that flowaudit knows by name.
const (
	ICMP   Protocol = 1
	TCP    Protocol = 6
	UDP    Protocol = 17
	ICMPv6 Protocol = 58
	SCTP   Protocol = 132
)

// String returns the lower-case name, or the number where there is none.
func (p Protocol) String() string {
	switch p {
	case ICMP:
		return "icmp"
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case ICMPv6:
		return "icmpv6"
	case SCTP:
		return "sctp"
	}
	return strconv.Itoa(int(p))
}

// HasPorts reports whether the protocol's header begins with two ports.
func (p Protocol) HasPorts() bool { return p == TCP || p == UDP || p == SCTP }

// IsICMP reports whether the protocol is ICMP of either IP version.
func (p Protocol) IsICMP() bool { return p == ICMP || p == ICMPv6 }

// ParseProtocol reads a name in any case, or a number from 0 to 255.
func ParseProtocol(s string) (Protocol, error) {
	switch strings.ToLower(s) {
	case "icmp", "icmpv4":
		return ICMP, nil
	case "tcp":
		return TCP, nil
	case "udp":
		return UDP, nil
	case "icmpv6":
		return ICMPv6, nil
	case "sctp":
		return SCTP, nil
	}
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil {
		return 0, fmt.Errorf("parse protocol %q: want tcp, udp, sctp, icmp, icmpv6 or a number up to 255", s)
	}
	return Protocol(n), nil
}

// TCP header flags (RFC 9293, section 3.1).
const (
	TCPFin = 1 << iota
	TCPSyn
	TCPRst
	TCPPsh
	TCPAck
	TCPUrg
	TCPEce
	TCPCwr
)

// TCPFlagNames lists the names of the set bits, SYN first among equals of a
// handshake as tcpdump users expect.
func TCPFlagNames(flags uint8) []string {
	var names []string
	for _, f := range [...]struct {
		bit  uint8
		name string
	}{
		{TCPSyn, "SYN"},
		{TCPAck, "ACK"},
		{TCPFin, "FIN"},
		{TCPRst, "RST"},
		{TCPPsh, "PSH"},
		{TCPUrg, "URG"},
		{TCPEce, "ECE"},
		{TCPCwr, "CWR"},
	} {
		if flags&f.bit != 0 {
			names = append(names, f.name)
		}
	}
	return names
}
