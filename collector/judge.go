package collector

import (
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/kube"
	"github.com/flowaudit/flowaudit/policy"
	"github.com/flowaudit/flowaudit/policy/other"
)

// judge says of each flow what the policies of its time say about it.
type judge struct {
	history *history
	classes *policy.Classes
	index   podIndex
	// others are the cluster's policies of other kinds than NetworkPolicy,
	// which this engine does not judge by; nil if there are none.
	others atomic.Pointer[other.Set]
}

// podIndex says what policies could see of the pod that held an address.
type podIndex interface {
	Endpoint(addr netip.Addr, at time.Time) *flow.Endpoint
	Pod(addr netip.Addr, at time.Time) *kube.Pod // nil if no pod surely held it
	// Backends says where an address and port of a Service lead now.
	Backends(addr netip.Addr, port uint16, protocol flow.Protocol) []netip.AddrPort
}

// settleTime is how long a network plugin may take to program a change. Within
// it, traffic that the change concerns says nothing about enforcement.
const settleTime = 30 * time.Second

// flows judges flows in place. Those of one batch share endpoints by pointer,
// so that an end is looked at once a batch.
func (j *judge) flows(flows []flow.Flow) {
	ends := make(map[end]policy.End)
	for i := range flows {
		j.flow(&flows[i], ends)
	}
}

// end is what tells the ends of a batch's flows apart.
type end struct {
	addr     netip.Addr
	endpoint *flow.Endpoint
}

func (e *end) kind() flow.EndpointKind {
	if e.endpoint == nil {
		return flow.EndpointUnknown
	}
	return e.endpoint.Kind
}

func (j *judge) flow(f *flow.Flow, ends map[end]policy.End) {
	at, _ := f.Named() // when its connections began
	state := j.history.at(at)
	c := j.connection(f, at, state, ends)
	d := state.Decide(&c)
	f.Expected = d.Verdict
	if len(f.Policies) == 0 { // what the network plugin itself names is better evidence
		f.Policies = d.Policies()
	}
	f.Assessment = flow.Assess(f.Verdict, f.Expected)
	j.excuse(f, at, &d)
}

// connection describes what a flow is about to the policies of a state.
func (j *judge) connection(f *flow.Flow, at time.Time, state *policy.Snapshot, ends map[end]policy.End) policy.Connection {
	c := policy.Connection{
		Src: j.end(f.Src, f.Source, at, state, ends), Dst: j.end(f.Dst, f.Destination, at, state, ends),
		Protocol: f.Protocol, Port: f.Port,
	}
	if f.TranslatedSrc.IsValid() && f.TranslatedSrc != f.Src {
		c.Seen = j.end(f.TranslatedSrc, j.index.Endpoint(f.TranslatedSrc, at), at, state, ends)
	}
	return c
}

// excuse says why an assessment is not held against anybody.
func (j *judge) excuse(f *flow.Flow, at time.Time, d *policy.Decision) {
	older := f.Caveat == flow.CaveatOlder || f.Connections == 0 // an earlier window counted it
	f.Caveat = flow.CaveatNone
	if j.nowhere(f) {
		f.Assessment, f.Caveat = flow.AssessmentUnknown, flow.CaveatNoEndpoint
		return
	}
	if f.Expected == flow.VerdictUnknown {
		f.Caveat = caveatOf(d)
		return
	}
	if f.Reason.OtherCause() {
		// What refused it is known, and excuses nothing; that the policies deny
		// it as well is not shown.
		if f.Assessment == flow.AssessmentEnforced {
			f.Assessment, f.Caveat = flow.AssessmentUnknown, flow.CaveatOtherCause
		}
		return
	}
	switch {
	case f.Assessment != flow.AssessmentUnenforced && f.Assessment != flow.AssessmentUnexplained:
		return
	case j.otherwise(f, at):
		f.Expected, f.Caveat = flow.VerdictUnknown, flow.CaveatOtherPolicy
	case older && f.Assessment == flow.AssessmentUnenforced:
		f.Caveat = flow.CaveatOlder
	case j.unsettled(f, at):
		f.Caveat = flow.CaveatRecent
	default:
		return
	}
	f.Assessment = flow.AssessmentUnknown
}

// otherwise reports whether a policy of another kind selects an end of a flow,
// or may.
func (j *judge) otherwise(f *flow.Flow, at time.Time) bool {
	others := j.others.Load()
	if others.Empty() {
		return false
	}
	for _, e := range []end{{f.Src, f.Source}, {f.Dst, f.Destination}} {
		switch kind := e.kind(); kind {
		case flow.EndpointPod:
			p := j.pod(e.addr, e.endpoint, at, j.history.at(at))
			if len(others.Selecting(&other.Pod{Namespace: p.Namespace, NamespaceLabels: p.NamespaceLabels, Labels: p.Labels})) > 0 {
				return true
			}
		case flow.EndpointNode:
			if len(others.SelectingNodes()) > 0 {
				return true
			}
		case flow.EndpointUnknown, flow.EndpointAmbiguous:
			return true
		}
	}
	return false
}

