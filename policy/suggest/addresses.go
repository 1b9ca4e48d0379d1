package suggest

import (
	"cmp"
	"math"
	"net/netip"
	"slices"
)

// region is a part of the address space that no CIDR crosses.
type region struct {
	netip.Prefix
	private bool
}

// regions lists the private and special ranges, the narrower ones first where
// they overlap. Everything else is public.
func regions() []region {
	var out []region
	for _, s := range []string{
		"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16", "127.0.0.0/8", "fc00::/7", "fe80::/10", "::1/128",
	} {
		out = append(out, region{netip.MustParsePrefix(s), true})
	}
	return append(out, region{netip.MustParsePrefix("0.0.0.0/0"), false}, region{netip.MustParsePrefix("::/0"), false})
}

// regionOf is the number of the region of an address.
func regionOf(all []region, a netip.Addr) int {
	return slices.IndexFunc(all, func(r region) bool { return r.Contains(a) })
}

// aggregation joins addresses to the fewest CIDRs.
type aggregation struct {
	// slack is how many addresses of a CIDR may be none of the given ones.
	slack uint64
	// narrow are ranges that no widened CIDR may touch.
	narrow []netip.Prefix
	// cluster says that narrow has all the cluster's own ranges, so that
	// private ranges may be widened.
	cluster bool
}

// join returns the fewest CIDRs that hold all given ones, and no more than
// slack other addresses each, sorted. No CIDR is of both private and public
// addresses.
func (a *aggregation) join(given []netip.Prefix) []netip.Prefix {
	all := regions()
	parts := make([][]netip.Prefix, len(all))
	for _, p := range disjoint(given) {
		if n := regionOf(all, p.Addr()); n >= 0 {
			parts[n] = append(parts[n], p)
		}
	}
	var out []netip.Prefix
	for n, part := range parts {
		if len(part) == 0 {
			continue
		}
		j := joining{aggregation: a, region: all[n]}
		if !j.region.private {
			for _, r := range all {
				if r.private && r.Addr().Is4() == part[0].Addr().Is4() {
					j.foreign = append(j.foreign, r.Prefix)
				}
			}
		}
		if !j.region.private || a.cluster {
			j.slack = a.slack
		}
		out = j.cover(part, out)
	}
	slices.SortFunc(out, comparePrefixes)
	return out
}

type joining struct {
	*aggregation
	region  region
	foreign []netip.Prefix // private ranges within the region
	slack   uint64
}

// cover adds the fewest CIDRs for prefixes that are sorted and disjoint. The
// narrowest network that holds them all is one of them if it wastes no more
// than it may: no other network holds as many with less waste.
func (j *joining) cover(prefixes, out []netip.Prefix) []netip.Prefix {
	if len(prefixes) == 0 {
		return out
	}
	if len(prefixes) == 1 {
		return append(out, prefixes[0])
	}
	network := common(prefixes[0], prefixes[len(prefixes)-1])
	if waste := wasted(network, prefixes, j.slack); waste <= j.slack && j.may(network, waste) {
		return append(out, network)
	}
	left, right := split(network, prefixes)
	return j.cover(right, j.cover(left, out))
}

// may reports whether a network may be a CIDR.
func (j *joining) may(network netip.Prefix, waste uint64) bool {
	if network.Bits() < j.region.Bits() {
		return false
	}
	overlaps := func(p netip.Prefix) bool { return p.Overlaps(network) }
	return !slices.ContainsFunc(j.foreign, overlaps) && (waste == 0 || !slices.ContainsFunc(j.narrow, overlaps))
}

// wasted counts the addresses of a network that are in none of the prefixes;
// more than limit is counted as limit+1, or the largest number.
func wasted(network netip.Prefix, prefixes []netip.Prefix, limit uint64) uint64 {
	if len(prefixes) == 0 {
		host := network.Addr().BitLen() - network.Bits()
		if host >= 64 {
			return math.MaxUint64
		}
		return 1 << host
	}
	if prefixes[0].Bits() <= network.Bits() {
		return 0
	}
	left, right := split(network, prefixes)
	half := netip.PrefixFrom(network.Addr(), network.Bits()+1)
	waste := wasted(half, left, limit)
	if waste > limit {
		return waste
	}
	more := wasted(half, right, limit) // as large as the other half
	if more > math.MaxUint64-waste {
		return math.MaxUint64
	}
	return waste + more
}

// split divides sorted prefixes by the halves of their network.
func split(network netip.Prefix, prefixes []netip.Prefix) (left, right []netip.Prefix) {
	at := slices.IndexFunc(prefixes, func(p netip.Prefix) bool { return bit(p.Addr(), network.Bits()) })
	if at < 0 {
		return prefixes, nil
	}
	return prefixes[:at], prefixes[at:]
}

// bit is bit n of an address, counted from the left.
func bit(a netip.Addr, n int) bool {
	if a.Is4() {
		b := a.As4()
		return b[n/8]>>(7-n%8)&1 == 1
	}
	b := a.As16()
	return b[n/8]>>(7-n%8)&1 == 1
}

// common is the narrowest network that holds both.
func common(a, b netip.Prefix) netip.Prefix {
	n := 0
	for n < min(a.Bits(), b.Bits()) && bit(a.Addr(), n) == bit(b.Addr(), n) {
		n++
	}
	return netip.PrefixFrom(a.Addr(), n).Masked()
}

// disjoint sorts prefixes and leaves out those that others hold.
func disjoint(prefixes []netip.Prefix) []netip.Prefix {
	sorted := slices.Clone(prefixes)
	slices.SortFunc(sorted, comparePrefixes)
	var out []netip.Prefix
	for _, p := range sorted {
		if n := len(out); n > 0 && out[n-1].Bits() <= p.Bits() && out[n-1].Contains(p.Addr()) {
			continue
		}
		out = append(out, p)
	}
	return out
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}
