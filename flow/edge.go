package flow

import (
	"net/netip"
	"time"
)

// EdgeKey tells edges apart: what policies can tell of a connection, and what
// became of it.
type EdgeKey struct {
	Cluster             string
	Source, Destination EdgeEnd
	// Seen is the source as the destination's node sees it, where SNAT changed
	// it; the zero Addr means that it did not.
	Seen       netip.Addr
	Protocol   Protocol
	Port       uint16 // after DNAT; ICMP type<<8 | code
	Direction  Direction
	Verdict    Verdict
	Expected   Verdict
	Assessment Assessment
	Caveat     Caveat
	Exempt     Exemption
}

// Exemption says why no policy can refuse an edge.
type Exemption uint8

// The exemptions.
const (
	ExemptNone    Exemption = iota
	ExemptSamePod           // a pod talks to itself
	ExemptOwnNode           // a pod and the node that runs it
)

var exemptionNames = [...]string{"", "same-pod", "own-node"}

// String returns the exemption as it appears in JSON; ExemptNone is empty.
func (x Exemption) String() string { return name(exemptionNames[:], uint8(x)) }

// EdgeEnd is one end of an edge. Pods of one identity are one end; everything
// else has an address.
type EdgeEnd struct {
	Kind      EndpointKind
	Identity  uint64 // of pods
	Namespace string
	Workload  Workload
	Node      string // of nodes
	// Prefix is the address of an end that is no pod, of full length unless
	// there were too many: then it is a /24 or /64 of them.
	Prefix netip.Prefix
}

// Aggregated reports whether the end stands for more than one address.
func (e *EdgeEnd) Aggregated() bool { return e.Prefix.IsValid() && !e.Prefix.IsSingleIP() }

// Edge is the traffic of one EdgeKey, in an hour or over a range of hours.
type Edge struct {
	EdgeKey
	First, Last time.Time
	Hours       int // in how many hours it was seen
	Connections uint64
	Sent        uint64 // bytes; 0 also where they were not counted
	Received    uint64
	// Labels of the ends' pods, without the volatile ones.
	SourceLabels, DestinationLabels map[string]string
}

// EdgeHour is what an edge counts by.
const EdgeHour = time.Hour

// EdgeBuilder makes the edges of one hour from flows that are summed up by
// key and node.
type EdgeBuilder struct {
	edges map[EdgeKey]*Edge
	// outside counts the addresses beyond the cluster that a workload spoke
	// with, by port.
	outside map[outsideKey]map[netip.Addr]struct{}
	order   []*Edge
	widened bool
}

type outsideKey struct {
	namespace string
	workload  Workload
	protocol  Protocol
	port      uint16
	egress    bool
}

// maxOutside is how many outside addresses a workload's port may have in an
// hour before they are joined to networks.
const maxOutside = 4096

// NewEdgeBuilder returns a builder without edges.
func NewEdgeBuilder() *EdgeBuilder {
	return &EdgeBuilder{edges: make(map[EdgeKey]*Edge), outside: make(map[outsideKey]map[netip.Addr]struct{})}
}

// Add takes in all that nodes report of one pair in the hour, one flow a key
// and node. Clusters may use the same addresses.
func (b *EdgeBuilder) Add(reports []Flow) {
	for len(reports) > 0 {
		cluster := reports[0].Cluster
		var others []Flow
		same := reports[:0:0]
		for _, f := range reports {
			if f.Cluster == cluster {
				same = append(same, f)
			} else {
				others = append(others, f)
			}
		}
		for _, f := range mergePair(same) {
			b.add(&f)
		}
		reports = others
	}
}

func (b *EdgeBuilder) add(f *Flow) {
	k := EdgeKey{
		Cluster: f.Cluster, Source: edgeEnd(f.Src, f.Source), Destination: edgeEnd(f.Dst, f.Destination), Protocol: f.Protocol, Port: f.Port,
		Direction: f.Direction, Verdict: f.Verdict, Expected: f.Expected, Assessment: f.Assessment, Caveat: f.Caveat,
		Exempt: exemption(f.Source, f.Destination),
	}
	if f.TranslatedSrc != f.Src {
		k.Seen = f.TranslatedSrc
	}
	b.countOutside(&k)
	e := b.edges[k]
	if e == nil {
		e = &Edge{EdgeKey: k, First: f.Start, Last: f.End, Hours: 1}
		if f.Source != nil {
			e.SourceLabels = f.Source.Labels
		}
		if f.Destination != nil {
			e.DestinationLabels = f.Destination.Labels
		}
		b.edges[k] = e
		b.order = append(b.order, e)
	}
	e.Join(&Edge{First: f.Start, Last: f.End, Connections: f.Connections, Sent: f.Sent.Bytes, Received: f.Received.Bytes})
}

