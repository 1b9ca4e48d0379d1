package policy

import (
	"encoding/binary"
	"net/netip"
)

// table4 cuts the IPv4 addresses into ranges of one place each, by where they begin.
type table4 struct {
	starts []uint32
	places []place
}

func newTable4() table4 { return table4{starts: []uint32{0}, places: []place{0}} }

// add begins a range; starts must not decrease. The later of two that begin
// together counts.
func (t *table4) add(start uint32, at place) {
	if n := len(t.starts); t.starts[n-1] == start {
		t.places[n-1] = at
		return
	}
	t.starts, t.places = append(t.starts, start), append(t.places, at)
}

func (t *table4) find(a uint32) place {
	low, high := 0, len(t.starts) // starts[low] <= a < starts[high]
	for high-low > 1 {
		if mid := int(uint(low+high) >> 1); t.starts[mid] <= a {
			low = mid
		} else {
			high = mid
		}
	}
	return t.places[low]
}

// table6 is table4 for IPv6.
type table6 struct {
	starts []uint128
	places []place
}

func newTable6() table6 { return table6{starts: []uint128{{}}, places: []place{0}} }

func (t *table6) add(start uint128, at place) {
	if n := len(t.starts); t.starts[n-1] == start {
		t.places[n-1] = at
		return
	}
	t.starts, t.places = append(t.starts, start), append(t.places, at)
}

func (t *table6) find(a uint128) place {
	low, high := 0, len(t.starts)
	for high-low > 1 {
		if mid := int(uint(low+high) >> 1); !a.less(t.starts[mid]) {
			low = mid
		} else {
			high = mid
		}
	}
	return t.places[low]
}

type uint128 struct{ high, low uint64 }

func (u uint128) less(v uint128) bool {
	return u.high < v.high || u.high == v.high && u.low < v.low
}

// after returns the first address behind the network of that many bits which
// begins at u; ok is false if there is none.
func (u uint128) after(bits int) (next uint128, ok bool) {
	last := u
	if bits < 64 {
		last.high |= ^uint64(0) >> bits
		last.low = ^uint64(0)
	} else {
		last.low |= ^uint64(0) >> (bits - 64) // a shift by 64 gives 0
	}
	next = uint128{last.high, last.low + 1}
	if next.low == 0 {
		next.high++
	}
	return next, next != uint128{}
}

func bits4(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func bits6(a netip.Addr) uint128 {
	b := a.As16()
	return uint128{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}
