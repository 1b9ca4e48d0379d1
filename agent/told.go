package agent

import (
	"slices"

	"github.com/flowaudit/flowaudit/flow"
)

// maxPolicies bounds the policies that a flow names.
const maxPolicies = 16

// hint keeps what a plugin says of a flow's ends beside what we know of them.
func (f *openFlow) hint(o *flow.Told) {
	if o == nil {
		return
	}
	f.told.source, f.told.destination = orElse(f.told.source, o.Source), orElse(f.told.destination, o.Destination)
	if o.Direction != flow.DirectionUnknown {
		f.told.direction = o.Direction
	}
	f.Policies = addPolicies(f.Policies, o.Policies)
}

// counts reports whether a source's packets are to be added. Where the kernel
// and a plugin, or two plugins, tell of the same packets, the first one to tell
// of the flow counts them.
func (f *openFlow) counts(s flow.Source) bool {
	if s&flow.Plugins == 0 {
		s = flow.SourceNFLOG // the tap's and the rules' records are joined before
	}
	if f.counter == 0 {
		f.counter = s
	}
	return f.counter == s
}

// ends is what a plugin says of a flow's ends.
type ends struct {
	source, destination *flow.Endpoint
	direction           flow.Direction
}

// fill puts it where we know nothing.
func (e *ends) fill(f *flow.Flow) {
	if unknown(f.Source) {
		f.Source = orElse(e.source, f.Source)
	}
	if unknown(f.Destination) {
		f.Destination = orElse(e.destination, f.Destination)
	}
	// Two local pods make one flow, whose direction is the refusing side's.
	if e.direction != flow.DirectionUnknown && (f.Direction == flow.DirectionUnknown || f.Verdict == flow.VerdictDenied) {
		f.Direction = e.direction
	}
}

func unknown(e *flow.Endpoint) bool { return e == nil || e.Kind == flow.EndpointUnknown }

func orElse(e, other *flow.Endpoint) *flow.Endpoint {
	if e != nil {
		return e
	}
	return other
}

// addPolicies joins two sets. A slice that a flow has already given out is
// never written to.
func addPolicies(known, more []flow.PolicyRef) []flow.PolicyRef {
	for _, p := range more {
		if len(known) < maxPolicies && !slices.Contains(known, p) {
			known = append(slices.Clip(known), p)
		}
	}
	return known
}

// allowance is what plugins said of a pair's permitted connections. It waits
// as long as conntrack may: what that sees of the same connections is counted
// as it says, and the plugin adds only the policies. What conntrack does not
// see, such as eBPF's connections, is counted from here.
type allowance struct {
	told        flow.Told
	first, last int64
	connections uint64
	sources     flow.Source
	srcPort     uint16
	reason      flow.Reason // none if this is half an answer: an egress policy let it out
}

// permitted takes in that a plugin permitted a packet.
func (t *table) permitted(k *windowKey, o *flow.Observation) {
	a := t.allowances[*k]
	if a == nil {
		if len(t.allowances) >= t.MaxFlows {
			t.refused++
			return
		}
		a = &allowance{first: o.Time, srcPort: o.Original.SrcPort}
		t.allowances[*k] = a
	}
	a.first, a.last = min(a.first, o.Time), max(a.last, o.Time)
	a.sources |= o.Source
	switch {
	case o.Status&flow.StatusSeenReply != 0:
		a.reason = flow.ReasonReply
	case a.reason == flow.ReasonNone && t.byDestination(k, o):
		a.reason = flow.ReasonLogged
	}
	if told := o.Told; told != nil {
		a.told.Source, a.told.Destination = orElse(a.told.Source, told.Source), orElse(a.told.Destination, told.Destination)
		a.told.Policies = addPolicies(a.told.Policies, told.Policies)
		if a.told.Direction != flow.DirectionEgress {
			a.told.Direction = told.Direction
		}
	}
	if t.attempts.first(k, o.Original.SrcPort, o.Sequence, o.Time) {
		a.connections++
	}
}

// byDestination reports whether the destination's side let a packet in. That
// an egress policy let it out says nothing about what the other end does.
func (t *table) byDestination(k *windowKey, o *flow.Observation) bool {
	if o.Told != nil && o.Told.Direction != flow.DirectionUnknown {
		return o.Told.Direction == flow.DirectionIngress
	}
	return t.window.localPod(k.dst, o.Time) && !t.window.localPod(k.src, o.Time)
}

// settle gives the allowances to the flows of the window that ends. With all
// set none waits any longer.
func (t *table) settle(now int64, all bool) {
	for k, a := range t.allowances {
		f, counted := t.byConntrack(k)
		switch {
		case f != nil:
			t.join(f, a)
		case counted: // in the window before
		case t.Conntrack && !all && a.waits(now, int64(t.Unanswered)):
			continue
		default:
			t.countAllowance(k, a)
		}
		delete(t.allowances, k)
	}
	t.remember()
}

// waits reports whether conntrack may still tell of the connections: one
// without a reply is told after its grace time.
func (a *allowance) waits(now, grace int64) bool {
	return now-a.last < grace && now-a.first < 3*grace
}

// byConntrack finds the open flow in which conntrack counted a pair's
// connections, and whether it counted any in the window before.
func (t *table) byConntrack(k windowKey) (f *openFlow, counted bool) {
	_, counted = t.tracked[k]
	for _, v := range []flow.Verdict{flow.VerdictAllowed, flow.VerdictUnanswered} {
		k.verdict = v
		if i, ok := t.window.index[k]; ok && t.window.flows[i].Sources&flow.SourceConntrack != 0 {
			return &t.window.flows[i], counted
		}
	}
	return nil, counted
}

// join adds what a plugin said to what conntrack counted. That the
// destination's side let a connection in outweighs that nobody replied.
func (t *table) join(f *openFlow, a *allowance) {
	f.Sources |= a.sources
	f.hint(&a.told)
	if f.Verdict == flow.VerdictUnanswered && a.reason != flow.ReasonNone {
		f.Verdict, f.Reason = flow.VerdictAllowed, a.reason
	}
}

// countAllowance makes a flow of an allowance that only the plugin knows.
func (t *table) countAllowance(k windowKey, a *allowance) {
	if a.reason == flow.ReasonNone {
		k.verdict = flow.VerdictUnknown
	}
	f, _ := t.window.flow(&k, a.first, a.first)
	f.end = max(f.end, a.last)
	f.Sources |= a.sources
	f.Connections += a.connections
	if f.Reason == flow.ReasonNone {
		f.Reason = a.reason
		if a.reason == flow.ReasonNone {
			f.Reason = flow.ReasonLogged
		}
	}
	if f.SourcePort == 0 {
		f.SourcePort = a.srcPort
	}
	f.hint(&a.told)
}

// remember keeps which pairs conntrack counted in the window that ends: a
// plugin's log may tell of them a moment later.
func (t *table) remember() {
	clear(t.tracked)
	if !t.plugins {
		return
	}
	for k, i := range t.window.index {
		if t.window.flows[i].Sources&flow.SourceConntrack != 0 {
			k.verdict = flow.VerdictAllowed
			t.tracked[k] = struct{}{}
		}
	}
}
