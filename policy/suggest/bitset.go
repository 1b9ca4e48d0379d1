package suggest

import "math/bits"

// bitset is a set of small numbers. Its methods change nothing, but for with.
type bitset []uint64

func newBitset(n int) bitset { return make(bitset, (n+63)/64) }

// with adds a number to a set of numbers below n, in place where there is room.
func (b bitset) with(i, n int) bitset {
	if b == nil {
		b = newBitset(n)
	}
	b[i/64] |= 1 << (i % 64)
	return b
}

func (b bitset) all(n int) bitset {
	out := newBitset(n)
	for i := range n {
		out[i/64] |= 1 << (i % 64)
	}
	return out
}

func (b bitset) and(o bitset) bitset {
	out := make(bitset, len(b))
	for i := range b {
		out[i] = b[i] & o[i]
	}
	return out
}

func (b bitset) without(o bitset) bitset {
	out := make(bitset, len(b))
	for i := range b {
		out[i] = b[i] &^ o[i]
	}
	return out
}

func (b bitset) within(o bitset) bool {
	for i := range b {
		if b[i]&^o[i] != 0 {
			return false
		}
	}
	return true
}

func (b bitset) meets(o bitset) bool {
	for i := range b {
		if b[i]&o[i] != 0 {
			return true
		}
	}
	return false
}

func (b bitset) empty() bool {
	for _, w := range b {
		if w != 0 {
			return false
		}
	}
	return true
}

func (b bitset) count() int {
	n := 0
	for _, w := range b {
		n += bits.OnesCount64(w)
	}
	return n
}
