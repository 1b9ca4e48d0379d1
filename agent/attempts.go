package agent

import (
	"hash/maphash"
	"time"
)

// attempts tells retries from new connections among logged packets: a SYN that
// is refused comes again from the same port after 1, 2, 4, … seconds, with the
// same sequence number. Another number is another connection from that port. It
// keeps two generations of hashes, so that its memory is bounded and a retry is
// known for at least one generation's time.
type attempts struct {
	seed              maphash.Seed
	current, previous map[uint64]uint32 // the last sequence number, 0 if it was not told
	turned            int64             // when the generations last changed, Unix nanoseconds
	last              uint64
	lastSequence      uint32
}

const (
	// attemptGeneration covers the SYN retries up to the fifth, 31 s after the first.
	attemptGeneration = 32 * time.Second
	// maxAttempts bounds a generation. In a flood beyond it only retries that
	// follow each other directly are still told apart.
	maxAttempts = 1 << 17
)

type attempt struct {
	key  windowKey
	port uint16
}

func newAttempts() attempts {
	return attempts{seed: maphash.MakeSeed(), current: make(map[uint64]uint32), previous: make(map[uint64]uint32)}
}

// first reports whether no packet of this attempt was seen before. The sequence
// number is 0 where the packet's record does not tell it: then it is the
// attempt that was last seen from the port.
func (a *attempts) first(k *windowKey, srcPort uint16, sequence uint32, at int64) bool {
	h := maphash.Comparable(a.seed, attempt{*k, srcPort})
	if h == a.last && sequence == a.lastSequence {
		return false
	}
	a.last, a.lastSequence = h, sequence
	if a.turned == 0 {
		a.turned = at
	}
	before, known := a.current[h]
	if !known {
		before, known = a.previous[h]
	}
	if known && sequence == 0 {
		sequence = before
	}
	if _, kept := a.current[h]; kept || len(a.current) < maxAttempts {
		a.current[h] = sequence
	}
	return !known || before != 0 && before != sequence
}

// age begins a new generation when the current one's time is over.
func (a *attempts) age(now int64) {
	if now-a.turned < int64(attemptGeneration) {
		return
	}
	a.turned, a.last = now, 0
	a.previous, a.current = a.current, a.previous
	clear(a.current)
}
