package agent

import (
	"net/netip"
	"time"

	"github.com/flowaudit/flowaudit/agent/ipvs"
	"github.com/flowaudit/flowaudit/flow"
)

// table merges observations into flows. One goroutine owns it.
type table struct {
	tableOptions
	conns    *connTable
	window   *window
	attempts attempts
	early    []windowKey         // first denials that wait for the next early batch
	denied   map[windowKey]int64 // denied keys and when they were last seen (Unix nanoseconds)
	dumping  bool
	dump     uint32                 // number of the running or last dump
	asked    int64                  // when that began (Unix nanoseconds)
	complete int64                  // when the last complete dump began: what is new since then is younger; anyTime if nothing is certain
	whole    bool                   // a dump was complete
	ended    map[connKey]uint32     // connections that ended while a dump runs, by CTA_ID
	missed   map[connKey]missedConn // connections that dumps did not name any more: their end may still be told
	known    map[connKey]savedConn  // counted by an earlier run of the agent; until the first dump ends
	refused  uint64                 // connections that did not fit since the last window
	stats    tableStats

	allowances  map[windowKey]*allowance
	tracked     map[windowKey]struct{} // pairs that conntrack counted in the last window, as if allowed
	plugins     bool                   // a plugin has told of an allowance
	hints       hints
	unconfirmed unconfirmed
	causes      causes
}

type tableOptions struct {
	Names      namer
	LocalNode  string        // the node whose pods are local
	Unanswered time.Duration // how long a connection may wait for a reply
	MaxConns   int
	MaxFlows   int            // open flows; beyond it the window closes early
	PerConn    bool           // one flow a connection
	Confirmed  bool           // a confirmed connection to a local pod has passed its policy
	Labels     bool           // the network plugin labels connections that it lets through
	Conntrack  bool           // conntrack is read, so logged allowances are not counted again
	Witness    bool           // a network plugin's log is read
	Tap        bool           // the tap is read
	TapPods    []netip.Prefix // what it is limited to; empty for everything
	Causes     causes
	// IPVS are the services that IPVS serves without connection tracking; nil
	// if there can be none.
	IPVS func() *ipvs.Services
	// Rule says what a rule that drops packets stands for; ReasonNone for a
	// policy, or if it is not known.
	Rule func(flow.PolicyRef) flow.Reason
}

type tableStats struct {
	observations uint64
	fragments    uint64
	contradicted uint64 // logged refusals of what conntrack confirmed
	untracked    uint64
}

// denialMemory is how long a denied key is remembered: its first denial is
// reported at once, repeats within this time wait for the window.
const denialMemory = 5 * time.Minute

// maxDenied bounds how many denied keys are remembered. During a wider scan
// the rest waits for the window, as repeats do.
const maxDenied = 1 << 16

func newTable(o tableOptions) *table {
	return &table{
		tableOptions: o,
		conns:        newConnTable(o.MaxConns),
		complete:     anyTime,
		window:       newWindow(o.LocalNode, o.Names),
		attempts:     newAttempts(),
		denied:       make(map[windowKey]int64),
		ended:        make(map[connKey]uint32),
		missed:       make(map[connKey]missedConn),
		allowances:   make(map[windowKey]*allowance),
		tracked:      make(map[windowKey]struct{}),
		hints:        make(hints),
		unconfirmed:  newUnconfirmed(),
		causes:       newCauses(o.Causes),
	}
}

// observe takes one observation in. It allocates only when something is seen
// for the first time.
func (t *table) observe(o *flow.Observation) {
	t.stats.observations++
	switch o.Event {
	case flow.EventPacket:
		t.packet(o)
	case flow.EventNew, flow.EventUpdate:
		t.connection(o)
	case flow.EventDump:
		t.dumped(o)
	case flow.EventDestroy:
		t.destroyed(o)
	case flow.EventDumpBegin:
		t.dumping = true
		t.dump++
		t.asked = o.Time
	case flow.EventDumpEnd:
		t.dumpEnd(o.Time)
	case flow.EventAttempt:
		t.attempt(o)
	case flow.EventUntracked:
		t.untracked(o)
	case flow.EventDropped:
		t.dropped(o)
	case flow.EventFound, flow.EventAbsent, flow.EventUnanswered:
		t.answered(o)
	case flow.EventLost:
		t.unconfirmed.lost = max(t.unconfirmed.lost, o.Time)
	}
}

