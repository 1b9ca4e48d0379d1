package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"golang.org/x/sys/unix"

	"github.com/flowaudit/flowaudit/agent/nlmsg"
	"github.com/flowaudit/flowaudit/flow"
)

// Message types of the conntrack subsystem (enum cntl_msg_types,
// linux/netfilter/nfnetlink_conntrack.h).
const (
	messageNew    = unix.NFNL_SUBSYS_CTNETLINK << 8   // IPCTNL_MSG_CT_NEW, 0: new and update
	messageDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2 // IPCTNL_MSG_CT_DELETE
	getMessage    = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1 // IPCTNL_MSG_CT_GET
)

// Attributes (enum ctattr_type and those below it, the same header).
const (
	ctaTupleOrig     = 1
	ctaTupleReply    = 2
	ctaStatus        = 3
	ctaProtoinfo     = 4
	ctaMark          = 8
	ctaCountersOrig  = 9
	ctaCountersReply = 10
	ctaID            = 12
	ctaZone          = 18
	ctaTimestamp     = 20
	ctaLabels        = 22

	ctaTupleIP    = 1
	ctaTupleProto = 2
	ctaTupleZone  = 3

	ctaIPv4Src = 1
	ctaIPv4Dst = 2
	ctaIPv6Src = 3
	ctaIPv6Dst = 4

	ctaProtoNum        = 1
	ctaProtoSrcPort    = 2
	ctaProtoDstPort    = 3
	ctaProtoICMPID     = 4
	ctaProtoICMPType   = 5
	ctaProtoICMPCode   = 6
	ctaProtoICMPv6ID   = 7
	ctaProtoICMPv6Type = 8
	ctaProtoICMPv6Code = 9

	ctaCountersPackets = 1
	ctaCountersBytes   = 2

	ctaTimestampStart = 1

	ctaProtoinfoTCP      = 1
	ctaProtoinfoTCPState = 1
)

// Faults of a message.
var (
	errType    = errors.New("message: neither new, update nor delete")
	errMissing = errors.New("missing or without addresses")
	errLength  = errors.New("a value of another length than its type has")
)

// attributeNames are the names of the attributes that are read.
var attributeNames = map[uint16]string{
	ctaTupleOrig:     "CTA_TUPLE_ORIG",
	ctaTupleReply:    "CTA_TUPLE_REPLY",
	ctaStatus:        "CTA_STATUS",
	ctaProtoinfo:     "CTA_PROTOINFO",
	ctaMark:          "CTA_MARK",
	ctaCountersOrig:  "CTA_COUNTERS_ORIG",
	ctaCountersReply: "CTA_COUNTERS_REPLY",
	ctaID:            "CTA_ID",
	ctaZone:          "CTA_ZONE",
	ctaTimestamp:     "CTA_TIMESTAMP",
	ctaLabels:        "CTA_LABELS",
}

// Decode reads one ctnetlink message, from its nfgenmsg on, into o, which must
// be empty but for Time. It allocates nothing. CTA_TIMESTAMP exists only where
// nf_conntrack_timestamp was on when the connection began, and tells when that
// was, not when the event was. An error names the attribute at fault.
func Decode(h nlmsg.Header, message []byte, o *flow.Observation) error {
	o.Source = flow.SourceConntrack
	switch {
	case h.Type == messageDelete:
		o.Event = flow.EventDestroy
	case h.Type == messageNew && h.Flags&unix.NLM_F_MULTI != 0:
		o.Event = flow.EventDump
	case h.Type == messageNew && h.Flags&unix.NLM_F_CREATE != 0:
		o.Event = flow.EventNew
	case h.Type == messageNew:
		o.Event = flow.EventUpdate
	default:
		return errType
	}
	_, _, rest, err := nlmsg.Family(message)
	if err != nil {
		return fmt.Errorf("nfgenmsg: %w", err)
	}
	for len(rest) > 0 {
		var typ uint16
		var p []byte
		if typ, p, rest, err = nlmsg.Attribute(rest); err != nil {
			return fmt.Errorf("attribute: %w", err)
		}
		if err := decodeAttribute(typ, p, o); err != nil {
			return fmt.Errorf("%s: %w", attributeNames[typ], err)
		}
	}
	switch {
	case !o.Original.Src.IsValid() || !o.Original.Dst.IsValid():
		return fmt.Errorf("%s: %w", attributeNames[ctaTupleOrig], errMissing)
	case !o.Reply.Src.IsValid() || !o.Reply.Dst.IsValid():
		return fmt.Errorf("%s: %w", attributeNames[ctaTupleReply], errMissing)
	}
	return nil
}

func decodeAttribute(typ uint16, p []byte, o *flow.Observation) error {
	ok := true
	switch typ {
	case ctaTupleOrig:
		return decodeTuple(p, o, &o.Original, true)
	case ctaTupleReply:
		return decodeTuple(p, o, &o.Reply, false)
	case ctaStatus:
		o.Status, ok = nlmsg.Uint32(p)
	case ctaMark:
		o.Mark, ok = nlmsg.Uint32(p)
	case ctaID:
		o.ID, ok = nlmsg.Uint32(p)
	case ctaZone:
		o.Zone, ok = nlmsg.Uint16(p)
	case ctaLabels:
		o.Permitted = labelled(p)
	case ctaCountersOrig:
		return decodeCounters(p, &o.Sent, o)
	case ctaCountersReply:
		return decodeCounters(p, &o.Received, o)
	case ctaProtoinfo:
		return decodeProtoinfo(p, o)
	case ctaTimestamp:
		return decodeTimestamp(p, o)
	}
	if !ok {
		return errLength
	}
	return nil
}