// nowhere reports whether nobody could answer a flow: its destination is still a
// Service's own address, which leads to no endpoint. What endpoints there were
// is not kept, so that a flow of long ago is not asked about.
func (j *judge) nowhere(f *flow.Flow) bool {
	refused := f.Verdict == flow.VerdictDenied || f.Verdict == flow.VerdictUnanswered
	if !refused || f.Expected == flow.VerdictDenied || f.Destination == nil || f.Destination.Kind != flow.EndpointService {
		return false
	}
	return time.Since(f.End) < settleTime && len(j.index.Backends(f.Dst, f.Port, f.Protocol)) == 0
}

// maxStates is how many changes of policies a flow is judged by. In a time with
// more, nothing is settled.
const maxStates = 64

// unsettled reports whether a change moments before explains a flow: policies
// that said something else about it, or a pod that began or got other labels.
func (j *judge) unsettled(f *flow.Flow, at time.Time) bool {
	since := at.Add(-settleTime)
	if j.changed(f.Src, f.Source, since, f.End) || j.changed(f.Dst, f.Destination, since, f.End) {
		return true
	}
	states := j.history.within(since, f.End)
	if len(states) == 1 {
		return false
	}
	if len(states) > maxStates {
		return true
	}
	return slices.ContainsFunc(states, func(s *policy.Snapshot) bool {
		c := j.connection(f, at, s, make(map[end]policy.End))
		d := s.Decide(&c)
		return d.Verdict != f.Expected
	})
}

// settled reports whether a flow's destination has been what it is for a while,
// so that its node knew it when the flow came.
func (j *judge) settled(f *flow.Flow) bool {
	return !j.changed(f.Dst, f.Destination, f.Start.Add(-settleTime), f.End)
}

// changed reports whether a pod is not what it was. What it was is not known
// before it surely had its address.
func (j *judge) changed(addr netip.Addr, e *flow.Endpoint, since, until time.Time) bool {
	if e == nil || e.Kind != flow.EndpointPod {
		return false
	}
	before, after := j.index.Pod(addr, since), j.index.Pod(addr, until)
	if before == nil || after == nil {
		return true
	}
	return before != after && (before.Namespace != after.Namespace || before.Pod != after.Pod || !maps.Equal(before.AllLabels, after.AllLabels))
}

// caveatOf is why a decision is unknown.
func caveatOf(d *policy.Decision) flow.Caveat {
	for _, s := range []*policy.Side{&d.Egress, &d.Ingress} {
		if s.Verdict != flow.VerdictUnknown {
			continue
		}
		switch s.Reason {
		case policy.ReasonProtocol:
			return flow.CaveatProtocol
		case policy.ReasonInvalid:
			return flow.CaveatInvalid
		case policy.ReasonPort:
			return flow.CaveatPort
		case policy.ReasonNamespace:
			return flow.CaveatNamespace
		case policy.ReasonAddress:
			return flow.CaveatAddress
		case policy.ReasonSame:
			return flow.CaveatSame
		}
		return flow.CaveatEnd
	}
	return flow.CaveatEnd
}

// end describes one end of a flow to the policies.
func (j *judge) end(addr netip.Addr, e *flow.Endpoint, at time.Time, state *policy.Snapshot, ends map[end]policy.End) policy.End {
	key := end{addr, e}
	p, ok := ends[key]
	if !ok {
		p = j.describe(addr, e, at, state)
		ends[key] = p
	}
	return p
}

func (j *judge) describe(addr netip.Addr, e *flow.Endpoint, at time.Time, state *policy.Snapshot) policy.End {
	if e == nil {
		return policy.End{Addr: addr}
	}
	out := policy.End{Kind: e.Kind, Addr: addr, Node: e.Node}
	if e.Kind != flow.EndpointPod {
		return out
	}
	out.Class, out.Pod = j.classes.Of(j.pod(addr, e, at, state)), e.Pod
	return out
}

// pod is what policies could see of an endpoint that is a pod.
func (j *judge) pod(addr netip.Addr, e *flow.Endpoint, at time.Time, state *policy.Snapshot) *policy.Pod {
	// Where only the agent knew the pod, its stable labels are all that is left.
	p := &policy.Pod{Namespace: e.Namespace, Name: e.Pod, Labels: e.Labels, PortsUnknown: true, Node: e.Node}
	if known := j.index.Pod(addr, at); known != nil && known.Namespace == e.Namespace && known.Pod == e.Pod {
		p.Labels, p.Ports, p.PortsUnknown = known.AllLabels, known.Ports, false
	}
	p.NamespaceLabels = state.NamespaceLabels(e.Namespace)
	return p
}