// Join adds what another part of the same edge counted. Hours are not added:
// only the caller knows whether the parts are of different hours.
func (e *Edge) Join(o *Edge) {
	if o.First.Before(e.First) {
		e.First = o.First
	}
	if o.Last.After(e.Last) {
		e.Last = o.Last
	}
	e.Connections += o.Connections
	e.Sent += o.Sent
	e.Received += o.Received
}

func edgeEnd(addr netip.Addr, e *Endpoint) EdgeEnd {
	if e == nil {
		e = &Endpoint{}
	}
	out := EdgeEnd{Kind: e.Kind, Namespace: e.Namespace, Workload: e.Workload}
	if e.Kind == EndpointPod && e.Identity != 0 {
		out.Identity = e.Identity
		return out
	}
	out.Node = e.Node
	out.Prefix = netip.PrefixFrom(addr, addr.BitLen())
	return out
}

// exemption says whether both ends are one pod, or a pod and its node.
func exemption(src, dst *Endpoint) Exemption {
	if src == nil || dst == nil {
		return ExemptNone
	}
	switch {
	case src.Kind == EndpointPod && dst.Kind == EndpointPod:
		if src.Pod != "" && src.Pod == dst.Pod && src.Namespace == dst.Namespace {
			return ExemptSamePod
		}
	case src.Kind == EndpointPod && dst.Kind == EndpointNode, src.Kind == EndpointNode && dst.Kind == EndpointPod:
		if src.Node != "" && src.Node == dst.Node {
			return ExemptOwnNode
		}
	}
	return ExemptNone
}

// outsideOf returns the outside address of an edge, and what it is counted by.
func outsideOf(k *EdgeKey) (outsideKey, *EdgeEnd) {
	switch {
	case k.Destination.Kind == EndpointOutside:
		return outsideKey{k.Source.Namespace, k.Source.Workload, k.Protocol, k.Port, true}, &k.Destination
	case k.Source.Kind == EndpointOutside:
		return outsideKey{k.Destination.Namespace, k.Destination.Workload, k.Protocol, k.Port, false}, &k.Source
	}
	return outsideKey{}, nil
}

func (b *EdgeBuilder) countOutside(k *EdgeKey) {
	who, end := outsideOf(k)
	if end == nil {
		return
	}
	addrs := b.outside[who]
	if addrs == nil {
		addrs = make(map[netip.Addr]struct{})
		b.outside[who] = addrs
	}
	if addrs[end.Prefix.Addr()] = struct{}{}; len(addrs) > maxOutside {
		b.widened = true
	}
}

// Edges returns the hour's edges in the order in which they were first added,
// and empties the builder.
func (b *EdgeBuilder) Edges() []*Edge {
	out := b.order
	if b.widened {
		out = b.widen(out)
	}
	*b = *NewEdgeBuilder()
	return out
}

// widen joins the outside addresses of workloads that have too many.
func (b *EdgeBuilder) widen(edges []*Edge) []*Edge {
	joined := make(map[EdgeKey]*Edge)
	out := edges[:0]
	for _, e := range edges {
		who, end := outsideOf(&e.EdgeKey)
		if end == nil || len(b.outside[who]) <= maxOutside {
			out = append(out, e)
			continue
		}
		end.Prefix = network(end.Prefix.Addr())
		if first := joined[e.EdgeKey]; first != nil {
			first.Join(e)
			continue
		}
		joined[e.EdgeKey] = e
		out = append(out, e)
	}
	return out
}

// network is the /24 or /64 of an address.
func network(a netip.Addr) netip.Prefix {
	bits := 64
	if a.Is4() {
		bits = 24
	}
	return netip.PrefixFrom(a, bits).Masked()
}
