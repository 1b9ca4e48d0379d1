package storetest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// Generator makes flows as a cluster does, the same for the same seed: edges
// by Zipf, uniform source ports, log-normal bytes, times in milliseconds.
type Generator struct {
	rnd   *rand.Rand
	zipf  *rand.Zipf
	edges []flow.Flow
}

// Sizes of the generated cluster.
const (
	Edges      = 50_000
	namespaces = 200
	pods       = 5_000
	nodes      = 50
	// deniedEdges of a thousand are refused ones.
	deniedEdges = 20
)

// NewGenerator makes the cluster of a seed.
func NewGenerator(seed uint64) *Generator {
	rnd := rand.New(rand.NewPCG(seed, seed))
	g := &Generator{rnd: rnd, zipf: rand.NewZipf(rnd, 1.1, 10, Edges-1)}
	ends := make([]*flow.Endpoint, pods)
	for i := range ends {
		ns := i % namespaces
		workload := fmt.Sprintf("app-%d", i/namespaces/3)
		ends[i] = &flow.Endpoint{
			Kind: flow.EndpointPod, Namespace: fmt.Sprintf("team-%d", ns), Pod: fmt.Sprintf("%s-%05d", workload, i),
			Workload: flow.Workload{Kind: "Deployment", Name: workload}, Node: fmt.Sprintf("node-%d", i%nodes),
			Identity: uint64(i/3) + 1, Labels: map[string]string{"app": workload, "tier": []string{"web", "api", "db"}[i%3]},
		}
	}
	for range Edges {
		g.edges = append(g.edges, g.edge(ends))
	}
	return g
}

// Addr is the address of pod i of the generated cluster.
func Addr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
}

func (g *Generator) edge(ends []*flow.Endpoint) flow.Flow {
	s, d := g.rnd.IntN(pods), g.rnd.IntN(pods)
	f := flow.Flow{
		Key: flow.Key{
			Protocol: flow.TCP, Src: Addr(s), Dst: Addr(d), Port: []uint16{80, 443, 8080, 3306, 5432, 6379, 9090}[g.rnd.IntN(7)],
			Verdict: flow.VerdictAllowed, Direction: flow.DirectionEgress,
		},
		Cluster: "bench", Node: ends[s].Node, Source: ends[s], Destination: ends[d], Reason: flow.ReasonReply, Sources: flow.SourceConntrack,
	}
	switch {
	case g.rnd.IntN(1000) < deniedEdges:
		f.Verdict, f.Reason, f.Direction, f.Node, f.Sources = flow.VerdictDenied, flow.ReasonLogged, flow.DirectionIngress, ends[d].Node, flow.SourceNFLOG
	case g.rnd.IntN(10) == 0:
		f.Protocol, f.Port = flow.UDP, 53
	case g.rnd.IntN(4) == 0:
		f.Service = &flow.Service{Addr: netip.AddrFrom4([4]byte{10, 96, byte(d >> 8), byte(d)}), Port: 80, Namespace: ends[d].Namespace, Name: ends[d].Workload.Name}
	}
	return f
}

// Flows makes n flows that start within a window from a time on.
func (g *Generator) Flows(n int, from time.Time, window time.Duration) []flow.Flow {
	out := make([]flow.Flow, n)
	for i := range out {
		f := &out[i]
		*f = g.edges[g.zipf.Uint64()]
		f.Start = from.Add(time.Duration(g.rnd.Int64N(window.Milliseconds())) * time.Millisecond)
		f.End = f.Start.Add(time.Duration(g.rnd.Int64N(10_000)) * time.Millisecond)
		f.SourcePort = uint16(32768 + g.rnd.IntN(28232))
		f.Connections = uint64(1 + g.rnd.IntN(3))
		f.Counted = true
		f.TCPFlags = flow.TCPSyn
		f.Sent = counters(g.rnd)
		f.Received = counters(g.rnd)
		if f.Verdict == flow.VerdictDenied {
			f.Received = flow.Counters{}
		}
	}
	return out
}

func counters(rnd *rand.Rand) flow.Counters {
	bytes := uint64(math.Exp(rnd.NormFloat64()*1.5+7)) + 40
	return flow.Counters{Packets: bytes/700 + 1, Bytes: bytes}
}
