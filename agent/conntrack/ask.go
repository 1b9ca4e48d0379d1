package conntrack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/flowaudit/flowaudit/agent/nlmsg"
	"github.com/flowaudit/flowaudit/flow"
)

// Question asks whether a connection is tracked.
type Question struct {
	ID       uint32     // names the question; not 0
	Original flow.Tuple // ICMP: no ports
	Protocol flow.Protocol
	Zone     uint16
	ICMPType uint8
	ICMPCode uint8
	ICMPID   uint16
}

// maxQuestions go to the kernel with one system call.
const maxQuestions = 64

// Ask takes questions. Each is answered by an Observation with its ID, an
// EventFound, EventAbsent or EventUnanswered, that comes after all events of
// before the answer: it comes through the events' own socket. Ask never waits;
// it returns false when earlier questions are not sent yet.
func (s *Source) Ask(questions []Question) bool {
	select {
	case s.asked <- questions:
		return true
	default:
		return false
	}
}

// ask sends questions until ctx ends.
func (s *Source) ask(ctx context.Context) error {
	for {
		var questions []Question
		select {
		case <-ctx.Done():
			return nil
		case questions = <-s.asked:
		}
		for len(questions) > 0 {
			n := min(len(questions), maxQuestions)
			err := s.send(questions[:n])
			if errors.Is(err, nlmsg.ErrStopped) {
				return nil
			}
			if err != nil {
				return err
			}
			questions = questions[n:]
		}
	}
}

func (s *Source) send(questions []Question) error {
	var b []byte
	for i := range questions {
		m, err := questions[i].message()
		if err != nil {
			return fmt.Errorf("encode a question to conntrack: %w", err)
		}
		b = append(b, m...)
	}
	if err := s.events.SendRaw(b); err != nil && !errors.Is(err, unix.ENOBUFS) { // no answer is an answer
		return fmt.Errorf("ask conntrack: %w", err)
	}
	return nil
}

// message is an IPCTNL_MSG_CT_GET. Whether the connection is there, the
// acknowledgement tells; the socket's filter may drop the connection itself.
func (q *Question) message() ([]byte, error) {
	family, ip, protocol := uint8(unix.AF_INET), uint16(ctaIPv4Src), q.protocol()
	if q.Original.Src.Is6() {
		family, ip = unix.AF_INET6, ctaIPv6Src
	}
	e := netlink.NewAttributeEncoder()
	e.Nested(ctaTupleOrig, func(e *netlink.AttributeEncoder) error {
		e.Nested(ctaTupleIP, func(e *netlink.AttributeEncoder) error {
			e.Bytes(ip, q.Original.Src.AsSlice())
			e.Bytes(ip+1, q.Original.Dst.AsSlice()) // CTA_IP_V4_DST, CTA_IP_V6_DST
			return nil
		})
		e.Nested(ctaTupleProto, protocol)
		return nil
	})
	e.Bytes(ctaZone, binary.BigEndian.AppendUint16(nil, q.Zone))
	attributes, err := e.Encode()
	if err != nil {
		return nil, err
	}
	m := netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(getMessage), Flags: netlink.Request | netlink.Acknowledge, Sequence: q.ID},
		Data:   append([]byte{family, unix.NFNETLINK_V0, 0, 0}, attributes...),
	}
	m.Header.Length = uint32(unix.NLMSG_HDRLEN + len(m.Data))
	return m.MarshalBinary()
}

func (q *Question) protocol() func(*netlink.AttributeEncoder) error {
	return func(e *netlink.AttributeEncoder) error {
		e.Uint8(ctaProtoNum, uint8(q.Protocol))
		id, typ, code := uint16(ctaProtoICMPID), uint16(ctaProtoICMPType), uint16(ctaProtoICMPCode)
		switch q.Protocol {
		case flow.ICMPv6:
			id, typ, code = ctaProtoICMPv6ID, ctaProtoICMPv6Type, ctaProtoICMPv6Code
			fallthrough
		case flow.ICMP:
			e.Bytes(id, binary.BigEndian.AppendUint16(nil, q.ICMPID))
			e.Uint8(typ, q.ICMPType)
			e.Uint8(code, q.ICMPCode)
		default:
			e.Bytes(ctaProtoSrcPort, binary.BigEndian.AppendUint16(nil, q.Original.SrcPort))
			e.Bytes(ctaProtoDstPort, binary.BigEndian.AppendUint16(nil, q.Original.DstPort))
		}
		return nil
	}
}

// answer reads the acknowledgement of a question.
func (s *Source) answer(h nlmsg.Header, payload []byte, at int64, out []flow.Observation) []flow.Observation {
	o := flow.Observation{Source: flow.SourceConntrack, Time: at, ID: h.Sequence, Event: flow.EventFound}
	if err := errorOf(payload); errors.Is(err, unix.ENOENT) {
		o.Event = flow.EventAbsent
	} else if err != nil {
		o.Event = flow.EventUnanswered
		if s.unanswered.Add(1) == 1 {
			s.o.Logger.Warn("conntrack does not say whether a connection is tracked, such attempts are unknown", "error", err)
		}
	}
	return append(s.room(out), o)
}
