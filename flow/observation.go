package flow

import "net/netip"

// Event says what an Observation reports.
type Event uint8

// The events.
const (
	EventUnknown    Event = iota
	EventPacket           // one logged packet
	EventNew              // conntrack confirmed a connection
	EventUpdate           // a tracked connection changed
	EventDestroy          // a tracked connection ended
	EventDump             // a tracked connection as found by a dump
	EventDumpBegin        // a dump starts; only Time and Zone are set
	EventDumpEnd          // a dump is complete: what it did not name is gone
	EventLost             // conntrack events before this moment were lost; only Time is set
	EventFound            // a connection that was asked for is tracked; ID names the question
	EventAbsent           // it is not; every event from before the answer was told before it
	EventUnanswered       // the kernel could not say
	EventAttempt          // the tap logged a packet of a connection that conntrack has not confirmed yet
	EventUntracked        // the tap logged a packet that bypasses connection tracking
	EventDropped          // a rule dropped a packet that was traced; Told names it
)

// Bits of a conntrack entry's status (enum ip_conntrack_status,
// linux/netfilter/nf_conntrack_common.h).
const (
	StatusSeenReply = 1 << 1 // IPS_SEEN_REPLY
	StatusAssured   = 1 << 2 // IPS_ASSURED
	StatusConfirmed = 1 << 3 // IPS_CONFIRMED
	StatusSrcNAT    = 1 << 4 // IPS_SRC_NAT
	StatusDstNAT    = 1 << 5 // IPS_DST_NAT
)

// ZoneNotDefault stands for any of conntrack's zones but 0.
const ZoneNotDefault = 0xffff

// Conntrack's TCP states (enum tcp_conntrack, linux/netfilter/nf_conntrack_tcp.h)
// that say something about a verdict.
const (
	TCPStateSynSent     = 1
	TCPStateSynRecv     = 2
	TCPStateEstablished = 3
	TCPStateClose       = 8
)

// Tuple is one direction of a connection. Ports are in host order and 0 where
// the protocol has none; IPv4-mapped addresses are unmapped.
type Tuple struct {
	Src, Dst         netip.Addr
	SrcPort, DstPort uint16
}

// Counters counts one direction.
type Counters struct {
	Packets, Bytes uint64
}

// Observation is what one source saw of one packet or of one connection. It
// owns no memory but the interned Prefix and Told, so that slices of them are
// reused.
type Observation struct {
	Time     int64 // Unix nanoseconds
	Source   Source
	Event    Event
	Verdict  Verdict // a packet's verdict as its group or prefix tells it; unknown from conntrack
	Protocol Protocol
	TCPFlags uint8 // of a packet
	TCPState uint8 // of a connection; enum tcp_conntrack, 0 if not told
	ICMPType uint8
	ICMPCode uint8
	ICMPID   uint16 // identifier of an echo request
	Hook     uint8  // NF_INET_* of a packet
	Counted  bool   // Sent and Received are told (nf_conntrack_acct was on)
	// Permitted: a connection has the label by which kube-network-policies marks
	// those that it let through.
	Permitted bool
	Fragment  bool   // a later fragment: addresses and protocol only
	Zone      uint16 // conntrack zone; ZoneNotDefault of a packet of which no more is known
	Group     uint16 // NFLOG group of a packet
	Mark      uint32
	ID        uint32 // CTA_ID, host order of the raw value
	Status    uint32 // IPS_* bits of a connection; StatusSeenReply also of what a plugin tells
	InDev     uint32 // interface index, 0 if none
	OutDev    uint32
	Size      uint32 // length of a packet by its IP header
	Sequence  uint32 // TCP sequence number of a SYN, the same when it is sent again; 0 if not told

	Original Tuple // the packet's own, or CTA_TUPLE_ORIG
	Reply    Tuple // CTA_TUPLE_REPLY; zero for a packet

	Began int64 // when the connection began (CTA_TIMESTAMP_START), Unix nanoseconds; 0 if not told

	Sent     Counters // CTA_COUNTERS_ORIG
	Received Counters // CTA_COUNTERS_REPLY

	Prefix string // NFULA_PREFIX
	Told   *Told  // what the network plugin says beyond the tuple; nil if nothing
}

// Told is what a network plugin says of a packet beyond its tuple: a hint where
// we know better, the only word where we do not. It is never changed after it
// was made, so that observations share it.
type Told struct {
	Direction Direction   // whose policy decided; unknown if the plugin does not say
	Policies  []PolicyRef // that decided
	// Source and Destination are the ends as the plugin names them; nil if it
	// does not.
	Source, Destination *Endpoint
	Packets             uint64 // that the record stands for; 0 means one
}
