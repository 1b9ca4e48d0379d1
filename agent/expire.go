package agent

import (
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// dumped takes in a connection as a dump found it.
func (t *table) dumped(o *flow.Observation) {
	k := keyOf(o)
	if id, ok := t.ended[k]; ok && id == o.ID {
		return // it ended while the dump ran, and was taken in already
	}
	if t.conns.get(&k) == nil && !t.whole && t.foundAtStart(&k, o) {
		return
	}
	t.connection(o)
}

// foundAtStart begins a connection that is older than this agent. What it
// moved before is not of this window, and it keeps what an earlier run of the
// agent saved of it. One that may tell by the next dump whose it is, since it
// lives, is held until then.
func (t *table) foundAtStart(k *connKey, o *flow.Observation) (held bool) {
	c := t.begin(k, o)
	if c == nil {
		return false
	}
	if s, ok := t.known[*k]; ok && s.ID == o.ID {
		return false
	}
	c.sent, c.received, c.found = o.Sent, o.Received, true
	if o.Began != 0 || !o.Counted || o.TCPState != flow.TCPStateEstablished || o.Status&flow.StatusSeenReply == 0 {
		return false
	}
	c.dump, c.held = t.dump, true
	t.confirmed(k, c, o.Time)
	return true
}

// dumpEnd removes the connections that two complete dumps did not name: their
// end was lost. One dump is not enough: the event of the end may still be on
// its way, and would then be taken for a connection of its own.
func (t *table) dumpEnd(at int64) {
	t.dumping = false
	clear(t.ended)
	for k, i := range t.conns.index {
		c := t.conns.at(i)
		if t.dump-c.dump < 2 {
			continue
		}
		t.finish(&k, c, at)
		if len(t.missed) < t.MaxConns {
			t.missed[k] = missedConn{c.id, t.dump}
		}
		t.conns.remove(&k, c)
	}
	for k, m := range t.missed {
		if t.dump-m.dump > missedDumps {
			delete(t.missed, k)
		}
	}
	if !t.whole {
		t.finishKnown(at)
	}
	t.whole, t.complete = true, t.asked
}

// missedConn is a connection that is gone without its end having been told: by
// its CTA_ID, and the dump after which that was clear.
type missedConn struct{ id, dump uint32 }

// missedDumps is for how many dumps the end may still be on its way. Events
// wait in the socket's buffer while the agent gets no processor.
const missedDumps = 30

// finishKnown closes the books on connections that an earlier run saved, that
// were still waiting for a reply, and that are gone.
func (t *table) finishKnown(at int64) {
	for k, s := range t.known {
		if s.State == connCounted || t.conns.get(&k) != nil {
			continue
		}
		c := conn{start: s.Start, earliest: s.Earliest, dst: s.Dst, translated: s.Translated, dstPort: s.DstPort}
		t.count(&k, &c, flow.VerdictUnknown, flow.ReasonPending, at)
	}
	t.known = nil
}

// finish counts a connection that is over and was not counted yet.
func (t *table) finish(k *connKey, c *conn, at int64) {
	if c.state == connCounted {
		return
	}
	t.unanswered(k, c, at)
}

// unanswered counts a connection that had no reply.
func (t *table) unanswered(k *connKey, c *conn, at int64) {
	if c.held {
		t.count(k, c, flow.VerdictAllowed, flow.ReasonReply, at)
		return
	}
	if t.Confirmed && t.window.localPod(addr(c.dst), c.start) {
		// The pod was not known yet when its connection was confirmed.
		t.count(k, c, flow.VerdictAllowed, flow.ReasonConfirmed, at)
		return
	}
	reason := c.reason
	if reason == flow.ReasonNone {
		reason = flow.ReasonNoReply
	}
	t.count(k, c, flow.VerdictUnanswered, reason, at)
}

// expire decides connections whose grace time is over. Looking at all of them
// once a window costs about a millisecond for a hundred thousand.
func (t *table) expire(now int64) {
	deadline := now - int64(t.Unanswered)
	for k, i := range t.conns.index {
		c := t.conns.at(i)
		if c.state == connCounted || c.start > deadline {
			continue
		}
		t.unanswered(&k, c, c.start)
	}
}

// earlyFlows gives the first denials since the last call.
func (t *table) earlyFlows() []flow.Flow {
	if len(t.early) == 0 {
		return nil
	}
	out := make([]flow.Flow, 0, len(t.early))
	for _, k := range t.early {
		out = append(out, t.window.takeKey(k)...)
	}
	t.early = t.early[:0]
	return out
}

// closeWindow ends the window at a time and gives its flows.
func (t *table) closeWindow(now time.Time) []flow.Flow {
	t.expire(now.UnixNano())
	t.settle(now.UnixNano(), false)
	t.early = t.early[:0]
	t.forgetDenials(now.UnixNano())
	return t.window.close()
}

func (t *table) forgetDenials(now int64) {
	for k, last := range t.denied {
		if now-last > int64(denialMemory) {
			delete(t.denied, k)
		}
	}
	t.attempts.age(now)
}

// full reports whether the window must close before its time.
func (t *table) full() bool { return t.window.len() >= t.MaxFlows }

// takeRefused returns how many connections did not fit since the last call.
func (t *table) takeRefused() uint64 {
	n := t.refused
	t.refused = 0
	return n
}

// pendingFlows counts what still waits as unknown, for an agent that stops and
// cannot keep its state.
func (t *table) pendingFlows(now time.Time) {
	for k, i := range t.conns.index {
		switch c := t.conns.at(i); {
		case c.state != connPending:
		case c.held:
			t.finish(&k, c, now.UnixNano())
		default:
			t.count(&k, c, flow.VerdictUnknown, flow.ReasonPending, now.UnixNano())
		}
	}
}
