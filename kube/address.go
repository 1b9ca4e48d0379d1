package kube

import (
	"encoding/binary"
	"net/netip"
	"sync"

	"github.com/flowaudit/flowaudit/flow"
)

// shardCount spreads addresses over tables with a lock each, so that a reader
// waits for a change of its own shard only, and never for a whole list.
const shardCount = 64

// addresses holds what is known of each address. Each shard is a hash table
// with linear probing, whose entries are half a cache line: Go's map took
// three times as long for a hundred thousand addresses.
type addresses struct {
	shards [shardCount]shard
}

type shard struct {
	mu      sync.RWMutex
	entries []entry // a power of two, a quarter of it free at least
	claims  [][]claim
	used    int
	_       [8]byte // fills two cache lines, so that neighbours' locks do not meet
}

// entry is an address and the answer for each moment from since on. The
// unspecified address marks a free one.
type entry struct {
	hi, lo   uint64
	endpoint *flow.Endpoint
	since    int64
}

const minEntries = 8

func newAddresses() *addresses {
	a := &addresses{}
	for i := range a.shards {
		a.shards[i].entries, a.shards[i].claims = make([]entry, minEntries), make([][]claim, minEntries)
	}
	return a
}

// split gives an address as two numbers, and its hash.
func split(addr netip.Addr) (hi, lo, hash uint64) {
	b := addr.As16()
	hi, lo = binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
	hash = (lo ^ hi*0x9e3779b97f4a7c15) * 0xff51afd7ed558ccd
	return hi, lo, hash ^ hash>>32
}

func (a *addresses) shard(hash uint64) *shard { return &a.shards[hash>>58] }

// find returns the place of an address, or the free one where it would be.
func (s *shard) find(hi, lo, hash uint64) int {
	mask := uint64(len(s.entries) - 1)
	for i := hash & mask; ; i = (i + 1) & mask {
		if e := &s.entries[i]; e.lo == lo && e.hi == hi || e.lo|e.hi == 0 {
			return int(i)
		}
	}
}

// answer returns what holds for each moment from since on; nil if the claims
// must be looked at.
func (a *addresses) answer(addr netip.Addr) (e *flow.Endpoint, since int64) {
	hi, lo, hash := split(addr)
	s := a.shard(hash)
	s.mu.RLock()
	found := &s.entries[s.find(hi, lo, hash)]
	e, since = found.endpoint, found.since
	s.mu.RUnlock()
	return e, since
}

// claims returns who claims an address. They must not be changed.
func (a *addresses) claims(addr netip.Addr) []claim {
	hi, lo, hash := split(addr)
	s := a.shard(hash)
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.claims[s.find(hi, lo, hash)]
}

// set replaces the claims of an address; none removes it.
func (a *addresses) set(addr netip.Addr, claims []claim) {
	hi, lo, hash := split(addr)
	if hi|lo == 0 {
		return // the unspecified address is nobody's
	}
	e := entry{hi: hi, lo: lo}
	e.endpoint, e.since = settled(claims)
	s := a.shard(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.find(hi, lo, hash)
	switch known := s.entries[i].lo|s.entries[i].hi != 0; {
	case len(claims) == 0 && known:
		s.remove(i)
	case len(claims) == 0:
	case known:
		s.entries[i], s.claims[i] = e, claims
	default:
		if s.used++; s.used*4 > len(s.entries)*3 {
			s.grow()
			i = s.find(hi, lo, hash)
		}
		s.entries[i], s.claims[i] = e, claims
	}
}

func (s *shard) grow() {
	entries, claims := s.entries, s.claims
	s.entries, s.claims = make([]entry, 2*len(entries)), make([][]claim, 2*len(entries))
	for i, e := range entries {
		if e.lo|e.hi != 0 {
			j := s.find(e.hi, e.lo, e.hash())
			s.entries[j], s.claims[j] = e, claims[i]
		}
	}
}

func (e *entry) addr() netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], e.hi)
	binary.BigEndian.PutUint64(b[8:], e.lo)
	return netip.AddrFrom16(b).Unmap()
}

func (e *entry) hash() uint64 {
	_, _, hash := split(e.addr())
	return hash
}

// remove frees a place, and moves up those behind it that would not be found
// any more.
func (s *shard) remove(i int) {
	s.used--
	mask := len(s.entries) - 1
	for j := (i + 1) & mask; ; j = (j + 1) & mask {
		e := &s.entries[j]
		if e.lo|e.hi == 0 {
			break
		}
		if home := int(e.hash()) & mask; (j-home)&mask >= (j-i)&mask {
			s.entries[i], s.claims[i] = *e, s.claims[j]
			i = j
		}
	}
	s.entries[i], s.claims[i] = entry{}, nil
}

// special reports addresses of which one cannot say that they are outside.
func special(a netip.Addr) bool {
	return a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast()
}

// candidates says in words who could have had an address.
func candidates(claims []*claim) []string {
	out := make([]string, 0, len(claims))
	for _, c := range claims {
		out = append(out, c.by.String())
	}
	return out
}

// nobody and outside are shared answers; they are never changed.
var (
	nobody  = &flow.Endpoint{}
	outside = &flow.Endpoint{Kind: flow.EndpointOutside}
)
