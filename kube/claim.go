package kube

import (
	"math"
	"slices"
	"strings"

	"github.com/flowaudit/flowaudit/flow"
)

// Times are Unix nanoseconds. These are the ones without a bound.
const (
	always  = math.MinInt64
	forever = math.MaxInt64
)

// rank orders what may have an address: a pod or a node has it on an
// interface, a Service only has rules that translate it.
type rank uint8

const (
	rankHost rank = iota
	rankAPIServer
	rankService
)

// holder is who claims an address. Holders are told apart by pointer.
type holder struct {
	rank rank
	kind string // "Node", "Service"; empty for a pod
	key  podKey
}

// String names the holder as candidates are named: a pod without its kind.
func (h *holder) String() string {
	name := strings.TrimPrefix(h.key.String(), "/")
	if h.kind == "" {
		return name
	}
	return h.kind + " " + name
}

// claim says that a holder had an address, and how sure that is at each time:
//
//	from ······· sure ═══════════ doubt ······· to
//	could have it │ had it         │ could have it
//
// The API's times have whole seconds and reach the index late, so both ends
// are ranges. A claim is never changed after it was published.
type claim struct {
	by                    *holder
	from, sure, doubt, to int64
	// gone is when the API had no such object any more. After it the holder
	// is never named alone: its network may be another's already.
	gone int64
	// rival is since when another could have it who says so now; 0 if none
	// does. From then on the holder is not sure any more: that it ended may
	// only be told late. announced says that its end was told with its time.
	rival     int64
	announced bool
	network   bool      // the address is of the network of pods
	versions  []version // oldest first, one at least
}

// version is what a holder was called from a moment on.
type version struct {
	since    int64
	endpoint *flow.Endpoint
	pod      *Pod // nil if the holder is none
}

// at returns what the holder was called at a time.
func (c *claim) at(t int64) *version {
	for i := len(c.versions) - 1; i > 0; i-- {
		if t >= c.versions[i].since {
			return &c.versions[i]
		}
	}
	return &c.versions[0]
}

func (c *claim) latest() *version { return &c.versions[len(c.versions)-1] }

func (c *claim) open() bool { return c.to == forever }

// touches reports whether the holder could have had the address at some time
// from a to b, both included.
func (c *claim) touches(a, b int64) bool { return c.from <= b && c.to > a }

// unrivalled is until when the holder surely had it and nobody else could.
func (c *claim) unrivalled() int64 {
	if c.rival != 0 && !c.announced {
		return min(c.doubt, c.rival)
	}
	return c.doubt
}

// covers reports whether the holder surely had it all the time.
func (c *claim) covers(a, b int64) bool { return c.sure <= a && c.unrivalled() > b }

// certain reports whether the holder says that it surely had it at some time
// from a to b. One that is gone without a word does not contradict its rival.
func (c *claim) certain(a, b int64) bool {
	until := c.doubt
	if !c.open() {
		until = c.unrivalled()
	}
	return c.sure <= b && until > a
}

// verdict is who had an address.
type verdict struct {
	claim     *claim   // who; nil if nobody is known, or several could be
	ambiguous []*claim // those who could be
}

// decide says who had the address all the time from a to b. It names nobody
// where two could have had it, or one could have had it for a part of the time.
func decide(claims []claim, a, b int64) verdict {
	var sure, possible *claim
	candidates, best := 0, rank(math.MaxUint8)
	for i := range claims {
		c := &claims[i]
		if !c.touches(a, b) || c.by.rank > best {
			continue
		}
		if c.by.rank < best {
			best, candidates, sure = c.by.rank, 0, nil
		}
		candidates++
		possible = c
		if c.covers(a, b) {
			sure = c
		}
	}
	switch {
	case candidates == 0:
		return verdict{}
	case sure != nil && !contested(claims, sure, a, b):
		return verdict{claim: sure}
	case sure == nil && candidates == 1 && possible.from <= a && possible.to > b && b < possible.gone:
		return verdict{claim: possible}
	}
	return verdict{ambiguous: overlapping(claims, best, a, b)}
}

// contested reports whether another holder of the same rank surely had the
// address too, which cannot be.
func contested(claims []claim, by *claim, a, b int64) bool {
	for i := range claims {
		if c := &claims[i]; c.by != by.by && c.by.rank == by.by.rank && c.certain(a, b) {
			return true
		}
	}
	return false
}

func overlapping(claims []claim, r rank, a, b int64) []*claim {
	var out []*claim
	for i := range claims {
		if c := &claims[i]; c.by.rank == r && c.touches(a, b) {
			out = append(out, c)
		}
	}
	return out
}

// settled returns the answer for each moment from since on: most questions are
// about the present, and need no look at the claims. It is nil if there is none.
func settled(claims []claim) (e *flow.Endpoint, since int64) {
	var now *claim
	for i := range claims {
		if c := &claims[i]; c.open() && (now == nil || c.by.rank < now.by.rank) {
			now = c
		}
	}
	if now == nil || now.unrivalled() != forever {
		return nil, forever
	}
	since = max(now.sure, now.latest().since)
	for i := range claims {
		switch c := &claims[i]; {
		case c.by == now.by && c.open() || c.by.rank > now.by.rank:
		case c.by.rank < now.by.rank:
			since = max(since, c.to)
		case c.doubt == forever:
			return nil, forever // two who surely have it
		default:
			since = max(since, c.doubt)
		}
	}
	return now.latest().endpoint, since
}

// with returns the claims with one of them replaced or added. An open claim of
// the same holder is the one that is replaced.
func with(claims []claim, c claim) []claim {
	out := slices.Clone(claims)
	for i := range out {
		if out[i].by == c.by && out[i].open() {
			out[i] = c
			return out
		}
	}
	return append(out, c)
}

// openClaim finds the open claim of a holder.
func openClaim(claims []claim, by *holder) *claim {
	for i := range claims {
		if claims[i].by == by && claims[i].open() {
			return &claims[i]
		}
	}
	return nil
}