// packet takes a logged packet in.
func (t *table) packet(o *flow.Observation) {
	if o.Fragment {
		// It names no ports; the first fragment was logged too.
		t.stats.fragments++
		return
	}
	k := windowKey{
		src: o.Original.Src, dst: o.Original.Dst, port: flowPort(o, o.Original.DstPort),
		protocol: o.Protocol, verdict: o.Verdict,
	}
	if t.PerConn {
		k.srcPort = o.Original.SrcPort
	}
	if o.Verdict == flow.VerdictDenied && t.hold(o) {
		t.hints.add(k, o)
		return
	}
	if o.Verdict == flow.VerdictUnknown {
		// The record that decides comes by itself.
		t.hints.add(k, o)
		return
	}
	if o.Verdict == flow.VerdictAllowed && o.Source&flow.Plugins != 0 {
		t.plugins = true
		t.permitted(&k, o)
		return
	}
	f, fresh := t.window.flow(&k, o.Time, o.Time)
	if fresh {
		f.Reason = flow.ReasonLogged
		if o.Verdict == flow.VerdictDenied {
			t.firstDenial(&k, o.Time)
		}
	}
	f.Sources |= o.Source
	f.TCPFlags |= o.TCPFlags
	f.hint(o.Told)
	f.hint(t.hints.take(k, o.Original.SrcPort))
	if o.Verdict == flow.VerdictAllowed && t.Conntrack {
		return // conntrack counts it
	}
	t.countPacket(f, o)
	if t.attempts.first(&k, o.Original.SrcPort, o.Sequence, o.Time) {
		f.Connections++
	}
	if f.SourcePort == 0 {
		f.SourcePort = o.Original.SrcPort
	}
}

// countPacket adds a logged packet.
func (t *table) countPacket(f *openFlow, o *flow.Observation) {
	if !f.counts(o.Source) {
		return
	}
	n := uint64(1)
	if o.Told != nil {
		n = max(n, o.Told.Packets)
	}
	f.Sent.Packets += n
	f.Sent.Bytes += n * uint64(o.Size)
	f.Counted = f.Counted || o.Size > 0 // some logs tell no length: absent, not 0
}

func (t *table) firstDenial(k *windowKey, at int64) {
	_, known := t.denied[*k]
	if !known {
		if len(t.denied) >= maxDenied {
			return
		}
		t.early = append(t.early, *k)
	}
	t.denied[*k] = at
}

// connection takes in that a tracked connection is new or has changed.
func (t *table) connection(o *flow.Observation) {
	k := keyOf(o)
	c := t.conns.get(&k)
	if c != nil && c.id != o.ID {
		// The tuple is used again, and the end of the last one was not seen.
		t.finish(&k, c, o.Time)
		t.conns.remove(&k, c)
		c = nil
	}
	if c == nil {
		if c = t.begin(&k, o); c == nil {
			return
		}
	}
	if o.Event == flow.EventNew && c.found {
		// It began after this agent did, and the dump was only faster.
		c.sent, c.received, c.found, c.earliest = flow.Counters{}, flow.Counters{}, false, c.start
	}
	if c.earliest < c.start && c.lives(o) {
		c.earliest = c.start
	}
	c.dump, c.held = t.dump, false
	t.confirmed(&k, c, o.Time)
	t.learn(&k, c, o)
}

// begin adds a connection to the table.
func (t *table) begin(k *connKey, o *flow.Observation) *conn {
	c := t.conns.add(k)
	if c == nil {
		t.refused++
		t.complete, t.asked = anyTime, anyTime // what is found later may be it
		return nil
	}
	c.id, c.start, c.earliest = o.ID, o.Time, t.earliest(o)
	c.dst, c.dstPort = o.Reply.Src.As16(), flowPort(o, o.Reply.SrcPort)
	c.translated = k.src
	if o.Reply.Dst != o.Original.Src {
		c.translated = o.Reply.Dst.As16()
	}
	if s, ok := t.known[*k]; ok && s.ID == o.ID {
		c.start, c.earliest, c.state, c.verdict, c.reason = s.Start, s.Earliest, s.State, s.Verdict, s.Reason
		c.sent, c.received = s.Sent, s.Received
	}
	return c
}

// anyTime is before whatever may be asked about: the year 2000.
const anyTime = 946_684_800 * int64(time.Second)

// earliest is when a connection that was not known may have begun. Whoever had
// an address before may have begun it: his connections stay in the kernel's
// table for days where nobody closed them.
func (t *table) earliest(o *flow.Observation) int64 {
	switch {
	case o.Event == flow.EventNew:
		return o.Time
	case o.Began != 0:
		return max(anyTime, min(o.Began, o.Time))
	}
	return t.complete
}

// lives reports whether a dump shows that both ends of a TCP connection sent
// since the one before: those who have the addresses now have had them since.
func (c *conn) lives(o *flow.Observation) bool {
	return o.TCPState == flow.TCPStateEstablished && o.Counted && since(o.Sent, c.sent).Packets > 0 && since(o.Received, c.received).Packets > 0
}

