package collector

import (
	"net/netip"
	"time"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy"
)

// pods says what policies could see of the pod that held an address at a
// moment; ok is false if no pod is known to have held it.
type pods interface {
	PolicyPod(addr netip.Addr, at time.Time) (p policy.Pod, ok bool)
}

// judge says of each flow what the policies of its time say about it.
type judge struct {
	history *history
	classes *policy.Classes
	index   index
	pods    pods
	// otherPolicies reports whether another kind of policy than NetworkPolicy
	// is in use in the cluster, which this engine does not know.
	otherPolicies func() bool
}

// settleTime is how long a network plugin may take to program a change.
// Within it, traffic that policies deny says nothing about enforcement.
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

func (j *judge) flow(f *flow.Flow, ends map[end]policy.End) {
	state := j.history.at(f.Start)
	c := policy.Connection{
		Src: j.end(f.Src, f.Source, f.Start, state, ends), Dst: j.end(f.Dst, f.Destination, f.Start, state, ends),
		Protocol: f.Protocol, Port: f.Port,
	}
	if f.TranslatedSrc.IsValid() && f.TranslatedSrc != f.Src {
		c.Seen = j.end(f.TranslatedSrc, j.index.Endpoint(f.TranslatedSrc, f.Start), f.Start, state, ends)
	}
	d := state.Decide(&c)
	f.Expected = d.Verdict
	if len(f.Policies) == 0 { // what the network plugin itself names is better evidence
		f.Policies = d.Policies()
	}
	f.Assessment = flow.Assess(f.Verdict, f.Expected)
	j.excuse(f, &d)
}

// excuse says why an assessment is not held against anybody.
func (j *judge) excuse(f *flow.Flow, d *policy.Decision) {
	older := f.Caveat == flow.CaveatOlder || f.Connections == 0 // an earlier window counted it
	f.Caveat = flow.CaveatNone
	if f.Expected == flow.VerdictUnknown {
		f.Caveat = caveatOf(d)
		return
	}
	if j.otherPolicies() && (f.Assessment == flow.AssessmentUnenforced || f.Assessment == flow.AssessmentUnexplained) {
		f.Expected, f.Assessment, f.Caveat = flow.VerdictUnknown, flow.AssessmentUnknown, flow.CaveatOtherPolicy
		return
	}
	switch {
	case f.Assessment != flow.AssessmentUnenforced && f.Assessment != flow.AssessmentUnexplained:
		return
	case older && f.Assessment == flow.AssessmentUnenforced:
		f.Caveat = flow.CaveatOlder
	case j.history.changedWithin(f.Start.Add(-settleTime), f.End):
		f.Caveat = flow.CaveatRecent
	default:
		return
	}
	f.Assessment = flow.AssessmentUnknown
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
	if e.Kind == flow.EndpointAPIServer {
		out.Kind = flow.EndpointOutside // no policy selects it, and only ipBlocks match it
	}
	if e.Kind != flow.EndpointPod {
		return out
	}
	p, ok := j.pods.PolicyPod(addr, at)
	if !ok || p.Namespace != e.Namespace || p.Name != e.Pod {
		// Only the agent knew it. Its stable labels are all that is left.
		p = policy.Pod{Namespace: e.Namespace, Name: e.Pod, Labels: e.Labels, PortsUnknown: true, Node: e.Node}
	}
	p.NamespaceLabels = state.Namespaces()[e.Namespace]
	out.Class, out.Pod = j.classes.Of(&p), e.Pod
	return out
}
