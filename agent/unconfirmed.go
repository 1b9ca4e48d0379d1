package agent

import (
	"net/netip"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// unconfirmed holds packets that were logged before conntrack confirmed their
// connection, until it is known what became of them: whatever a rule refuses
// on this node is never confirmed. Keys are as the packet shows them: after
// DNAT where it was logged after it, and with any zone but 0 as one.
type unconfirmed struct {
	waiting map[connKey]attempted
	recent  [32]connKey // the last attempts that were logged before NAT
	place   int

	asked    map[uint32]connKey // by the question's ID
	question uint32             // the last one's ID
	zones    []uint16           // that connections were seen in, but for 0

	// Connections that were confirmed before their packet was read, in two
	// generations: the sources are read at different moments.
	early, earlier map[connKey]sighting
	turned         int64 // when the generations last changed

	now     int64 // of the last look
	lost    int64 // conntrack events before this moment are missing
	dropped uint64
}

// attempted is a connection that waits. It holds no pointer.
type attempted struct {
	first, last    int64 // Unix nanoseconds
	asked          int64
	tapped, logged flow.Counters // packets that the tap and that the network plugin logged
	service        [16]byte      // before DNAT, with origin
	in, mark       uint32        // interface index and mark of the packet, as the tap saw it
	question, open uint32        // the first question's ID, 0 before conntrack was asked; how many have no answer yet
	sequence       uint32        // of the first SYN
	latest, again  uint32        // of the last SYN with another sequence number; how many such there were
	servicePort    uint16
	icmp           uint16 // type and code
	flags          uint8  // TCP
	sources        flow.Source
	nat            bool // the tap logged it after DNAT
	origin         bool // it also logged it before, so that the Service is known
	late           bool // it was read so late that its end may be forgotten
}

// sighting is a connection that conntrack confirmed.
type sighting struct {
	conn connKey // the original tuple
	at   int64
	used bool // its attempt was read
}

const (
	// graceTime is how long a packet may take from the first hook to the last.
	// A program that decides in user space (NFQUEUE) may need some of it.
	graceTime = time.Second
	// holdTime is how long a logged refusal waits for conntrack to contradict
	// it: longer than both sources need to be read.
	holdTime = 300 * time.Millisecond
	// earlyTime is how long a confirmed connection is remembered at least.
	earlyTime = 10 * time.Second
	// natTime bounds how far apart the records of one packet are.
	natTime      = 50 * time.Millisecond
	maxAttempted = 1 << 17
	maxEarly     = 1 << 16 // for each generation
	maxZones     = 16
)

func newUnconfirmed() unconfirmed {
	return unconfirmed{
		waiting: make(map[connKey]attempted), asked: make(map[uint32]connKey),
		early: make(map[connKey]sighting), earlier: make(map[connKey]sighting),
	}
}

// wait takes a packet's time and flags into an attempt that waits, or into one
// that begins to, where there is room.
func (u *unconfirmed) wait(w *attempted, waits bool, o *flow.Observation) bool {
	if !waits {
		if len(u.waiting) >= maxAttempted {
			u.dropped++
			return false
		}
		w.first = o.Time
		w.icmp = flowPort(o, 0)
		w.late = u.now-o.Time > int64(earlyTime)
		w.sequence = o.Sequence
	}
	w.reused(o.Sequence)
	w.last = o.Time
	w.flags |= o.TCPFlags
	return true
}

// reused takes in the sequence number of one more SYN: a program that was
// refused may at once try again from the same port. The tap's record of a
// packet may come after the plugin's record of the next.
func (w *attempted) reused(sequence uint32) {
	if sequence == 0 || sequence == w.sequence || sequence == w.latest {
		return
	}
	if w.sequence == 0 {
		w.sequence = sequence
		return
	}
	w.latest = sequence
	w.again++
}

// take gives a waiting attempt that waits no more.
func (u *unconfirmed) take(k *connKey) (w attempted, ok bool) {
	if len(u.waiting) == 0 {
		return w, false
	}
	if w, ok = u.waiting[*k]; ok {
		delete(u.waiting, *k)
	}
	return w, ok
}

// remember keeps the key of a packet that NAT may translate next.
func (u *unconfirmed) remember(k *connKey) {
	u.recent[u.place] = *k
	u.place = (u.place + 1) % len(u.recent)
}

// origin finds the packet's record from before NAT, which then waits no more.
// It is one of the last: the kernel takes a packet from hook to hook.
func (u *unconfirmed) origin(k *connKey, at int64) (before connKey, ok bool) {
	for i := range u.recent {
		r := &u.recent[(u.place+len(u.recent)-1-i)%len(u.recent)]
		if r.src != k.src || r.srcPort != k.srcPort || r.protocol != k.protocol || r.zone != k.zone {
			continue
		}
		if w, waits := u.waiting[*r]; !waits || at-w.last > int64(natTime) {
			return before, false // an older packet from that port
		}
		before, *r = *r, connKey{}
		delete(u.waiting, before)
		return before, true
	}
	return before, false
}

// sighted remembers a connection that was confirmed before its packet was read.
func (u *unconfirmed) sighted(k *connKey, s sighting) {
	if len(u.early) >= maxEarly {
		u.dropped++
		u.lost = max(u.lost, s.at) // what is not remembered may have been confirmed
		return
	}
	u.early[*k] = s
}

// seen finds a remembered connection, and use says that its packet was read.
func (u *unconfirmed) seen(k *connKey, use bool) (s sighting, ok bool) {
	for _, m := range []map[connKey]sighting{u.early, u.earlier} {
		if s, ok = m[*k]; ok {
			if use && !s.used {
				m[*k] = sighting{s.conn, s.at, true}
			}
			return s, true
		}
	}
	return s, false
}

func (u *unconfirmed) age(now int64) {
	u.now = now
	if now-u.turned < int64(earlyTime) {
		return
	}
	u.turned = now
	u.earlier, u.early = u.early, u.earlier
	clear(u.early)
}

// zone learns which zones are in use, and gives what stands for it in a key.
func (u *unconfirmed) zone(z uint16) uint16 {
	if z == 0 {
		return 0
	}
	for _, known := range u.zones {
		if known == z {
			return flow.ZoneNotDefault
		}
	}
	if len(u.zones) < maxZones {
		u.zones = append(u.zones, z)
	}
	return flow.ZoneNotDefault
}

// within reports whether the tap logs the packets between two addresses.
func within(pods []netip.Prefix, ends ...netip.Addr) bool {
	for _, p := range pods {
		for _, a := range ends {
			if p.Contains(a) {
				return true
			}
		}
	}
	return len(pods) == 0
}