// permittedLabel is the bit that kube-network-policies sets on a connection that
// it has let through: ct label 28.
const permittedLabel = 28

// labelled reports whether that bit is set in CTA_LABELS, which the kernel
// sends as it holds it: an array of unsigned long.
func labelled(p []byte) bool {
	if len(p) < 8 {
		return false
	}
	return binary.NativeEndian.Uint64(p)&(1<<permittedLabel) != 0
}

// decodeTuple reads CTA_TUPLE_ORIG or CTA_TUPLE_REPLY. The protocol, and what
// ICMP has instead of ports, are the original's.
func decodeTuple(b []byte, o *flow.Observation, t *flow.Tuple, original bool) error {
	for len(b) > 0 {
		typ, p, rest, err := nlmsg.Attribute(b)
		if err != nil {
			return err
		}
		b = rest
		switch typ {
		case ctaTupleIP:
			err = decodeAddresses(p, t)
		case ctaTupleProto:
			err = decodeProtocol(p, o, t, original)
		case ctaTupleZone: // a zone of one direction only
			var ok bool
			if o.Zone, ok = nlmsg.Uint16(p); !ok {
				err = errLength
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func decodeAddresses(b []byte, t *flow.Tuple) error {
	for len(b) > 0 {
		typ, p, rest, err := nlmsg.Attribute(b)
		if err != nil {
			return err
		}
		b = rest
		ok := true
		switch typ {
		case ctaIPv4Src:
			t.Src, ok = nlmsg.Addr4(p)
		case ctaIPv4Dst:
			t.Dst, ok = nlmsg.Addr4(p)
		case ctaIPv6Src:
			t.Src, ok = nlmsg.Addr16(p)
		case ctaIPv6Dst:
			t.Dst, ok = nlmsg.Addr16(p)
		}
		if !ok {
			return errLength
		}
	}
	return nil
}

func decodeProtocol(b []byte, o *flow.Observation, t *flow.Tuple, original bool) error {
	for len(b) > 0 {
		typ, p, rest, err := nlmsg.Attribute(b)
		if err != nil {
			return err
		}
		b = rest
		ok := true
		switch typ {
		case ctaProtoSrcPort:
			t.SrcPort, ok = nlmsg.Uint16(p)
		case ctaProtoDstPort:
			t.DstPort, ok = nlmsg.Uint16(p)
		case ctaProtoICMPID, ctaProtoICMPv6ID:
			var id uint16
			if id, ok = nlmsg.Uint16(p); ok && original {
				o.ICMPID = id
			}
		case ctaProtoNum, ctaProtoICMPType, ctaProtoICMPCode, ctaProtoICMPv6Type, ctaProtoICMPv6Code:
			if ok = len(p) == 1; ok && original {
				setProtocol(typ, p[0], o)
			}
		}
		if !ok {
			return errLength
		}
	}
	return nil
}

func setProtocol(typ uint16, v uint8, o *flow.Observation) {
	switch typ {
	case ctaProtoNum:
		o.Protocol = flow.Protocol(v)
	case ctaProtoICMPType, ctaProtoICMPv6Type:
		o.ICMPType = v
	case ctaProtoICMPCode, ctaProtoICMPv6Code:
		o.ICMPCode = v
	}
}

// decodeCounters reads CTA_COUNTERS_*. Without nf_conntrack_acct there are none.
func decodeCounters(b []byte, c *flow.Counters, o *flow.Observation) error {
	for len(b) > 0 {
		typ, p, rest, err := nlmsg.Attribute(b)
		if err != nil {
			return err
		}
		b = rest
		ok := true
		switch typ {
		case ctaCountersPackets:
			c.Packets, ok = nlmsg.Uint64(p)
		case ctaCountersBytes:
			c.Bytes, ok = nlmsg.Uint64(p)
		}
		if !ok {
			return errLength
		}
	}
	o.Counted = true
	return nil
}

func decodeTimestamp(b []byte, o *flow.Observation) error {
	for len(b) > 0 {
		typ, p, rest, err := nlmsg.Attribute(b)
		if err != nil {
			return err
		}
		b = rest
		if typ != ctaTimestampStart {
			continue
		}
		n, ok := nlmsg.Uint64(p)
		if !ok {
			return errLength
		}
		o.Began = int64(min(n, math.MaxInt64))
	}
	return nil
}

func decodeProtoinfo(b []byte, o *flow.Observation) error {
	typ, tcp, _, err := nlmsg.Attribute(b)
	if err != nil || typ != ctaProtoinfoTCP {
		return err
	}
	for len(tcp) > 0 {
		typ, p, rest, err := nlmsg.Attribute(tcp)
		if err != nil {
			return err
		}
		tcp = rest
		if typ == ctaProtoinfoTCPState {
			if len(p) != 1 {
				return errLength
			}
			o.TCPState = p[0]
		}
	}
	return nil
}
