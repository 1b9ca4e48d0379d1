package tap

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/flowaudit/flowaudit/agent/nflog"
	"github.com/flowaudit/flowaudit/agent/nlmsg"
	"github.com/flowaudit/flowaudit/flow"
)

// Attributes of a trace message (enum nft_trace_attributes,
// linux/netfilter/nf_tables.h), its types, and what a verdict consists of.
const (
	nftaTraceTable     = 1
	nftaTraceChain     = 2
	nftaTraceHandle    = 3
	nftaTraceType      = 4
	nftaTraceVerdict   = 5
	nftaTraceID        = 6
	nftaTraceNetwork   = 8
	nftaTraceTransport = 9
	nftaTracePolicy    = 16

	traceTypePolicy = 1
	traceTypeRule   = 3

	nftaVerdictCode = 1
	verdictMask     = 0xff // NF_VERDICT_MASK; NF_DROP is 0

	messageTrace = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_TRACE
)

// traceDecoder finds the rules that drop traced packets. A packet's headers
// come once in each base chain; what follows names it by a number.
type traceDecoder struct {
	packets map[uint32]flow.Observation
}

// maxFollowed bounds the packets that are followed at once.
const maxFollowed = 1024

// step is one trace message.
type step struct {
	table, chain       string
	handle             uint64
	typ, id            uint32
	code               uint32
	hasCode            bool
	policy             uint32
	network, transport []byte
}

// decode reads a message. ok says that o is a packet that a rule, or a base
// chain's policy, has dropped.
func (d *traceDecoder) decode(h nlmsg.Header, message []byte) (o flow.Observation, ok bool) {
	if h.Type != messageTrace {
		return o, false
	}
	family, _, attributes, err := nlmsg.Family(message)
	if err != nil {
		return o, false
	}
	s, err := readStep(attributes)
	if err != nil {
		return o, false
	}
	if len(s.network) > 0 {
		d.follow(&s)
	}
	dropped := s.typ == traceTypeRule && s.hasCode && s.code&verdictMask == 0 || s.typ == traceTypePolicy && s.policy == 0
	o, known := d.packets[s.id]
	if !dropped || !known {
		return o, false
	}
	delete(d.packets, s.id)
	rule := fmt.Sprintf("handle %d", s.handle)
	if s.typ == traceTypePolicy {
		rule = "policy drop"
	}
	o.Source, o.Event, o.Verdict = flow.SourceTap, flow.EventDropped, flow.VerdictDenied
	o.Told = &flow.Told{Policies: []flow.PolicyRef{{Kind: flow.KindNetfilter, Namespace: familyName(family) + " " + s.table, Name: s.chain, Rule: rule}}}
	return o, true
}

// follow keeps what a packet is, as it is in this chain: after NAT, if that was.
func (d *traceDecoder) follow(s *step) {
	o := flow.Observation{}
	if nflog.DecodeHeaders(append(s.network[:len(s.network):len(s.network)], s.transport...), &o) != nil || o.Fragment {
		return
	}
	if len(d.packets) >= maxFollowed {
		clear(d.packets)
	}
	d.packets[s.id] = o
}

// readStep reads the attributes of a message.
func readStep(b []byte) (s step, err error) {
	for len(b) > 0 {
		var typ uint16
		var p []byte
		if typ, p, b, err = nlmsg.Attribute(b); err != nil {
			return s, err
		}
		switch typ {
		case nftaTraceTable:
			s.table = text(p)
		case nftaTraceChain:
			s.chain = text(p)
		case nftaTraceHandle:
			s.handle, _ = nlmsg.Uint64(p)
		case nftaTraceType:
			s.typ, _ = nlmsg.Uint32(p)
		case nftaTraceID:
			if len(p) == 4 { // in host order
				s.id = binary.NativeEndian.Uint32(p)
			}
		case nftaTraceNetwork:
			s.network = p
		case nftaTraceTransport:
			s.transport = p
		case nftaTracePolicy:
			s.policy, _ = nlmsg.Uint32(p)
		case nftaTraceVerdict:
			if s.code, s.hasCode, err = readVerdict(p); err != nil {
				return s, err
			}
		}
	}
	return s, nil
}

func readVerdict(b []byte) (code uint32, ok bool, err error) {
	for len(b) > 0 {
		var typ uint16
		var p []byte
		if typ, p, b, err = nlmsg.Attribute(b); err != nil {
			return 0, false, err
		}
		if typ == nftaVerdictCode {
			code, ok = nlmsg.Uint32(p)
		}
	}
	return code, ok, nil
}

// text is a string attribute without its end.
func text(p []byte) string {
	for i, c := range p {
		if c == 0 {
			return string(p[:i])
		}
	}
	return string(p)
}

// familyName is how nft(8) calls a family.
func familyName(family uint8) string {
	switch family {
	case unix.NFPROTO_INET:
		return "inet"
	case unix.NFPROTO_IPV4:
		return "ip"
	case unix.NFPROTO_IPV6:
		return "ip6"
	case unix.NFPROTO_BRIDGE:
		return "bridge"
	case unix.NFPROTO_NETDEV:
		return "netdev"
	}
	return fmt.Sprint(family)
}
