package policy

import (
	"fmt"

	"github.com/flowaudit/flowaudit/flow"
)

// Decision says what the policies say about a connection. Its slices are
// shared and must not be changed.
type Decision struct {
	// Verdict is denied if either side denies, else unknown if either is, else
	// allowed. It is never unanswered.
	Verdict flow.Verdict
	Egress  Side // by the policies that select the source
	Ingress Side // by the policies that select the destination
	// Revision is that of the policies that were asked.
	Revision uint64
}

// Policies names what decided: of a denial the isolating policies of each side
// that denies; else the rules that allow. It is empty where no policy had a say.
func (d *Decision) Policies() []flow.PolicyRef {
	var refs []flow.PolicyRef
	for _, s := range []*Side{&d.Egress, &d.Ingress} {
		switch {
		case d.Verdict != flow.VerdictDenied:
			refs = append(refs, s.Allowed...)
		case s.Verdict == flow.VerdictDenied:
			refs = append(refs, s.By...)
		}
	}
	return refs
}

// Side is one side's part of a decision.
type Side struct {
	Verdict flow.Verdict
	Reason  Reason
	// Isolated says that a policy selects the pod for this direction, for certain.
	Isolated bool
	// By are the policies that isolate the pod, and those of which it is not
	// known whether they do. Sorted by name.
	By []flow.PolicyRef
	// Allowed are all rules that allow the connection, sorted by policy and
	// rule ("ingress[0]").
	Allowed []flow.PolicyRef
}

// Reason says why a side has its verdict.
type Reason uint8

// The reasons. Those from ReasonProtocol on are reasons for unknown; a side
// with several has the first.
const (
	ReasonNone        Reason = iota
	ReasonNotPod             // allowed: policies select pods only
	ReasonNotIsolated        // allowed: no policy selects the pod for this direction
	ReasonSamePod            // allowed: a pod reaches itself
	ReasonOwnNode            // allowed: a pod and the node that runs it reach each other
	ReasonRule               // allowed by a rule
	ReasonNoRule             // denied: isolated, and no rule allows it
	ReasonProtocol           // NetworkPolicy defines TCP, UDP and SCTP only
	ReasonEnd                // it is not known what one end is
	ReasonInvalid            // a policy that could decide is not valid; see Problem
	ReasonPort               // the destination's port or named ports are not known
	ReasonNamespace          // a namespace's labels are not known
	ReasonAddress            // an ipBlock could decide, and the address is not known
	ReasonSame               // it is not known whether both ends are one pod, or on one node
)

var reasonNames = [...]string{
	"", "not-a-pod", "not-isolated", "same-pod", "own-node", "rule", "no-rule",
	"protocol", "end", "invalid-policy", "port", "namespace-labels", "address", "same-pod-or-node",
}

// String returns the reason as it appears in JSON; ReasonNone is empty.
func (r Reason) String() string {
	if int(r) < len(reasonNames) {
		return reasonNames[r]
	}
	return fmt.Sprintf("%d", r)
}
