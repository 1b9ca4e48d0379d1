package suggest

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range texts {
		if !strings.Contains(s, "/") {
			a := netip.MustParseAddr(s)
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
			continue
		}
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestAddressesAreJoined(t *testing.T) {
	for _, c := range []struct {
		name  string
		a     aggregation
		given []netip.Prefix
		want  []netip.Prefix
	}{
		{"one address stays one", aggregation{slack: 100}, prefixes("198.51.100.1"), prefixes("198.51.100.1/32")},
		{"neighbours without waste", aggregation{}, prefixes("198.51.100.2", "198.51.100.3", "198.51.100.4"), prefixes("198.51.100.2/31", "198.51.100.4/32")},
		{"as many unseen as allowed", aggregation{slack: 1}, prefixes("198.51.100.0", "198.51.100.1", "198.51.100.3"), prefixes("198.51.100.0/30")},
		{"and no more", aggregation{slack: 1}, prefixes("198.51.100.0", "198.51.100.3"), prefixes("198.51.100.0/32", "198.51.100.3/32")},
		{"no waste over an address that was refused", aggregation{slack: 1, narrow: prefixes("198.51.100.2")}, prefixes("198.51.100.0", "198.51.100.1", "198.51.100.3"), prefixes("198.51.100.0/31", "198.51.100.3/32")},
		{"private and public apart", aggregation{slack: 1 << 40, cluster: true}, prefixes("9.255.255.255", "10.0.0.0", "11.0.0.0"), prefixes("9.255.255.255/32", "10.0.0.0/32", "11.0.0.0/32")},
		{"private ranges are not widened where pods may be", aggregation{slack: 8}, prefixes("10.0.0.0", "10.0.0.2"), prefixes("10.0.0.0/32", "10.0.0.2/32")},
		{"but where they are known not to be", aggregation{slack: 8, cluster: true, narrow: prefixes("10.244.0.0/16")}, prefixes("10.0.0.0", "10.0.0.2", "10.244.0.1", "10.244.0.3"), prefixes("10.0.0.0/30", "10.244.0.1/32", "10.244.0.3/32")},
		{"IPv4 and IPv6 apart", aggregation{slack: 1000}, prefixes("198.51.100.1", "2001:db8::1", "2001:db8::3"), prefixes("198.51.100.1/32", "2001:db8::/126")},
		{"networks that the store joined", aggregation{}, prefixes("2001:db8::/64", "2001:db8:0:1::/64", "2001:db8::5"), prefixes("2001:db8::/63")},
		{"half of a /64 is not all of it", aggregation{slack: 1 << 62}, prefixes("2001:db8::/65", "2001:db8:0:1::/64"), prefixes("2001:db8::/65", "2001:db8:0:1::/64")},
	} {
		t.Run(c.name, func(t *testing.T) {
			if d := cmp.Diff(c.want, c.a.join(c.given), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
				t.Error(d)
			}
		})
	}
}

// Of a small network all covers are tried: none has fewer CIDRs.
func TestNoFewerCIDRsWouldDo(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var given []netip.Prefix
		var seen [32]bool
		for n := range seen {
			if rnd.IntN(3) == 0 {
				seen[n] = true
				given = append(given, netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(n)}), 32))
			}
		}
		slack := uint64(rnd.IntN(6))
		got := (&aggregation{slack: slack}).join(given)
		if best := fewest(seen[:], slack); len(got) != best {
			t.Fatalf("seed %d, slack %d: %d CIDRs for %v, %d would do: %v", seed, slack, len(got), given, best, got)
		}
		for _, p := range got {
			unseen := uint64(0)
			for n := range seen {
				if p.Contains(netip.AddrFrom4([4]byte{198, 51, 100, byte(n)})) && !seen[n] {
					unseen++
				}
			}
			if unseen > slack {
				t.Fatalf("seed %d: %s has %d unseen addresses, %d are allowed", seed, p, unseen, slack)
			}
		}
		for _, g := range given {
			if !slices.ContainsFunc(got, func(p netip.Prefix) bool { return p.Contains(g.Addr()) }) {
				t.Fatalf("seed %d: %s is in no CIDR", seed, g)
			}
		}
	}
}

// fewest counts the CIDRs that a range of addresses needs, by trying.
func fewest(seen []bool, slack uint64) int {
	used, unseen := 0, uint64(0)
	for _, s := range seen {
		if s {
			used++
		} else {
			unseen++
		}
	}
	switch {
	case used == 0:
		return 0
	case unseen <= slack || len(seen) == 1:
		return 1
	}
	return fewest(seen[:len(seen)/2], slack) + fewest(seen[len(seen)/2:], slack)
}

func TestRangesOfPorts(t *testing.T) {
	for _, c := range []struct {
		slack float64
		used  []uint16
		want  []portTerm
	}{
		{0, []uint16{80}, []portTerm{{protocol: 6, first: 80, last: 80}}},
		{0, []uint16{80, 81}, []portTerm{{protocol: 6, first: 80, last: 80}, {protocol: 6, first: 81, last: 81}}},
		{0, []uint16{82, 80, 81, 90}, []portTerm{{protocol: 6, first: 80, last: 82}, {protocol: 6, first: 90, last: 90}}},
		{0, []uint16{80, 81, 83, 84}, []portTerm{{protocol: 6, first: 80, last: 80}, {protocol: 6, first: 81, last: 81}, {protocol: 6, first: 83, last: 83}, {protocol: 6, first: 84, last: 84}}},
		{0.2, []uint16{80, 81, 83, 84}, []portTerm{{protocol: 6, first: 80, last: 84}}},
		{0.1, []uint16{80, 81, 83, 84, 65535}, []portTerm{{protocol: 6, first: 80, last: 80}, {protocol: 6, first: 81, last: 81}, {protocol: 6, first: 83, last: 83}, {protocol: 6, first: 84, last: 84}, {protocol: 6, first: 65535, last: 65535}}},
	} {
		var used []service
		for _, p := range c.used {
			used = append(used, service{6, p})
		}
		if got := ranges(used, c.slack); !slices.Equal(got, c.want) {
			t.Errorf("%v, slack %g: %v, want %v", c.used, c.slack, got, c.want)
		}
	}
}
