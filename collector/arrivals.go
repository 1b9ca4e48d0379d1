package collector

import (
	"hash/maphash"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// arrivals remembers what came to each node, and when its tap watched without a
// gap: a connection that left one node and did not come to the other was lost
// between them.
type arrivals struct {
	mu    sync.Mutex
	seed  maphash.Seed
	nodes map[nodeOf]*gate
}

type nodeOf struct{ cluster, node string }

// gate is one node's memory, in two generations. A time is known as watched
// only as long as everything is remembered that came in it.
type gate struct {
	now, before page
	turned      time.Time
}

type page struct {
	watched []span
	gaps    []span
	came    map[uint64]int64 // by arrival, the end of the last one in Unix milliseconds
	within  []netip.Prefix   // what the tap is limited to; empty for everything
	full    bool
}

const (
	// pageTime covers how much later the source's node tells of a connection.
	pageTime = 5 * time.Minute
	maxCame  = 1 << 18 // a page and node
	// leeway is what clocks differ by at most.
	leeway = 5 * time.Second
)

func newArrivals() *arrivals {
	return &arrivals{seed: maphash.MakeSeed(), nodes: make(map[nodeOf]*gate)}
}

// arrival is what two nodes' reports of a connection have in common. Where the
// source is nobody's that is known, something on the way may have translated it.
type arrival struct {
	protocol flow.Protocol
	port     uint16
	src, dst netip.Addr
}

// judge takes a batch in, and says of its unanswered flows which were lost on
// the way to another node. settled reports whether a flow's destination has
// been there long enough for its node to know it.
func (a *arrivals) judge(b *flow.Batch, settled func(*flow.Flow) bool) {
	prefixes, tapped := tapOf(b.Agent.Sources)
	byNetfilter := !elsewhere(b.Agent.Sources)
	a.mu.Lock()
	defer a.mu.Unlock()
	if tapped && byNetfilter && b.Scope == flow.ScopeNode {
		a.gate(nodeOf{b.Key.Cluster, b.Node}, time.Now()).take(a, b, prefixes)
	}
	if !byNetfilter {
		return // that conntrack confirmed it does not say that it left
	}
	for i := range b.Flows {
		if f := &b.Flows[i]; left(f) && settled(f) && a.lost(f, b.Key.Cluster) {
			f.Reason = flow.ReasonLostBetween
		}
	}
}

// left reports whether a flow surely left its source's node for a pod of another.
func left(f *flow.Flow) bool {
	return f.Verdict == flow.VerdictUnanswered && f.Reason == flow.ReasonNoReply && f.Sources&flow.SourceConntrack != 0 && f.Connections > 0 &&
		f.Source != nil && f.Source.Node == f.Node && (f.Source.Kind == flow.EndpointPod || f.Source.Kind == flow.EndpointNode) &&
		f.Destination != nil && f.Destination.Kind == flow.EndpointPod && f.Destination.Node != "" && f.Destination.Node != f.Node
}

// lost reports whether the destination's node watched, and nothing came.
func (a *arrivals) lost(f *flow.Flow, cluster string) bool {
	g := a.nodes[nodeOf{cluster, f.Destination.Node}]
	if g == nil {
		return false
	}
	from, to := f.Start.Add(-leeway), f.End.Add(leeway)
	pair := f.Pair()
	for _, src := range []netip.Addr{pair.Src, {}} {
		h := a.hash(arrival{f.Protocol, f.Port, src, f.Dst})
		for _, p := range []*page{&g.now, &g.before} {
			if last, came := p.came[h]; came && last >= from.UnixMilli() {
				return false
			}
		}
	}
	return g.watchedAll(from, to, f.Dst)
}

func (a *arrivals) hash(x arrival) uint64 { return maphash.Comparable(a.seed, x) }

// gate finds a node's memory, and begins a new page of it when it is time.
func (a *arrivals) gate(n nodeOf, now time.Time) *gate {
	g := a.nodes[n]
	if g == nil {
		for other, old := range a.nodes { // nodes come and go
			if now.Sub(old.turned) > 2*pageTime {
				delete(a.nodes, other)
			}
		}
		g = &gate{turned: now, now: page{came: make(map[uint64]int64)}}
		a.nodes[n] = g
	}
	if now.Sub(g.turned) >= 2*pageTime {
		g.now = page{}
	}
	if now.Sub(g.turned) >= pageTime {
		g.before, g.now, g.turned = g.now, page{came: make(map[uint64]int64)}, now
	}
	return g
}

// take notes what a node's batch tells.
func (g *gate) take(a *arrivals, b *flow.Batch, prefixes []netip.Prefix) {
	p := &g.now
	p.within = prefixes
	if b.End.After(b.Start) {
		if n := len(p.watched); n > 0 && !b.Start.After(p.watched[n-1].end) {
			p.watched[n-1].end = b.End
		} else {
			p.watched = append(p.watched, span{b.Start, b.End})
		}
	}
	for _, gap := range b.Gaps {
		if gap.Kind != flow.GapNames {
			p.gaps = append(p.gaps, span{gap.Start, gap.End})
		}
	}
	for i := range b.Flows {
		f := &b.Flows[i]
		if f.Source != nil && f.Source.Node == b.Node {
			continue
		}
		pair := f.Pair()
		if f.Source == nil || f.Source.Kind != flow.EndpointPod {
			pair.Src = netip.Addr{}
		}
		h := a.hash(arrival{f.Protocol, f.Port, pair.Src, f.Dst})
		if _, known := p.came[h]; !known && len(p.came) >= maxCame {
			p.full = true
			continue
		}
		p.came[h] = max(p.came[h], f.End.UnixMilli())
	}
}

// watchedAll reports whether nothing to an address can have been missed in a time.
func (g *gate) watchedAll(from, to time.Time, dst netip.Addr) bool {
	var watched []span
	for _, p := range []*page{&g.before, &g.now} {
		limited := len(p.within) > 0 && !slices.ContainsFunc(p.within, func(n netip.Prefix) bool { return n.Contains(dst) })
		if p.full || limited {
			return false
		}
		if slices.ContainsFunc(p.gaps, func(s span) bool { return s.start.Before(to) && s.end.After(from) }) {
			return false
		}
		for _, s := range p.watched {
			if n := len(watched); n > 0 && !s.start.After(watched[n-1].end) {
				watched[n-1].end = s.end
			} else {
				watched = append(watched, s)
			}
		}
	}
	return slices.ContainsFunc(watched, func(s span) bool { return !s.start.After(from) && !s.end.Before(to) })
}

// tapOf says whether an agent's tap is open, and to what it is limited.
func tapOf(sources []string) (within []netip.Prefix, open bool) {
	conntrack := slices.Contains(sources, "conntrack")
	for _, s := range sources {
		name, list, limited := strings.Cut(s, "=")
		if name != "tap" {
			continue
		}
		if !limited {
			return nil, conntrack
		}
		for _, text := range strings.Split(list, ",") {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				return nil, false
			}
			within = append(within, p)
		}
		return within, conntrack
	}
	return nil, false
}

// elsewhere reports whether an agent reads what enforces where netfilter does
// not see it.
func elsewhere(sources []string) bool {
	return slices.ContainsFunc(sources, func(s string) bool {
		name, _, _ := strings.Cut(s, "=")
		return slices.Contains([]string{"hubble", "felix", "antrea", "ovn", "gke", "aws"}, name)
	})
}
