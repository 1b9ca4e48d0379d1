// Package kube knows the cluster's objects and says who held an address at a moment.
package kube

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/flowaudit/flowaudit/flow"
)

// Index answers (address, time) → Endpoint. Readers never wait: they see the
// last complete state.
type Index struct {
	mu    sync.Mutex // held by the one who replaces the state
	state atomic.Pointer[state]
}

// state is one complete view of the cluster, and is never changed.
type state struct {
	addrs    map[netip.Addr][]holding // oldest first
	services map[servicePort]*flow.Service
	policies []*networkingv1.NetworkPolicy
	stats    Stats
}

// holding says that an endpoint had an address for a time.
type holding struct {
	from, to time.Time // the zero time is unbounded
	endpoint *flow.Endpoint
}

type servicePort struct {
	addr     netip.Addr
	port     uint16
	protocol flow.Protocol
}

// Stats describes what the index knows.
type Stats struct {
	Pods, Namespaces, Services, Nodes, Policies int
	Ambiguous                                   int // addresses that more than one pod claims
	// Problems are objects and files that could not be used, in plain words.
	Problems []string
}

// historyKept is how long the index remembers who held an address before.
const historyKept = 6 * time.Hour

// NewIndex returns an index that knows nothing.
func NewIndex() *Index {
	x := &Index{}
	x.state.Store(&state{})
	return x
}

// Endpoint says who held addr at a moment. An address that nobody held is
// outside if the cluster is known, else unknown. The result is shared, the
// same for the same holder, and never nil.
func (x *Index) Endpoint(addr netip.Addr, at time.Time) *flow.Endpoint {
	s := x.state.Load()
	held := s.addrs[addr]
	for i := len(held) - 1; i >= 0; i-- {
		h := &held[i]
		if (h.from.IsZero() || !at.Before(h.from)) && (h.to.IsZero() || at.Before(h.to)) {
			return h.endpoint
		}
	}
	if s.stats.Pods+s.stats.Nodes == 0 || special(addr) {
		return nobody
	}
	return outside
}

// nobody and outside are shared answers; they are never changed.
var (
	nobody  = &flow.Endpoint{}
	outside = &flow.Endpoint{Kind: flow.EndpointOutside}
)

// special reports addresses of which one cannot say that they are outside.
func special(a netip.Addr) bool {
	return a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast()
}

// Service names the Service that owns an address and port; nil if there is none.
func (x *Index) Service(addr netip.Addr, port uint16, protocol flow.Protocol, _ time.Time) *flow.Service {
	return x.state.Load().services[servicePort{addr, port, protocol}]
}

// Policies returns the NetworkPolicies. They must not be changed.
func (x *Index) Policies() []*networkingv1.NetworkPolicy { return x.state.Load().policies }

// Stats describes the present state.
func (x *Index) Stats() Stats { return x.state.Load().stats }

// Replace makes the objects the cluster's whole state from a moment on. What
// an address meant before is remembered for some hours.
func (x *Index) Replace(o *Objects, at time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	before := x.state.Load()
	next, now := o.build()
	next.addrs = succeed(before.addrs, now, at, len(before.addrs) == 0)
	x.state.Store(next)
}

// succeed continues the history with who holds each address now. In the first
// state every holding began at an unknown time.
func succeed(before map[netip.Addr][]holding, now map[netip.Addr]*flow.Endpoint, at time.Time, first bool) map[netip.Addr][]holding {
	out := make(map[netip.Addr][]holding, len(now))
	for addr, held := range before {
		if kept := closed(held, now[addr], at); len(kept) > 0 {
			out[addr] = kept
		}
	}
	for addr, e := range now {
		held := out[addr]
		if n := len(held); n > 0 && held[n-1].to.IsZero() {
			continue // the same holder goes on
		}
		h := holding{from: at, endpoint: e}
		if first {
			h.from = time.Time{}
		}
		out[addr] = append(held, h)
	}
	return out
}

// closed ends the last holding unless its holder is still the same, and
// forgets what is too old.
func closed(held []holding, now *flow.Endpoint, at time.Time) []holding {
	held = slices.Clone(held)
	if last := &held[len(held)-1]; last.to.IsZero() && (now == nil || !same(last.endpoint, now)) {
		last.to = at
	}
	return slices.DeleteFunc(held, func(h holding) bool {
		return !h.to.IsZero() && at.Sub(h.to) > historyKept
	})
}

func same(a, b *flow.Endpoint) bool {
	return a.Kind == b.Kind && a.Namespace == b.Namespace && a.Pod == b.Pod && a.Workload == b.Workload &&
		a.Node == b.Node && a.Identity == b.Identity && maps.Equal(a.Labels, b.Labels)
}
