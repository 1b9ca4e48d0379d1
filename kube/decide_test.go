package kube

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/flowaudit/flowaudit/flow"
)

// life is one holder's claim in seconds, as a test writes it.
func life(name string, from, sure, doubt, to int64) claim {
	return claim{
		by: &holder{key: podKey{"ns", name}}, from: from, sure: sure, doubt: doubt, to: to, gone: to,
		versions: []version{{from, &flow.Endpoint{Kind: flow.EndpointPod, Pod: name}, nil}},
	}
}

func rivalled(c claim, since int64) claim {
	c.rival = since
	return c
}

func answered(v verdict) string {
	switch {
	case v.claim != nil:
		return v.claim.by.key.name
	case v.ambiguous != nil:
		names := candidates(v.ambiguous)
		slices.Sort(names)
		return "ambiguous " + strings.Join(names, " ")
	}
	return "nobody"
}

func TestDecide(t *testing.T) {
	old, next := life("old", 0, 10, 50, 60), life("next", 55, 70, forever, forever)
	service := life("service", 0, 0, forever, forever)
	service.by.rank = rankService
	forced := life("forced", 0, 0, 40, 80)
	forced.gone = 50
	for _, c := range []struct {
		name   string
		claims []claim
		a, b   int64
		want   string
	}{
		{"before anybody", []claim{old, next}, -1, -1, "nobody"},
		{"only one could have it", []claim{old, next}, 5, 5, "old"},
		{"it surely has it", []claim{old, next}, 20, 20, "old"},
		{"it may have ended, and no other could have begun", []claim{old, next}, 52, 52, "old"},
		{"both could have it", []claim{old, next}, 57, 57, "ambiguous ns/next ns/old"},
		{"the old one is over, the next one not sure yet", []claim{old, next}, 62, 62, "next"},
		{"the next one", []claim{old, next}, 80, 80, "next"},
		{"a sure holder excludes one that is possible", []claim{life("a", 0, 0, forever, forever), life("b", 5, 20, forever, forever)}, 10, 10, "a"},
		{"two that are sure", []claim{life("a", 0, 0, forever, forever), life("b", 5, 6, forever, forever)}, 10, 10, "ambiguous ns/a ns/b"},
		{"a time that spans two holders", []claim{old, next}, 20, 80, "ambiguous ns/next ns/old"},
		{"a time that one holder covers", []claim{old, next}, 20, 40, "old"},
		{"a time that begins before its holder", []claim{old}, -5, 5, "ambiguous ns/old"},
		{"a deleted holder is not named alone", []claim{forced}, 60, 60, "ambiguous ns/forced"},
		{"but is as long as the API had it", []claim{forced}, 45, 45, "forced"},
		{"it is not sure any more when another says that it has it", []claim{rivalled(life("a", 0, 0, forever, forever), 55), next}, 60, 60, "ambiguous ns/a ns/next"},
		{"and both say so", []claim{rivalled(life("a", 0, 0, forever, forever), 55), next}, 80, 80, "ambiguous ns/a ns/next"},
		{"until the old one is gone, however late that is told", []claim{rivalled(life("a", 0, 0, 90, 95), 55), next}, 80, 80, "next"},
		{"before the other began it is sure", []claim{rivalled(life("a", 0, 0, forever, forever), 55), next}, 50, 50, "a"},
		{"a pod goes before a Service", []claim{service, old}, 20, 20, "old"},
		{"a Service where there is no pod", []claim{service, old}, 90, 90, "service"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := answered(decide(c.claims, c.a, c.b)); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// The prepared answer must never differ from the claims' own.
func FuzzSettled(f *testing.F) {
	f.Add([]byte{0, 1, 5, 6, 0, 5, 7, 255, 255, 1}, uint8(9))
	f.Add([]byte{0, 0, 255, 255, 2, 3, 4, 255, 255, 0}, uint8(4))
	f.Fuzz(func(t *testing.T, b []byte, at uint8) {
		claims := claimsOf(b)
		if len(claims) == 0 {
			return
		}
		e, since := settled(claims)
		if e == nil || int64(at) < since {
			return
		}
		v := decide(claims, int64(at), int64(at))
		if v.claim == nil || v.claim.at(int64(at)).endpoint != e {
			t.Errorf("at %d the prepared answer is %+v, the claims say %q: %+v", at, e, answered(v), claims)
		}
	})
}

// claimsOf reads claims from bytes, five each: four times in order, where 255
// is forever, and the rank.
func claimsOf(b []byte) []claim {
	when := func(v byte) int64 {
		if v == 255 {
			return forever
		}
		return int64(v)
	}
	var out []claim
	for ; len(b) >= 5; b = b[5:] {
		times := slices.Clone(b[:4])
		slices.Sort(times)
		c := life(fmt.Sprint(len(out)), when(times[0]), when(times[1]), when(times[2]), when(times[3]))
		if c.sure == forever {
			continue
		}
		c.by.rank = rank(b[4] % 3)
		if b[4]&4 != 0 {
			c.rival, c.announced = int64(b[4]>>4), b[4]&8 != 0
		}
		out = append(out, c)
	}
	return out
}
