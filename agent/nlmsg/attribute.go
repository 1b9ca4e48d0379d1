// Package nlmsg reads netlink messages and their attributes in place, without allocation.
package nlmsg

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// ErrTruncated says that a length leads past the end of the bytes, or is
// shorter than its own header.
var ErrTruncated = errors.New("length does not fit the message")

const (
	headerLen = 4      // struct nlattr, linux/netlink.h
	typeMask  = 0x3fff // NLA_TYPE_MASK: without NLA_F_NESTED and NLA_F_NET_BYTEORDER
)

// Attribute takes one attribute off b (struct nlattr: u16 length, u16 type, both in
// host order; payload; padding to 4 bytes). It returns the type without its
// flag bits, the payload, which aliases b, and the rest.
func Attribute(b []byte) (typ uint16, payload, rest []byte, err error) {
	if len(b) < headerLen {
		return 0, nil, nil, ErrTruncated
	}
	n := int(binary.NativeEndian.Uint16(b))
	if n < headerLen || n > len(b) {
		return 0, nil, nil, ErrTruncated
	}
	typ = binary.NativeEndian.Uint16(b[2:]) & typeMask
	end := min((n+3)&^3, len(b))
	return typ, b[headerLen:n], b[end:], nil
}

// Uint16 reads a network-order value; ok is false if the payload has another length.
func Uint16(p []byte) (v uint16, ok bool) {
	if len(p) != 2 {
		return 0, false
	}
	return binary.BigEndian.Uint16(p), true
}

// Uint32 reads a network-order value; ok is false if the payload has another length.
func Uint32(p []byte) (v uint32, ok bool) {
	if len(p) != 4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(p), true
}

// Uint64 reads a network-order value; ok is false if the payload has another length.
func Uint64(p []byte) (v uint64, ok bool) {
	if len(p) != 8 {
		return 0, false
	}
	return binary.BigEndian.Uint64(p), true
}

// Addr4 reads an IPv4 address.
func Addr4(p []byte) (netip.Addr, bool) {
	if len(p) != 4 {
		return netip.Addr{}, false
	}
	return netip.AddrFrom4([4]byte(p)), true
}

// Addr16 reads an IPv6 address and unmaps an IPv4-mapped one.
func Addr16(p []byte) (netip.Addr, bool) {
	if len(p) != 16 {
		return netip.Addr{}, false
	}
	return netip.AddrFrom16([16]byte(p)).Unmap(), true
}
