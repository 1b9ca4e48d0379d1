package agent

import (
	"cmp"
	"time"

	"github.com/flowaudit/flowaudit/agent/conntrack"
	"github.com/flowaudit/flowaudit/flow"
)

const (
	// answerTime bounds how long an answer, or a socket to ask through, may take.
	answerTime = 5 * time.Second
	// maxQuestions bounds what is asked at once.
	maxQuestions = 8192
)

// look decides what has waited long enough, and gives what conntrack must be
// asked for first. It costs a few milliseconds for a full map.
func (t *table) look(now int64) (questions []conntrack.Question) {
	u := &t.unconfirmed
	u.age(now)
	t.causes.look(u, now)
	for k, w := range u.waiting {
		waited := now - w.first
		switch {
		case w.logged.Packets > 0:
			if waited >= int64(holdTime) {
				delete(u.waiting, k)
				t.refuse(&k, &w, flow.VerdictDenied, flow.ReasonLogged)
			}
		case w.question != 0 && now-w.asked >= int64(answerTime), w.question == 0 && waited >= int64(graceTime+answerTime):
			t.unclear(&k, &w)
		case w.question == 0 && waited >= int64(graceTime) && waited >= t.causes.grace(&k) && len(questions) < maxQuestions:
			questions = u.ask(questions, &k, &w, now)
		}
	}
	return questions
}

// ask adds the questions about an attempt: one, or one for each zone that it
// may be in.
func (u *unconfirmed) ask(questions []conntrack.Question, k *connKey, w *attempted, now int64) []conntrack.Question {
	q := conntrack.Question{
		Protocol: k.protocol, ICMPID: k.srcPort, ICMPType: uint8(w.icmp >> 8), ICMPCode: uint8(w.icmp),
		Original: flow.Tuple{Src: addr(k.src), Dst: addr(k.dst), SrcPort: k.srcPort, DstPort: k.dstPort},
	}
	switch {
	case w.origin:
		q.Original.Dst, q.Original.DstPort = addr(w.service), w.servicePort
	case w.nat && k.protocol.HasPorts(): // the original is not known; a reply's tuple finds it too
		q.Original = flow.Tuple{Src: q.Original.Dst, Dst: q.Original.Src, SrcPort: k.dstPort, DstPort: k.srcPort}
	}
	zones := []uint16{0}
	if k.zone != 0 && len(u.zones) > 0 {
		zones = u.zones
	}
	w.question, w.open, w.asked = u.question+1, uint32(len(zones)), now
	if w.question == 0 { // the numbers are used up, and 0 is none of them
		w.question = 1
	}
	for i, z := range zones {
		q.ID, q.Zone = w.question+uint32(i), z
		u.question = q.ID
		u.asked[q.ID] = *k
		questions = append(questions, q)
	}
	u.waiting[*k] = *w
	return questions
}

// unasked takes questions back that nobody could be asked.
func (t *table) unasked(questions []conntrack.Question) {
	u := &t.unconfirmed
	for _, q := range questions {
		k := u.asked[q.ID]
		delete(u.asked, q.ID)
		if w, ok := u.waiting[k]; ok {
			w.question, w.open = 0, 0
			u.waiting[k] = w
		}
	}
}

// answered takes conntrack's answer in. All events from before it were taken
// in already: an attempt that still waits was not confirmed by then.
func (t *table) answered(o *flow.Observation) {
	u := &t.unconfirmed
	k, asked := u.asked[o.ID]
	delete(u.asked, o.ID)
	w, waits := u.waiting[k]
	if !asked || !waits || o.ID-w.question >= uint32(max(len(u.zones), 1)) {
		return
	}
	w.open--
	switch {
	case o.Event == flow.EventFound:
		delete(u.waiting, k) // its event was lost, and the next dump will tell of it
	case o.Event == flow.EventUnanswered, w.late, w.first <= u.lost, k.zone != 0 && len(u.zones) == maxZones:
		t.unclear(&k, &w)
	case w.open > 0:
		u.waiting[k] = w
	default:
		delete(u.waiting, k)
		t.refuse(&k, &w, flow.VerdictDenied, flow.ReasonNeverConfirmed)
	}
}

