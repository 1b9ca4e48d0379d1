package nlmsg

import "encoding/binary"

// Header is a struct nlmsghdr (linux/netlink.h) without its length.
type Header struct {
	Type, Flags   uint16
	Sequence, PID uint32
}

const messageHeaderLen = 16

// Message takes one message off b and returns its payload, which aliases b,
// and the rest.
func Message(b []byte) (h Header, payload, rest []byte, err error) {
	if len(b) < messageHeaderLen {
		return h, nil, nil, ErrTruncated
	}
	n := int(binary.NativeEndian.Uint32(b))
	if n < messageHeaderLen || n > len(b) {
		return h, nil, nil, ErrTruncated
	}
	h = Header{
		Type: binary.NativeEndian.Uint16(b[4:]), Flags: binary.NativeEndian.Uint16(b[6:]),
		Sequence: binary.NativeEndian.Uint32(b[8:]), PID: binary.NativeEndian.Uint32(b[12:]),
	}
	return h, b[messageHeaderLen:n], b[min((n+3)&^3, len(b)):], nil
}

// Family takes the struct nfgenmsg (linux/netfilter/nfnetlink.h) off a
// message of the netfilter family.
func Family(b []byte) (family uint8, resource uint16, attributes []byte, err error) {
	if len(b) < 4 {
		return 0, 0, nil, ErrTruncated
	}
	return b[0], binary.BigEndian.Uint16(b[2:]), b[4:], nil
}
