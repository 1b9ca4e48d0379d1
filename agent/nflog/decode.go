package nflog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/flowaudit/flowaudit/agent/nlmsg"
	"github.com/flowaudit/flowaudit/flow"
)

// Attributes of an NFLOG message (enum nfulnl_attr_type,
// linux/netfilter/nfnetlink_log.h).
const (
	nfulaPacketHeader  = 1
	nfulaMark          = 2
	nfulaTimestamp     = 3
	nfulaIndexIn       = 4
	nfulaIndexOut      = 5
	nfulaPhysIndexIn   = 6
	nfulaPhysIndexOut  = 7
	nfulaPayload       = 9
	nfulaPrefix        = 10
	nfulaSequence      = 12
	maxPrefixes        = 4096 // interned; a rule set has few
	nanosPerMicro      = 1000
	nanosPerSecond     = 1_000_000_000
	maxTimestampSecond = 1 << 33 // beyond the year 2200: a lie
)

// errNoPayload says that a record has no packet in it: the group copies
// metadata only.
var errNoPayload = errors.New("NFULA_PAYLOAD: missing")

// decoder turns messages of one group into observations. The zero value is
// not ready; see newDecoder.
type decoder struct {
	group    Group
	grammars grammars
	policies func() []flow.PolicyRef // that the cluster has; may be nil
	prefixes map[string]prefix
}

func newDecoder(g Group) *decoder {
	return &decoder{group: g, grammars: newGrammars(), prefixes: make(map[string]prefix)}
}

// decode reads one NFULNL_MSG_PACKET, from its nfgenmsg on, into o, which must
// be empty but for Time: a record's own time stamp replaces it. It returns the
// record's sequence number, if it has one. An error names the attribute or
// header at fault.
func (d *decoder) decode(message []byte, o *flow.Observation) (seq uint32, hasSeq bool, err error) {
	_, _, rest, err := nlmsg.Family(message)
	if err != nil {
		return 0, false, fmt.Errorf("nfgenmsg: %w", err)
	}
	o.Source, o.Event, o.Group = flow.SourceNFLOG, flow.EventPacket, d.group.Number
	var packet, text []byte
	for len(rest) > 0 {
		var typ uint16
		var p []byte
		if typ, p, rest, err = nlmsg.Attribute(rest); err != nil {
			return seq, hasSeq, err
		}
		switch typ {
		case nfulaPacketHeader: // struct nfulnl_msg_packet_hdr: u16 ethertype, u8 hook, padding
			if len(p) >= 3 {
				o.Hook = p[2]
			}
		case nfulaMark:
			o.Mark, _ = nlmsg.Uint32(p)
		case nfulaTimestamp: // struct nfulnl_msg_packet_timestamp: u64 seconds, u64 microseconds
			if len(p) == 16 {
				sec, usec := binary.BigEndian.Uint64(p), binary.BigEndian.Uint64(p[8:])
				if sec < maxTimestampSecond && usec < 1_000_000 {
					o.Time = int64(sec)*nanosPerSecond + int64(usec)*nanosPerMicro
				}
			}
		case nfulaIndexIn:
			if v, ok := nlmsg.Uint32(p); ok && o.InDev == 0 {
				o.InDev = v
			}
		case nfulaIndexOut:
			if v, ok := nlmsg.Uint32(p); ok && o.OutDev == 0 {
				o.OutDev = v
			}
		case nfulaPhysIndexIn: // the veth behind a bridge says more than the bridge
			o.InDev, _ = nlmsg.Uint32(p)
		case nfulaPhysIndexOut:
			o.OutDev, _ = nlmsg.Uint32(p)
		case nfulaPayload:
			packet = p
		case nfulaPrefix:
			text = bytes.TrimRight(p, "\x00")
		case nfulaSequence:
			seq, hasSeq = nlmsg.Uint32(p)
		}
	}
	d.judge(text, o)
	if packet == nil {
		return seq, hasSeq, errNoPayload
	}
	return seq, hasSeq, decodePacket(packet, o)
}

// judge sets the verdict by the group's meaning.
func (d *decoder) judge(text []byte, o *flow.Observation) {
	switch d.group.Meaning {
	case MeaningAttempt:
		attempt(text, o)
		return
	case MeaningDenied:
		o.Verdict = flow.VerdictDenied
	case MeaningAllowed:
		o.Verdict = flow.VerdictAllowed
	}
	if len(text) == 0 && (d.group.Meaning == MeaningDenied || d.group.Meaning == MeaningAllowed) {
		return
	}
	known, ok := d.prefixes[string(text)] // no allocation: the compiler knows this form
	if !ok || known.again != 0 && o.Time >= known.again {
		known = d.learn(string(text), o.Time)
	}
	o.Prefix, o.Told = known.text, known.told
	if d.group.Meaning > MeaningAllowed || hint(known.text) {
		o.Verdict = known.verdict
	}
}

// attempt says what the tap's prefix does. It has no verdict yet.
func attempt(text []byte, o *flow.Observation) {
	o.Source, o.Event = flow.SourceTap, flow.EventAttempt
	switch string(text) {
	case AttemptInZone:
		o.Zone = flow.ZoneNotDefault
	case AttemptAfterNAT:
		o.Status = flow.StatusDstNAT
	case AttemptInZoneNAT:
		o.Zone, o.Status = flow.ZoneNotDefault, flow.StatusDstNAT
	case AttemptUntracked:
		o.Event = flow.EventUntracked
	}
}

// hint reports whether a prefix marks a record that decides nothing, also in a
// group of denials.
func hint(text string) bool { return len(text) >= len(k3sHint) && text[:len(k3sHint)] == k3sHint }
