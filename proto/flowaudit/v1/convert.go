package flowauditv1

import (
	"cmp"
	"fmt"
	"net/netip"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// FromBatch turns a batch into its message.
func FromBatch(b *flow.Batch) *Batch {
	return &Batch{
		Key:   FromBatchKey(b.Key),
		Node:  b.Node,
		Scope: Scope(b.Scope),
		Start: millis(b.Start),
		End:   millis(b.End),
		Flows: FromFlows(b.Flows),
		Gaps:  mapSlice(b.Gaps, FromGap),
		Agent: &AgentStatus{
			Version: b.Agent.Version, Started: millis(b.Agent.Started),
			Observations: b.Agent.Observations, Malformed: b.Agent.Malformed, Connections: b.Agent.Connections,
			Sources: b.Agent.Sources, Limits: b.Agent.Limits, Notes: b.Agent.Notes, Skew: b.Agent.Skew.Milliseconds(), Contradicted: b.Agent.Contradicted,
		},
	}
}

// ToBatch reads a batch back. Each flow gets the batch's cluster and node
// where it names none. A gap whose times cannot be is left out and counted in
// invalid. See Flows.ToFlows for the other results.
func (x *Batch) ToBatch() (b flow.Batch, invalid int, firstInvalid, err error) {
	key := x.GetKey()
	if key.GetInstance() == "" || key.GetSequence() == 0 || x.GetNode() == "" {
		return b, 0, nil, &FieldError{-1, "key", "a batch needs instance, sequence and node"}
	}
	if x.Start > x.End || x.Start < minTime || x.End > maxTime {
		return b, 0, nil, &FieldError{-1, "end", fmt.Sprintf("%d to %d ms is no time range", x.Start, x.End)}
	}
	b = flow.Batch{
		Key: ToBatchKey(key), Node: x.Node, Scope: flow.Scope(x.Scope),
		Start: fromMillis(x.Start), End: fromMillis(x.End),
	}
	if a := x.Agent; a != nil {
		b.Agent = flow.AgentStatus{
			Version: a.Version, Started: fromMillis(a.Started), Observations: a.Observations, Malformed: a.Malformed,
			Connections: a.Connections, Sources: a.Sources, Limits: a.Limits, Notes: a.Notes, Skew: time.Duration(a.Skew) * time.Millisecond, Contradicted: a.Contradicted,
		}
	}
	b.Flows, invalid, firstInvalid, err = x.Flows.toFlows(true)
	for i := range b.Flows {
		f := &b.Flows[i]
		if f.Cluster == "" {
			f.Cluster = b.Key.Cluster
		}
		if f.Node == "" {
			f.Node = b.Node
		}
	}
	for i, g := range x.Gaps {
		if g.Start != 0 && g.Start < minTime || g.Start > maxTime || g.End < minTime || g.End > maxTime {
			invalid++
			firstInvalid = cmp.Or[error](firstInvalid, &FieldError{-1, fmt.Sprintf("gaps[%d]", i), fmt.Sprintf("%d to %d ms is no time of this age", g.Start, g.End)})
			continue
		}
		b.Gaps = append(b.Gaps, ToGap(g))
	}
	return b, invalid, firstInvalid, err
}

// FromBatchKey turns a key into its message.
func FromBatchKey(k flow.BatchKey) *BatchKey {
	return &BatchKey{Cluster: k.Cluster, Instance: k.Instance, Epoch: k.Epoch, Sequence: k.Sequence}
}

// ToBatchKey reads a key back; nil gives the zero key.
func ToBatchKey(k *BatchKey) flow.BatchKey {
	return flow.BatchKey{Cluster: k.GetCluster(), Instance: k.GetInstance(), Epoch: k.GetEpoch(), Sequence: k.GetSequence()}
}

// FromGap turns a gap into its message.
func FromGap(g flow.Gap) *Gap {
	return &Gap{Node: g.Node, Source: g.Source, Kind: GapKind(g.Kind), Start: millis(g.Start), End: millis(g.End), Lost: g.Lost, Detail: g.Detail}
}

// ToGap reads a gap back.
func ToGap(g *Gap) flow.Gap {
	return flow.Gap{
		Node: g.GetNode(), Source: g.GetSource(), Kind: flow.GapKind(g.GetKind()),
		Start: fromMillis(g.GetStart()), End: fromMillis(g.GetEnd()), Lost: g.GetLost(), Detail: g.GetDetail(),
	}
}

// FromCoverage turns coverage into its message.
func FromCoverage(c flow.Coverage) *Coverage {
	return &Coverage{Since: millis(c.Since), Until: millis(c.Until), Nodes: mapSlice(c.Nodes, func(n flow.NodeCoverage) *NodeCoverage {
		return &NodeCoverage{Node: n.Node, Scope: Scope(n.Scope), Covered: n.Covered.Milliseconds(), Gaps: mapSlice(n.Gaps, FromGap), Limits: n.Limits}
	})}
}

// ToCoverage reads coverage back; nil gives the zero Coverage.
func ToCoverage(c *Coverage) flow.Coverage {
	return flow.Coverage{Since: fromMillis(c.GetSince()), Until: fromMillis(c.GetUntil()), Nodes: mapSlice(c.GetNodes(), func(n *NodeCoverage) flow.NodeCoverage {
		return flow.NodeCoverage{
			Node: n.GetNode(), Scope: flow.Scope(n.GetScope()), Covered: time.Duration(n.GetCovered()) * time.Millisecond,
			Gaps: mapSlice(n.GetGaps(), ToGap), Limits: n.GetLimits(),
		}
	})}
}

// FromFilter turns a filter into its message.
func FromFilter(f flow.Filter) *Filter {
	return &Filter{Since: millis(f.Since), Until: millis(f.Until), Match: fromSelector(f.Match), Not: fromSelector(f.Not)}
}

func fromSelector(s flow.Selector) *Selector {
	return &Selector{
		Either: fromEnds(s.Either), From: fromEnds(s.From), To: fromEnds(s.To),
		Ports:       convert[uint32](s.Ports),
		Protocols:   convert[uint32](s.Protocols),
		Verdicts:    convert[Verdict](s.Verdicts),
		Directions:  convert[Direction](s.Directions),
		Assessments: convert[Assessment](s.Assessments),
		Reasons:     convert[Reason](s.Reasons),
		Caveats:     convert[Caveat](s.Caveats),
		RefusedAt:   convert[Place](s.RefusedAt),
		Nodes:       s.Nodes, Clusters: s.Clusters,
	}
}

func fromEnds(e flow.Ends) *Ends {
	return &Ends{
		Namespaces: e.Namespaces,
		Pods:       mapSlice(e.Pods, func(p flow.PodPrefix) *PodPrefix { return &PodPrefix{Namespace: p.Namespace, Name: p.Name} }),
		Workloads: mapSlice(e.Workloads, func(w flow.WorkloadName) *WorkloadName {
			return &WorkloadName{Namespace: w.Namespace, Kind: w.Kind, Name: w.Name}
		}),
		Prefixes: mapSlice(e.Prefixes, netip.Prefix.String),
		Labels: mapSlice(e.Labels, func(t flow.LabelTerm) *LabelTerm {
			return &LabelTerm{Key: t.Key, Op: LabelOp(t.Op), Values: t.Values}
		}),
	}
}

// ToFilter reads a filter back; nil matches everything. The error names the
// field that cannot be used.
func ToFilter(f *Filter) (flow.Filter, error) {
	match, err := toSelector(f.GetMatch())
	if err != nil {
		return flow.Filter{}, err
	}
	not, err := toSelector(f.GetNot())
	if err != nil {
		return flow.Filter{}, err
	}
	return flow.Filter{Since: fromMillis(f.GetSince()), Until: fromMillis(f.GetUntil()), Match: match, Not: not}, nil
}

func toSelector(s *Selector) (out flow.Selector, err error) {
	for _, e := range [...]struct {
		in  *Ends
		out *flow.Ends
	}{{s.GetEither(), &out.Either}, {s.GetFrom(), &out.From}, {s.GetTo(), &out.To}} {
		if *e.out, err = toEnds(e.in); err != nil {
			return out, err
		}
	}
	for _, n := range s.GetPorts() {
		if n > 65535 {
			return out, &FieldError{-1, "ports", fmt.Sprintf("%d is no port", n)}
		}
	}
	for _, n := range s.GetProtocols() {
		if n > 255 {
			return out, &FieldError{-1, "protocols", fmt.Sprintf("%d is no IP protocol", n)}
		}
	}
	out.Ports = convert[uint16](s.GetPorts())
	out.Protocols = convert[flow.Protocol](s.GetProtocols())
	out.Verdicts = convert[flow.Verdict](s.GetVerdicts())
	out.Directions = convert[flow.Direction](s.GetDirections())
	out.Assessments = convert[flow.Assessment](s.GetAssessments())
	out.Reasons = convert[flow.Reason](s.GetReasons())
	out.Caveats = convert[flow.Caveat](s.GetCaveats())
	out.RefusedAt = convert[flow.Place](s.GetRefusedAt())
	out.Nodes, out.Clusters = s.GetNodes(), s.GetClusters()
	return out, nil
}

func toEnds(e *Ends) (flow.Ends, error) {
	out := flow.Ends{
		Namespaces: e.GetNamespaces(),
		Pods: mapSlice(e.GetPods(), func(p *PodPrefix) flow.PodPrefix {
			return flow.PodPrefix{Namespace: p.GetNamespace(), Name: p.GetName()}
		}),
		Workloads: mapSlice(e.GetWorkloads(), func(w *WorkloadName) flow.WorkloadName {
			return flow.WorkloadName{Namespace: w.GetNamespace(), Kind: w.GetKind(), Name: w.GetName()}
		}),
		Labels: mapSlice(e.GetLabels(), func(t *LabelTerm) flow.LabelTerm {
			return flow.LabelTerm{Key: t.GetKey(), Op: flow.LabelOp(t.GetOp()), Values: t.GetValues()}
		}),
	}
	for _, s := range e.GetPrefixes() {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return out, &FieldError{-1, "prefixes", err.Error()}
		}
		out.Prefixes = append(out.Prefixes, p.Masked())
	}
	return out, nil
}

// millis gives Unix milliseconds, 0 for the zero time.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

func mapSlice[A, B any](in []A, f func(A) B) []B {
	if len(in) == 0 {
		return nil
	}
	out := make([]B, len(in))
	for i, v := range in {
		out[i] = f(v)
	}
	return out
}

func convert[B, A ~int32 | ~uint32 | ~uint16 | ~uint8](in []A) []B {
	return mapSlice(in, func(v A) B { return B(v) })
}
