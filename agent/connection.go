package agent

import (
	"net/netip"

	"github.com/flowaudit/flowaudit/flow"
)

// connKey names a live connection: the original tuple and its zone. CTA_ID
// alone would not do, it repeats between connections.
type connKey struct {
	src, dst         [16]byte
	srcPort, dstPort uint16
	zone             uint16
	protocol         flow.Protocol
}

func keyOf(o *flow.Observation) connKey {
	return connKey{
		src: o.Original.Src.As16(), dst: o.Original.Dst.As16(),
		srcPort: connSrcPort(o), dstPort: o.Original.DstPort,
		zone: o.Zone, protocol: o.Protocol,
	}
}

// connSrcPort tells concurrent pings apart where there is no port.
func connSrcPort(o *flow.Observation) uint16 {
	if o.Protocol.IsICMP() {
		return o.ICMPID
	}
	return o.Original.SrcPort
}

// connState is how far a connection's verdict is known.
type connState uint8

const (
	connPending connState = iota // tracked, no reply yet
	connCounted                  // its verdict is known and it was counted in a flow
)

// conn is one live connection. It holds no pointer, so that the garbage
// collector never looks at a hundred thousand of them.
type conn struct {
	start      int64    // since when it is known; Unix nanoseconds
	earliest   int64    // when it may have begun; start where its beginning was told
	dst        [16]byte // after DNAT
	translated [16]byte // source after SNAT; equal to the key's src if it was not
	sent       flow.Counters
	received   flow.Counters // counters that flows already contain
	id         uint32        // CTA_ID
	slot       uint32        // where the table holds it
	dump       uint32        // the last dump that named it, or that ran when an event did
	dstPort    uint16        // after DNAT; ICMP type and code
	state      connState
	verdict    flow.Verdict // of a counted connection
	reason     flow.Reason  // why it has that verdict
	found      bool         // the first dump told of it before an event did
	held       bool         // it has had a reply, and is counted when it is clear whose it is
	matched    bool         // the tap's record of its first packet was read
	matchedNAT bool         // so was the one after NAT, or the connection is remembered for it
	// contradicted: a rule's log called a packet of it refused, before it was confirmed.
	contradicted bool
}

// connTable keeps live connections in chunks that never move: growing costs
// one chunk, and memory follows the number of connections closely.
type connTable struct {
	index  map[connKey]uint32
	chunks [][]conn
	free   []uint32
	max    int
}

const chunkSize = 4096

func newConnTable(maxConns int) *connTable {
	return &connTable{index: make(map[connKey]uint32), max: maxConns}
}

func (t *connTable) len() int { return len(t.index) }

func (t *connTable) at(i uint32) *conn { return &t.chunks[i/chunkSize][i%chunkSize] }

func (t *connTable) get(k *connKey) *conn {
	i, ok := t.index[*k]
	if !ok {
		return nil
	}
	return t.at(i)
}

// add makes room for a connection; nil if the table is full.
func (t *connTable) add(k *connKey) *conn {
	if len(t.index) >= t.max {
		return nil
	}
	if len(t.free) == 0 {
		base := uint32(len(t.chunks) * chunkSize)
		t.chunks = append(t.chunks, make([]conn, chunkSize))
		for i := range uint32(chunkSize) {
			t.free = append(t.free, base+chunkSize-1-i)
		}
	}
	i := t.free[len(t.free)-1]
	t.free = t.free[:len(t.free)-1]
	t.index[*k] = i
	c := t.at(i)
	*c = conn{slot: i}
	return c
}

// remove takes a connection that is in the table out of it.
func (t *connTable) remove(k *connKey, c *conn) {
	delete(t.index, *k)
	t.free = append(t.free, c.slot)
}

// addr gives an address back as netip has it.
func addr(b [16]byte) netip.Addr { return netip.AddrFrom16(b).Unmap() }

// flowPort is the port that a flow's key holds: ICMP has its type and code there.
func flowPort(o *flow.Observation, port uint16) uint16 {
	if o.Protocol.IsICMP() {
		return flow.ICMPPort(o.ICMPType, o.ICMPCode)
	}
	return port
}
