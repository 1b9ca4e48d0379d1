package agent

import (
	"math"
	"net/netip"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// namer says who held an address. It answers with nil, or an endpoint of
// unknown kind, for an address that it does not know. Package kube's Index is
// one; a pod's own downward API is another.
type namer interface {
	Endpoint(addr netip.Addr, at time.Time) *flow.Endpoint
	// Holder says who held an address all the time from one moment to
	// another, and how long after it news may still change the answer.
	Holder(addr netip.Addr, from, to time.Time) (e *flow.Endpoint, news time.Duration)
	// Version changes whenever an answer may have.
	Version() uint64
}

// windowKey finds the open flow of a packet. Direction is not part of it:
// it follows from the addresses.
type windowKey struct {
	src, dst netip.Addr
	port     uint16
	srcPort  uint16 // with granularity connection only
	protocol flow.Protocol
	verdict  flow.Verdict
}

// openFlow is a flow whose window is still open.
type openFlow struct {
	flow.Flow
	start, end int64       // Unix nanoseconds
	counter    flow.Source // whose packets are counted
	told       ends
	// from and to bound when its connections began, which says whose they
	// are: the last counters of one may come when its address is another's.
	from, to int64
	version  uint64 // of the names when they were looked up
	steady   int64  // from then on the names are the same, as far as that version knows
	next     uint32 // the next flow of the key, with other ends; 0 if there is none
}

// window holds the flows of the current window. Its memory is reused from one
// window to the next.
type window struct {
	node  string
	names namer
	index map[windowKey]uint32 // the first flow of a key
	flows []openFlow           // from 1
}

func newWindow(node string, names namer) *window {
	return &window{node: node, names: names, index: make(map[windowKey]uint32), flows: make([]openFlow, 1)}
}

// flow finds or begins the open flow of a key: of something seen at a time, of
// a connection that began at another (Unix nanoseconds). fresh says that it was
// begun. An address that has another holder than before begins another flow.
func (w *window) flow(k *windowKey, at, began int64) (f *openFlow, fresh bool) {
	first, ok := w.index[*k]
	last := uint32(0)
	for i := first; ok && i != 0; i = w.flows[i].next {
		if f = &w.flows[i]; w.fits(f, began) {
			f.start, f.end = min(f.start, at), max(f.end, at)
			f.from, f.to = min(f.from, began), max(f.to, began)
			return f, false
		}
		last = i
	}
	w.flows = append(w.flows, openFlow{start: at, end: at, from: began, to: began})
	if i := uint32(len(w.flows) - 1); last != 0 {
		w.flows[last].next = i
	} else {
		w.index[*k] = i
	}
	f = &w.flows[len(w.flows)-1]
	f.Key = flow.Key{Protocol: k.protocol, Src: k.src, Dst: k.dst, Port: k.port, Verdict: k.verdict}
	w.look(f, began)
	f.Direction = w.direction(f.Source, f.Destination)
	return f, true
}

// look finds a flow's ends as they were when a connection began, and whether
// they have been the same since.
func (w *window) look(f *openFlow, began int64) {
	f.version = w.names.Version()
	when := time.Unix(0, began)
	f.Source, f.Destination = w.names.Endpoint(f.Src, when), w.names.Endpoint(f.Dst, when)
	if f.steady = math.MaxInt64; f.Source == w.names.Endpoint(f.Src, someday()) && f.Destination == w.names.Endpoint(f.Dst, someday()) {
		f.steady = began
	}
}

// someday is a time at which names are those known last.
func someday() time.Time { return time.Unix(1<<33, 0) }

// fits reports whether a connection that began at a time is of the same ends.
func (w *window) fits(f *openFlow, began int64) bool {
	v := w.names.Version()
	if f.version == v && began >= f.steady {
		return true
	}
	if f.version != v && f.to >= f.from {
		w.look(f, f.to) // it may be known better by now
	}
	when := time.Unix(0, began)
	return w.names.Endpoint(f.Src, when) == f.Source && w.names.Endpoint(f.Dst, when) == f.Destination
}

// direction is seen from the local pod. Where both pods are local it is
// egress, until a policy tells which side refused.
func (w *window) direction(src, dst *flow.Endpoint) flow.Direction {
	switch {
	case w.local(src):
		return flow.DirectionEgress
	case w.local(dst):
		return flow.DirectionIngress
	}
	return flow.DirectionUnknown
}

func (w *window) local(e *flow.Endpoint) bool {
	return e != nil && e.Node == w.node && (e.Kind == flow.EndpointPod || e.Kind == flow.EndpointNode)
}

// localPod reports whether addr belongs to a pod of this node.
func (w *window) localPod(a netip.Addr, at int64) bool {
	e := w.names.Endpoint(a, time.Unix(0, at))
	return e != nil && e.Kind == flow.EndpointPod && e.Node == w.node
}

// pod reports whether addr belongs to a pod of any node.
func (w *window) pod(a netip.Addr, at int64) bool {
	e := w.names.Endpoint(a, time.Unix(0, at))
	return e != nil && e.Kind == flow.EndpointPod
}

// take returns what the flow holds and leaves it empty, so that a later report
// of the same window adds to it and repeats nothing.
func (f *openFlow) take() flow.Flow {
	out := f.Flow
	out.Start, out.End = time.Unix(0, f.start), time.Unix(0, f.end)
	f.told.fill(&out)
	out.NamedFrom, out.NamedTo = time.Unix(0, f.from), time.Unix(0, f.to)
	f.Connections, f.TCPFlags, f.Counted = 0, 0, false
	f.Sent, f.Received = flow.Counters{}, flow.Counters{}
	f.SourcePort = 0
	f.start, f.end = math.MaxInt64, 0
	f.from, f.to = math.MaxInt64, math.MinInt64
	return out
}

// empty reports whether there is nothing to say about the flow.
func (f *openFlow) empty() bool {
	return f.Connections == 0 && f.Sent.Packets == 0 && f.Received.Packets == 0
}

// close ends the window and gives its flows.
func (w *window) close() []flow.Flow {
	out := make([]flow.Flow, 0, w.len())
	for i := range w.flows[1:] {
		if f := &w.flows[i+1]; !f.empty() {
			out = append(out, f.take())
		}
	}
	clear(w.index)
	clear(w.flows) // let go of the endpoints
	w.flows = w.flows[:1]
	return out
}

// takeKey gives what the flows of a key hold so far.
func (w *window) takeKey(k windowKey) []flow.Flow {
	var out []flow.Flow
	for i, ok := w.index[k]; ok && i != 0; i = w.flows[i].next {
		if f := &w.flows[i]; !f.empty() {
			out = append(out, f.take())
		}
	}
	return out
}

func (w *window) len() int { return len(w.flows) - 1 }
