package agent

import (
	"math"
	"net/netip"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// namer says who held an address at a moment. It returns nil, or an endpoint
// of unknown kind, for an address that it does not know. Package kube's Index
// is one; a pod's own downward API is another.
type namer interface {
	Endpoint(addr netip.Addr, at time.Time) *flow.Endpoint
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
	start, end int64 // Unix nanoseconds
}

// window holds the flows of the current window. Its memory is reused from one
// window to the next.
type window struct {
	node  string
	names namer
	index map[windowKey]uint32
	flows []openFlow
}

func newWindow(node string, names namer) *window {
	return &window{node: node, names: names, index: make(map[windowKey]uint32)}
}

// flow finds or begins the open flow of a key at a time (Unix nanoseconds).
// fresh says that it was begun. Names are looked up then, at the packet's
// time: a pod's address may have another holder later.
func (w *window) flow(k *windowKey, at int64) (f *openFlow, fresh bool) {
	if i, ok := w.index[*k]; ok {
		f = &w.flows[i]
		f.start, f.end = min(f.start, at), max(f.end, at)
		return f, false
	}
	w.index[*k] = uint32(len(w.flows))
	w.flows = append(w.flows, openFlow{start: at, end: at})
	f = &w.flows[len(w.flows)-1]
	f.Key = flow.Key{Protocol: k.protocol, Src: k.src, Dst: k.dst, Port: k.port, Verdict: k.verdict}
	when := time.Unix(0, at)
	f.Source = w.names.Endpoint(k.src, when)
	f.Destination = w.names.Endpoint(k.dst, when)
	f.Direction = w.direction(f.Source, f.Destination)
	return f, true
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
	f.Connections, f.TCPFlags, f.Counted = 0, 0, false
	f.Sent, f.Received = flow.Counters{}, flow.Counters{}
	f.SourcePort = 0
	f.start, f.end = math.MaxInt64, 0
	return out
}

// empty reports whether there is nothing to say about the flow.
func (f *openFlow) empty() bool {
	return f.Connections == 0 && f.Sent.Packets == 0 && f.Received.Packets == 0
}

// close ends the window and gives its flows.
func (w *window) close() []flow.Flow {
	out := make([]flow.Flow, 0, len(w.flows))
	for i := range w.flows {
		if f := &w.flows[i]; !f.empty() {
			out = append(out, f.take())
		}
	}
	clear(w.index)
	clear(w.flows) // let go of the endpoints
	w.flows = w.flows[:0]
	return out
}

func (w *window) len() int { return len(w.flows) }
