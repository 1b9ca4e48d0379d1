package agent

import (
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// attempt takes in a packet that the tap has logged.
func (t *table) attempt(o *flow.Observation) {
	if t.bypasses(o) {
		return
	}
	u := &t.unconfirmed
	k := keyOf(o)
	if c := t.live(&k); c != nil && !c.matched {
		c.matched = true
		return // confirmed before this was read
	}
	if s, ok := u.seen(&k, true); ok && !s.used {
		return
	}
	w, waits := u.waiting[k]
	if !u.wait(&w, waits, o) {
		return
	}
	w.sources |= flow.SourceTap
	w.tapped.Packets++
	w.tapped.Bytes += uint64(o.Size)
	w.in, w.mark = o.InDev, o.Mark
	if o.Status&flow.StatusDstNAT == 0 {
		u.remember(&k)
	} else {
		w.nat = true
		if before, ok := u.origin(&k, o.Time); ok {
			w.origin, w.service, w.servicePort = true, before.dst, before.dstPort
		}
	}
	u.waiting[k] = w
}

// live finds the connection that a packet shows, if it was not translated.
func (t *table) live(k *connKey) *conn {
	if k.zone != flow.ZoneNotDefault {
		return t.conns.get(k)
	}
	for _, z := range t.unconfirmed.zones {
		exact := *k
		exact.zone = z
		if c := t.conns.get(&exact); c != nil {
			return c
		}
	}
	return nil
}

// hold keeps a logged refusal back until conntrack could have contradicted it.
// It returns false where it stands: conntrack is not read, there is no room, or
// the packet belongs to a connection that is older than it.
func (t *table) hold(o *flow.Observation) bool {
	// Where a plugin enforces elsewhere than in netfilter, that conntrack
	// confirmed a packet says nothing.
	if !t.Witness || o.Source&(flow.SourceNFLOG|flow.SourceKernelLog) == 0 || o.Protocol == flow.TCP && o.TCPFlags&(flow.TCPSyn|flow.TCPAck) != flow.TCPSyn {
		return false
	}
	k := keyOf(o)
	if len(t.unconfirmed.zones) > 0 {
		other := k
		other.zone = flow.ZoneNotDefault
		if _, ok := t.unconfirmed.waiting[other]; ok {
			k = other // a plugin's record does not tell the zone
		}
	}
	w, waits := t.unconfirmed.waiting[k]
	if !waits {
		if decided, held := t.contradictedAlready(&k, o); decided {
			return held
		}
	}
	if !t.unconfirmed.wait(&w, waits, o) {
		return false
	}
	w.sources |= o.Source
	w.logged.Packets++
	w.logged.Bytes += uint64(o.Size)
	t.unconfirmed.waiting[k] = w
	return true
}

// contradictedAlready looks whether the connection of a logged refusal is
// known, which then decides. held says that it contradicts the refusal.
func (t *table) contradictedAlready(k *connKey, o *flow.Observation) (decided, held bool) {
	if c := t.live(k); c != nil {
		return true, t.confirmedSince(k, c, o)
	}
	s, ok := t.unconfirmed.seen(k, false)
	if !ok {
		return false, false
	}
	if s.at < sentBy(o) {
		return true, false
	}
	t.stats.contradicted++
	if c := t.conns.get(&s.conn); c != nil {
		t.contradicted(&s.conn, c, o.Time)
	}
	return true, true
}

// confirmedSince contradicts a refusal where the connection was confirmed
// after its packet was sent.
func (t *table) confirmedSince(k *connKey, c *conn, o *flow.Observation) bool {
	if c.start < sentBy(o) {
		return false
	}
	t.stats.contradicted++
	t.contradicted(k, c, o.Time)
	return true
}

// sentBy is a moment at which a logged packet had been sent at the earliest.
// The kernel stamps packets up to the forward hook; for others there is only
// the time at which the record was read.
func sentBy(o *flow.Observation) int64 {
	const lastStamped = 2 // NF_INET_FORWARD
	if o.Hook <= lastStamped {
		return o.Time
	}
	return o.Time - int64(150*time.Millisecond)
}

// confirmed takes in that conntrack knows a connection: its packets passed.
func (t *table) confirmed(k *connKey, c *conn, at int64) {
	if !t.Tap && !t.Witness {
		return
	}
	translated := c.dst != k.dst || k.protocol.HasPorts() && c.dstPort != k.dstPort
	if c.matched && (c.matchedNAT || !translated) {
		return
	}
	u := &t.unconfirmed
	logged := *k
	logged.zone = u.zone(k.zone)
	if w, ok := u.take(&logged); ok {
		c.matched = true
		t.passed(k, c, &w, at)
	}
	if !translated || c.matchedNAT {
		return
	}
	logged.dst = c.dst
	if k.protocol.HasPorts() {
		logged.dstPort = c.dstPort
	}
	if w, ok := u.take(&logged); ok {
		c.matchedNAT, c.matched = true, c.matched || w.origin
		t.passed(k, c, &w, at)
	} else if t.watched(k, c) {
		c.matchedNAT = true
		u.sighted(&logged, sighting{conn: *k, at: at})
	}
}

// watched reports whether a record of the connection may still come.
func (t *table) watched(k *connKey, c *conn) bool {
	return t.Witness || within(t.TapPods, addr(k.src), addr(k.dst), addr(c.dst))
}

// passed takes in that an attempt became a connection.
func (t *table) passed(k *connKey, c *conn, w *attempted, at int64) {
	if w.logged.Packets > 0 {
		t.stats.contradicted += w.logged.Packets
		t.contradicted(k, c, at)
	}
}

// contradicted marks a connection that a rule's log called refused although
// conntrack confirmed the very packet. Such a log names a rule that did not
// decide.
func (t *table) contradicted(k *connKey, c *conn, at int64) {
	c.contradicted = true
	if c.state != connCounted {
		return
	}
	c.reason = flow.ReasonContradicted
	f, _ := t.flowOf(k, c, c.verdict, at)
	f.Reason = flow.ReasonContradicted
	f.Sources |= flow.SourceNFLOG
}

// gone remembers a connection that ended, whose packet may not be read yet.
func (t *table) gone(k *connKey, c *conn, at int64) {
	unread := t.Tap && !c.matched || t.Witness && at-c.start < int64(graceTime)
	if !unread || !t.watched(k, c) {
		return
	}
	logged := *k
	logged.zone = t.unconfirmed.zone(k.zone)
	t.unconfirmed.sighted(&logged, sighting{conn: *k, at: c.start, used: c.matched})
}
