package kube

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/flowaudit/flowaudit/flow"
)

// The table must answer as a map does, whatever comes and goes.
func TestAddressesAreAMap(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	a, want := newAddresses(), make(map[netip.Addr]*flow.Endpoint)
	addr := func() netip.Addr {
		if random.IntN(2) == 0 {
			return netip.AddrFrom4([4]byte{10, 0, byte(random.IntN(8)), byte(random.IntN(256))})
		}
		return netip.AddrFrom16([16]byte{0xfd, 15: byte(random.IntN(256)), 14: byte(random.IntN(8))})
	}
	for i := range 100_000 {
		k := addr()
		if random.IntN(3) == 0 {
			a.set(k, nil)
			delete(want, k)
			continue
		}
		c := life("x", int64(i), int64(i), forever, forever)
		a.set(k, []claim{c})
		want[k] = c.versions[0].endpoint
	}
	for range 20_000 {
		k := addr()
		if got, _ := a.answer(k); got != want[k] {
			t.Fatalf("%s is %+v, want %+v", k, got, want[k])
		}
		if n := len(a.claims(k)); (n == 1) != (want[k] != nil) {
			t.Fatalf("%s has %d claims", k, n)
		}
	}
	for k := range want {
		a.set(k, nil)
	}
	for i := range a.shards {
		if a.shards[i].used != 0 {
			t.Errorf("shard %d still counts %d", i, a.shards[i].used)
		}
	}
}
