// Package kube knows the cluster's objects and says who held an address at a moment.
package kube

import (
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/flowaudit/flowaudit/flow"
)

// Options say what an index is for.
type Options struct {
	// Partial says that only one node's objects will be known: an address
	// that is not found is unknown then, never outside, and identities, which
	// need the namespace's labels, are 0.
	Partial bool
	// Slack is how far the clocks of the cluster may differ; see SetSlack.
	Slack time.Duration
	// Changed is told each change of a NetworkPolicy, of a namespace's labels
	// and of which identities there are, in order. It must return at once. An
	// object that was there at the start is told too.
	Changed func(flow.Change)
}

// Index answers (address, time) → Endpoint, and remembers for some hours who
// held an address before. Readers wait for one change at most, never for a
// whole list.
type Index struct {
	options   Options
	addresses *addresses
	networks  *networks
	services  servicePorts
	ambiguous ambiguousEnds
	lateness  lateness
	currency  currency
	births    births
	clock     func() time.Time
	version   atomic.Uint64 // one more for each change of who holds an address
	hosts     atomic.Int64  // pods and nodes that are known
	exact     atomic.Bool   // told by manifests
	slack     atomic.Int64  // how far clocks may differ, nanoseconds
	policies  atomic.Pointer[[]*networkingv1.NetworkPolicy]

	mu         sync.Mutex // held by the one who changes what is below
	labels     labelSets
	namespaces map[string]*namespace
	pods       map[podKey]*podRecord
	nodes      map[string]*nodeRecord
	svcs       map[podKey]*serviceRecord
	apiServer  *holder
	apiAddrs   []netip.Addr
	apiPorts   map[frontKey]bool
	slices     map[podKey]*sliceRecord
	owners     owners
	byName     map[podKey]*networkingv1.NetworkPolicy
	identities identities
	remembered remembered
	problems   problems
	ended      endedClaims
}

// Pod is a pod as it was for a time. It is shared and never changed.
type Pod struct {
	flow.Endpoint
	// AllLabels are the pod's labels with the volatile ones: a policy may select by them.
	AllLabels map[string]string
	// Ports are the ports that its containers give a name to.
	Ports       []flow.NamedPort
	HostNetwork bool
}

// NewIndex returns an index that knows nothing.
func NewIndex() *Index { return New(Options{}) }

// New returns an index that knows nothing.
func New(o Options) *Index {
	x := &Index{
		options: o, clock: time.Now, addresses: newAddresses(), networks: newNetworks(),
		labels: make(labelSets), namespaces: make(map[string]*namespace), pods: make(map[podKey]*podRecord),
		nodes: make(map[string]*nodeRecord), svcs: make(map[podKey]*serviceRecord), slices: make(map[podKey]*sliceRecord),
		apiServer: &holder{rank: rankAPIServer, kind: "API server"}, owners: newOwners(),
		byName:     make(map[podKey]*networkingv1.NetworkPolicy),
		identities: identities{pods: make(map[uint64]int), tell: o.Changed}, remembered: make(remembered),
		problems: newProblems(), births: births{nodes: make(map[string]map[podKey]int64)},
	}
	x.services.init()
	x.slack.Store(int64(o.Slack))
	x.policies.Store(&[]*networkingv1.NetworkPolicy{})
	return x
}

// Endpoint says who held addr at a moment. An address that nobody held is
// outside if the cluster is known and has no such addresses, else unknown. The
// result is shared, the same for the same holder, and never nil.
func (x *Index) Endpoint(addr netip.Addr, at time.Time) *flow.Endpoint {
	t := at.UnixNano()
	e, since := x.addresses.answer(addr)
	if e == nil || t < since {
		e = x.judge(addr, t, t)
	}
	return e
}

// settling is how long news of a new holder takes at most where nothing is
// slow: kubelet tells a pod's address a moment after the pod has it.
// maxSettling bounds how long it is waited for where something is slow, or
// another pod has begun on the same node whose address is not told yet.
const (
	settling    = 2 * time.Second
	maxSettling = 10 * time.Second
)

// Holder says who held addr all the time from one moment to another: nobody
// where that was not one alone. news is how long after to the answer may
// still change; 0 if it will not.
func (x *Index) Holder(addr netip.Addr, from, to time.Time) (e *flow.Endpoint, news time.Duration) {
	a, b := from.UnixNano(), to.UnixNano()
	e, since := x.addresses.answer(addr)
	if e == nil || a < since {
		e = x.judge(addr, a, max(a, b))
	}
	news = x.pace(addr, e, b)
	if news == 0 {
		return e, 0
	}
	now := x.clock().UnixNano()
	if b <= x.currency.horizon(now) {
		return e, news
	}
	// What may have happened meanwhile is waited for, but not for ever.
	return x.doubted(e), max(news, min(time.Duration(now-b)+settling, maxSettling))
}

