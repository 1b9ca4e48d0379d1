package nflog

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/flowaudit/flowaudit/flow"
)

// Faults of a logged packet. They are values, so that a flood of bad packets
// costs no allocation.
var (
	errPacketShort   = errors.New("packet: shorter than its IP header")
	errPacketVersion = errors.New("packet: neither IPv4 nor IPv6")
	errPacketHeader  = errors.New("packet: the IP header's length is impossible")
	errPacketChain   = errors.New("packet: IPv6 extension headers do not end")
)

// IPv6 extension headers (IANA protocol numbers).
const (
	hopByHop    = 0
	routing     = 43
	fragment    = 44
	authHeader  = 51
	destOptions = 60
	mobility    = 135
)

// maxExtensions bounds the walk along extension headers.
const maxExtensions = 16

// DecodeHeaders reads a packet's IP header and the first bytes of the one above
// it into o.
func DecodeHeaders(p []byte, o *flow.Observation) error { return decodePacket(p, o) }

// decodePacket reads the IP header and the first bytes of the one above it.
// The packet may be cut behind them; ports that are cut off stay 0.
func decodePacket(p []byte, o *flow.Observation) error {
	if len(p) == 0 {
		return errPacketShort
	}
	switch p[0] >> 4 {
	case 4:
		return decodeIPv4(p, o)
	case 6:
		return decodeIPv6(p, o)
	}
	return errPacketVersion
}

// decodeIPv4 reads an RFC 791 header.
func decodeIPv4(p []byte, o *flow.Observation) error {
	if len(p) < 20 {
		return errPacketShort
	}
	header := int(p[0]&0x0f) * 4
	if header < 20 || header > len(p) {
		return errPacketHeader
	}
	o.Size = uint32(binary.BigEndian.Uint16(p[2:]))
	o.Protocol = flow.Protocol(p[9])
	o.Original.Src = netip.AddrFrom4([4]byte(p[12:16]))
	o.Original.Dst = netip.AddrFrom4([4]byte(p[16:20]))
	if binary.BigEndian.Uint16(p[6:])&0x1fff != 0 {
		o.Fragment = true
		return nil
	}
	decodeTransport(p[header:], o)
	return nil
}

// decodeIPv6 reads an RFC 8200 header and the extension headers behind it.
func decodeIPv6(p []byte, o *flow.Observation) error {
	if len(p) < 40 {
		return errPacketShort
	}
	o.Size = 40 + uint32(binary.BigEndian.Uint16(p[4:]))
	o.Original.Src = netip.AddrFrom16([16]byte(p[8:24])).Unmap()
	o.Original.Dst = netip.AddrFrom16([16]byte(p[24:40])).Unmap()
	next, rest := p[6], p[40:]
	for range maxExtensions {
		var length int
		switch next {
		case hopByHop, routing, destOptions, mobility:
			if len(rest) < 2 {
				return errPacketShort
			}
			length = int(rest[1])*8 + 8
		case authHeader:
			if len(rest) < 2 {
				return errPacketShort
			}
			length = int(rest[1])*4 + 8
		case fragment:
			if len(rest) < 8 {
				return errPacketShort
			}
			length = 8
			o.Fragment = binary.BigEndian.Uint16(rest[2:])&0xfff8 != 0
		default:
			o.Protocol = flow.Protocol(next)
			if !o.Fragment {
				decodeTransport(rest, o)
			}
			return nil
		}
		if length > len(rest) {
			return errPacketShort
		}
		next, rest = rest[0], rest[length:]
		if o.Fragment {
			// What follows a later fragment's header is data.
			o.Protocol = flow.Protocol(next)
			return nil
		}
	}
	return errPacketChain
}

func decodeTransport(p []byte, o *flow.Observation) {
	switch {
	case o.Protocol.HasPorts():
		if len(p) >= 4 {
			o.Original.SrcPort = binary.BigEndian.Uint16(p)
			o.Original.DstPort = binary.BigEndian.Uint16(p[2:])
		}
		if o.Protocol == flow.TCP && len(p) >= 14 {
			o.TCPFlags = p[13]
			if o.TCPFlags&(flow.TCPSyn|flow.TCPAck) == flow.TCPSyn {
				o.Sequence = binary.BigEndian.Uint32(p[4:])
			}
		}
	case o.Protocol.IsICMP():
		if len(p) >= 2 {
			o.ICMPType, o.ICMPCode = p[0], p[1]
		}
		if len(p) >= 6 { // where a request has its identifier
			o.ICMPID = binary.BigEndian.Uint16(p[4:])
		}
	}
}