// learn looks for a verdict in what an event says, and takes its counters.
func (t *table) learn(k *connKey, c *conn, o *flow.Observation) {
	replied := o.Status&flow.StatusSeenReply != 0
	switch {
	case replied && (c.state == connPending || c.verdict == flow.VerdictUnanswered):
		// A reply that comes after the grace time makes the connection an
		// allowed one after all, and it counts as such.
		t.count(k, c, flow.VerdictAllowed, flow.ReasonReply, o.Time)
	case replied && (c.reason == flow.ReasonConfirmed || c.reason == flow.ReasonLabelled):
		f, _ := t.flowOf(k, c, flow.VerdictAllowed, o.Time)
		c.reason = flow.ReasonReply
		if f.Reason != flow.ReasonContradicted {
			f.Reason = flow.ReasonReply
		}
	case c.state == connPending && t.Labels && o.Permitted && t.window.localPod(addr(c.dst), c.start):
		t.count(k, c, flow.VerdictAllowed, flow.ReasonLabelled, o.Time)
	case c.state == connPending && t.Confirmed && t.window.localPod(addr(c.dst), c.start):
		t.count(k, c, flow.VerdictAllowed, flow.ReasonConfirmed, o.Time)
	}
	t.takeCounters(k, c, o)
}

// count adds the connection to the flow of its verdict, once.
func (t *table) count(k *connKey, c *conn, v flow.Verdict, r flow.Reason, at int64) {
	f, fresh := t.flowOf(k, c, v, at)
	f.start = min(f.start, c.start)
	f.Connections++
	if c.contradicted {
		r = flow.ReasonContradicted
		f.Sources |= flow.SourceNFLOG
	}
	if fresh || f.Reason == flow.ReasonNone || r == flow.ReasonContradicted || r == flow.ReasonReply && f.Reason != flow.ReasonContradicted {
		f.Reason = r
	}
	if f.SourcePort == 0 && k.protocol.HasPorts() {
		f.SourcePort = k.srcPort
	}
	c.state, c.verdict, c.reason = connCounted, v, r
}

// flowOf finds the open flow of a connection.
func (t *table) flowOf(k *connKey, c *conn, v flow.Verdict, at int64) (f *openFlow, fresh bool) {
	wk := windowKey{src: addr(k.src), dst: addr(c.dst), port: c.dstPort, protocol: k.protocol, verdict: v}
	if t.PerConn {
		wk.srcPort = k.srcPort
	}
	f, fresh = t.window.flow(&wk, at, c.earliest)
	f.to = max(f.to, c.start)
	if fresh {
		f.Reason = c.reason
	}
	f.Sources |= flow.SourceConntrack
	if f.Service == nil && (k.dst != c.dst || k.protocol.HasPorts() && k.dstPort != c.dstPort) {
		f.Service = &flow.Service{Addr: addr(k.dst), Port: k.dstPort}
	}
	if c.translated != k.src {
		f.TranslatedSrc = addr(c.translated)
	}
	return f, fresh
}

// takeCounters adds what a connection has moved since its last report. A
// pending connection's counters wait for its verdict.
func (t *table) takeCounters(k *connKey, c *conn, o *flow.Observation) {
	if !o.Counted {
		return
	}
	if c.state != connCounted {
		return
	}
	sent, received := since(o.Sent, c.sent), since(o.Received, c.received)
	if sent.Packets == 0 && received.Packets == 0 {
		return
	}
	f, _ := t.flowOf(k, c, c.verdict, o.Time)
	f.Counted = true
	f.Sent.Packets += sent.Packets
	f.Sent.Bytes += sent.Bytes
	f.Received.Packets += received.Packets
	f.Received.Bytes += received.Bytes
	c.sent, c.received = o.Sent, o.Received
}

// since is what a counter has grown by. A counter that was reset
// (conntrack -z) starts again from zero.
func since(now, before flow.Counters) flow.Counters {
	if now.Packets < before.Packets || now.Bytes < before.Bytes {
		return now
	}
	return flow.Counters{Packets: now.Packets - before.Packets, Bytes: now.Bytes - before.Bytes}
}

// destroyed takes in that a connection ended.
func (t *table) destroyed(o *flow.Observation) {
	k := keyOf(o)
	if t.dumping {
		t.ended[k] = o.ID
	}
	c := t.conns.get(&k)
	if c != nil && c.id != o.ID {
		return // the end of an earlier use of the tuple, told late
	}
	if m, ok := t.missed[k]; ok && m.id == o.ID && c == nil {
		delete(t.missed, k)
		return // it was counted when it was missed
	}
	if c == nil {
		// Its beginning was lost; the end says all that a flow needs.
		if c = t.begin(&k, o); c == nil {
			return
		}
	}
	t.confirmed(&k, c, o.Time)
	t.learn(&k, c, o)
	if c.state == connPending {
		c.reason = flow.ReasonNoReply
		if o.Protocol == flow.TCP && o.TCPState == flow.TCPStateClose {
			c.reason = flow.ReasonReset
		}
		t.unanswered(&k, c, c.start)
		t.takeCounters(&k, c, o)
	}
	t.gone(&k, c, o.Time)
	t.conns.remove(&k, c)
}