// pace is how long news about an answer may take.
func (x *Index) pace(addr netip.Addr, e *flow.Endpoint, at int64) time.Duration {
	switch {
	case x.exact.Load() || x.hosts.Load() == 0: // nobody tells anything
		return 0
	case e.Kind == flow.EndpointNode || e.Kind == flow.EndpointService || e.Kind == flow.EndpointAPIServer:
		return 0
	case e.Kind == flow.EndpointPod || e.Kind == flow.EndpointAmbiguous || x.networks.mayContain(addr):
		if e.Kind == flow.EndpointPod && x.births.near(e.Node, at) {
			return maxSettling
		}
		return min(settling+2*x.lateness.get(), maxSettling)
	}
	return 0
}

// judge looks at the claims of an address.
func (x *Index) judge(addr netip.Addr, a, b int64) *flow.Endpoint {
	switch v := decide(x.addresses.claims(addr), a, b); {
	case v.claim != nil:
		return v.claim.at(a).endpoint
	case v.ambiguous != nil:
		return x.ambiguous.get(candidates(v.ambiguous))
	}
	if x.options.Partial || special(addr) || x.hosts.Load() == 0 || x.networks.contain(addr) {
		return nobody
	}
	return outside
}

// Pod returns the pod that held addr at a moment; nil if no pod is known to have.
func (x *Index) Pod(addr netip.Addr, at time.Time) *Pod {
	t := at.UnixNano()
	if v := decide(x.addresses.claims(addr), t, t); v.claim != nil {
		return v.claim.at(t).pod
	}
	return nil
}

// Version changes whenever it becomes known that an address has another holder
// or that a holder has another name.
func (x *Index) Version() uint64 { return x.version.Load() }

// SetSlack says how far the clocks of the cluster differ, as it is measured:
// the times at which one holder follows another are that much less sure.
func (x *Index) SetSlack(d time.Duration) { x.slack.Store(int64(d)) }

// Policies returns the NetworkPolicies. They must not be changed.
func (x *Index) Policies() []*networkingv1.NetworkPolicy { return *x.policies.Load() }

// historyKept is how long the index remembers who held an address before, and
// maxEnded how many of such.
const (
	historyKept = 6 * time.Hour
	maxEnded    = 1 << 19
)

// endedClaims are the claims that are over, oldest first.
type endedClaims struct {
	queue   []endedClaim
	dropped uint64 // before their time, for want of room
}

type endedClaim struct {
	addr netip.Addr
	to   int64
}

// publish makes the claims of an address what readers see.
func (x *Index) publish(addr netip.Addr, claims []claim) {
	x.addresses.set(addr, claims)
	x.version.Add(1)
}

// beginClaim publishes a claim that is new.
func (x *Index) beginClaim(addr netip.Addr, c claim) {
	x.placed(addr, &c, 1)
	claims := with(x.addresses.claims(addr), c)
	for i := range claims {
		if o := &claims[i]; o.by != c.by && o.by.rank == c.by.rank && o.to > c.from && (o.rival == 0 || c.from < o.rival) {
			o.rival = c.from
		}
	}
	x.publish(addr, claims)
	x.checkConflict(addr)
}

// placed tells the networks of an address that a host has, or is forgotten.
func (x *Index) placed(addr netip.Addr, c *claim, d int) {
	switch {
	case c.network:
		x.networks.addPod(addr, d)
	case c.by.rank == rankHost:
		x.networks.addNode(addr, d)
	}
}

// endClaim publishes a claim that is over, and sees to it that it is forgotten
// in time.
func (x *Index) endClaim(addr netip.Addr, c claim) {
	x.publish(addr, with(x.addresses.claims(addr), c))
	x.ended.queue = append(x.ended.queue, endedClaim{addr, c.to})
	x.checkConflict(addr)
	x.forget(c.to)
}

// forget lets go of what ended too long ago.
func (x *Index) forget(now int64) {
	for len(x.ended.queue) > 0 {
		first := x.ended.queue[0]
		old := now-first.to > int64(historyKept)
		if !old && len(x.ended.queue) <= maxEnded {
			return
		}
		if !old {
			x.ended.dropped++
		}
		x.ended.queue = x.ended.queue[1:]
		x.drop(first.addr, first.to)
	}
}

// drop removes the claims of an address that were over at a time.
func (x *Index) drop(addr netip.Addr, to int64) {
	claims := x.addresses.claims(addr)
	kept := make([]claim, 0, len(claims))
	for _, c := range claims {
		switch {
		case c.open() || c.to > to:
			kept = append(kept, c)
		default:
			x.placed(addr, &c, -1)
		}
	}
	if len(kept) < len(claims) {
		x.publish(addr, kept)
	}
}

// ambiguousEnds keeps each answer of the kind ambiguous once.
type ambiguousEnds struct {
	mu   sync.RWMutex
	ends map[string]*flow.Endpoint
}

const maxAmbiguousEnds = 1 << 14

func (a *ambiguousEnds) get(names []string) *flow.Endpoint {
	key := strings.Join(names, "\x00")
	a.mu.RLock()
	e := a.ends[key]
	a.mu.RUnlock()
	if e != nil {
		return e
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if e := a.ends[key]; e != nil {
		return e
	}
	if a.ends == nil || len(a.ends) >= maxAmbiguousEnds {
		a.ends = make(map[string]*flow.Endpoint)
	}
	e = &flow.Endpoint{Kind: flow.EndpointAmbiguous, Candidates: names}
	a.ends[key] = e
	return e
}
