package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// block is an ipBlock: the addresses of cidr without those of except.
type block struct {
	cidr   netip.Prefix
	except []netip.Prefix // sorted
}

// parsePrefix reads a CIDR as the API means it: bits behind the prefix do not
// count, and an IPv4 network may be written as IPv4-mapped.
func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("%q is no CIDR: want a network such as 192.168.1.0/24 or 2001:db8::/64", s)
	}
	if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p.Masked(), nil
}

// strictlyWithin reports whether p is a part of outer, and not all of it.
func strictlyWithin(p, outer netip.Prefix) bool {
	return p.Addr().Is4() == outer.Addr().Is4() && p.Bits() > outer.Bits() && outer.Contains(p.Addr())
}

func (b *block) appendKey(key []byte) []byte {
	key = append(key, b.cidr.String()...)
	for _, e := range b.except {
		key = append(append(key, '-'), e.String()...)
	}
	return key
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// place is where an address lies among all prefixes of all blocks: the number
// of the longest prefix that holds it, 0 if none does. Prefixes are numbered
// so that those within a prefix follow it directly: one that holds a place is
// a range of places. Two addresses of one place are alike to every block.
type place uint32

// placeUnknown is the place of an address that is not known.
const placeUnknown = ^place(0)

// blockTable finds the places of addresses, and says which places are in which block.
type blockTable struct {
	version uint32 // places are comparable within one version
	v4      table4
	v6      table6
	blocks  []placedBlock
}

type placedBlock struct {
	within placeRange
	except []placeRange
}

type placeRange struct{ first, last place }

func (r placeRange) holds(p place) bool { return r.first <= p && p <= r.last }

func (b *placedBlock) holds(p place) bool {
	if !b.within.holds(p) {
		return false
	}
	for _, e := range b.except {
		if e.holds(p) {
			return false
		}
	}
	return true
}

// newBlockTable numbers the prefixes of blocks. A block keeps its index.
func newBlockTable(blocks []*block, version uint32) *blockTable {
	prefixes := make([]netip.Prefix, 0, 2*len(blocks))
	for _, b := range blocks {
		prefixes = append(append(prefixes, b.cidr), b.except...)
	}
	// IPv4 sorts before IPv6, and a network before its parts.
	slices.SortFunc(prefixes, comparePrefixes)
	prefixes = slices.Compact(prefixes)

	t := &blockTable{version: version, v4: newTable4(), v6: newTable6(), blocks: make([]placedBlock, len(blocks))}
	ranges := t.number(prefixes)
	for i, b := range blocks {
		t.blocks[i].within = ranges[b.cidr]
		for _, e := range b.except {
			t.blocks[i].except = append(t.blocks[i].except, ranges[e])
		}
	}
	return t
}

// number fills the tables and returns the places within each prefix.
func (t *blockTable) number(prefixes []netip.Prefix) map[netip.Prefix]placeRange {
	ranges := make(map[netip.Prefix]placeRange, len(prefixes))
	var open []netip.Prefix // each holds the next
	latest := place(0)
	closeLast := func() {
		p := open[len(open)-1]
		open = open[:len(open)-1]
		r := ranges[p]
		r.last = latest
		ranges[p] = r
		around := place(0)
		if len(open) > 0 {
			around = ranges[open[len(open)-1]].first
		}
		t.endAfter(p, around)
	}
	for _, p := range prefixes {
		for len(open) > 0 && !open[len(open)-1].Contains(p.Addr()) {
			closeLast()
		}
		latest++
		ranges[p] = placeRange{first: latest}
		open = append(open, p)
		t.begin(p, latest)
	}
	for len(open) > 0 {
		closeLast()
	}
	return ranges
}

func (t *blockTable) begin(p netip.Prefix, at place) {
	if p.Addr().Is4() {
		t.v4.add(bits4(p.Addr()), at)
		return
	}
	t.v6.add(bits6(p.Addr()), at)
}

// endAfter says that behind the prefix the place is the one around it.
func (t *blockTable) endAfter(p netip.Prefix, around place) {
	if p.Addr().Is4() {
		if last := bits4(p.Addr()) | ^uint32(0)>>p.Bits(); last != ^uint32(0) {
			t.v4.add(last+1, around)
		}
		return
	}
	if next, ok := bits6(p.Addr()).after(p.Bits()); ok {
		t.v6.add(next, around)
	}
}

// place finds the place of an address.
func (t *blockTable) place(a netip.Addr) place {
	switch {
	case a.Is4():
		return t.v4.find(bits4(a))
	case a.Is4In6():
		return t.v4.find(bits4(a.Unmap()))
	case a.IsValid():
		return t.v6.find(bits6(a))
	}
	return placeUnknown
}