// unclear gives up on an attempt: the events that would have told were lost.
func (t *table) unclear(k *connKey, w *attempted) {
	delete(t.unconfirmed.waiting, *k)
	t.refuse(k, w, flow.VerdictUnknown, flow.ReasonLost)
}

// refuse counts an attempt that did not become a connection.
func (t *table) refuse(k *connKey, w *attempted, v flow.Verdict, r flow.Reason) {
	srcPort, port := k.srcPort, k.dstPort
	if k.protocol.IsICMP() {
		srcPort, port = 0, w.icmp
	}
	wk := windowKey{src: addr(k.src), dst: addr(k.dst), port: port, protocol: k.protocol, verdict: v}
	if t.PerConn {
		wk.srcPort = srcPort
	}
	f, fresh := t.window.flow(&wk, w.first, w.first)
	if fresh && v == flow.VerdictDenied {
		t.firstDenial(&wk, w.first)
	}
	if r == flow.ReasonNeverConfirmed {
		why := t.causes.of(k, w)
		r = cmp.Or(why.reason, r)
		f.hint(why.told)
	}
	if fresh || r == flow.ReasonLogged || r.OtherCause() && f.Reason == flow.ReasonNeverConfirmed {
		f.Reason = r
	}
	f.Sources |= w.sources
	f.hint(t.hints.take(wk, srcPort))
	f.TCPFlags |= w.flags
	if f.counts(flow.SourceTap) {
		// The larger side's: both have logged the same packets.
		f.Sent.Packets += max(w.tapped.Packets, w.logged.Packets)
		f.Sent.Bytes += max(w.tapped.Bytes, w.logged.Bytes)
		f.Counted = true
	}
	if t.attempts.first(&wk, srcPort, w.sequence, w.first) {
		f.Connections++
	}
	if w.again > 0 {
		f.Connections += uint64(w.again)
		t.attempts.first(&wk, srcPort, w.latest, w.last) // so that its retries are known
	}
	if f.SourcePort == 0 {
		f.SourcePort = srcPort
	}
	if w.origin && f.Service == nil {
		f.Service = &flow.Service{Addr: addr(w.service), Port: w.servicePort}
	}
}

// dropped takes in which rule dropped a traced packet. Flows of this window
// that were refused like it were refused by it.
func (t *table) dropped(o *flow.Observation) {
	reason := flow.ReasonNone
	if t.Rule != nil && o.Told != nil && len(o.Told.Policies) > 0 {
		reason = t.Rule(o.Told.Policies[0])
	}
	k, why := t.causes.dropped(o, reason)
	k.verdict = flow.VerdictDenied
	for i, ok := t.window.index[k]; ok && i != 0; i = t.window.flows[i].next {
		if f := &t.window.flows[i]; reason != flow.ReasonNone && f.Reason == flow.ReasonNeverConfirmed {
			f.Reason = reason
			f.hint(why.told)
		}
	}
}

// takeDropped returns how many attempts were not watched since the last call.
func (t *table) takeDropped() uint64 {
	n := t.unconfirmed.dropped
	t.unconfirmed.dropped = 0
	return n
}

// leaveUnconfirmed counts what still waits, for an agent that stops.
func (t *table) leaveUnconfirmed() {
	for k, w := range t.unconfirmed.waiting {
		if w.logged.Packets > 0 {
			t.refuse(&k, &w, flow.VerdictDenied, flow.ReasonLogged)
		} else {
			t.refuse(&k, &w, flow.VerdictUnknown, flow.ReasonPending)
		}
	}
	clear(t.unconfirmed.waiting)
	clear(t.unconfirmed.asked)
}
