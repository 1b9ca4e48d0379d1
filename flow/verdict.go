package flow

import (
	"fmt"
	"strings"
)

// Verdict says what happened to the traffic of a flow. The zero value is
// unknown: nothing is ever taken for allowed without evidence.
type Verdict uint8

// The verdicts.
const (
	VerdictUnknown    Verdict = iota
	VerdictAllowed            // a reply was seen, or the destination's node confirmed the connection
	VerdictDenied             // refused by a rule
	VerdictUnanswered         // sent, no reply, no refusal seen
)

var verdictNames = [...]string{"unknown", "allowed", "denied", "unanswered"}

// String returns the verdict in lower case, as it appears in JSON.
func (v Verdict) String() string { return name(verdictNames[:], uint8(v)) }

// ParseVerdict reads a verdict in any case. It also takes the words that users
// of Hubble and of firewalls know: forwarded and allow, dropped, deny and drop.
func ParseVerdict(s string) (Verdict, error) {
	switch strings.ToLower(s) {
	case "allowed", "allow", "forwarded", "accepted":
		return VerdictAllowed, nil
	case "denied", "deny", "dropped", "drop", "rejected":
		return VerdictDenied, nil
	case "unanswered":
		return VerdictUnanswered, nil
	case "unknown":
		return VerdictUnknown, nil
	}
	return VerdictUnknown, fmt.Errorf("parse verdict %q: want denied (dropped), allowed (forwarded), unanswered or unknown", s)
}

// Assessment compares a verdict with what the policies say.
type Assessment uint8

// The assessments.
const (
	AssessmentUnknown     Assessment = iota
	AssessmentAllowed                // allowed, as policy says
	AssessmentEnforced               // denied as policy says, or unanswered where policy denies
	AssessmentUnenforced             // policy denies, yet replies pass
	AssessmentUnexplained            // denied, though policy allows
	AssessmentUnanswered             // unanswered, though policy allows
)

var assessmentNames = [...]string{"unknown", "allowed", "enforced", "unenforced", "unexplained", "unanswered"}

// String returns the assessment in lower case, as it appears in JSON.
func (a Assessment) String() string { return name(assessmentNames[:], uint8(a)) }

// ParseAssessment reads an assessment in any case.
func ParseAssessment(s string) (Assessment, error) {
	for i, n := range assessmentNames {
		if strings.EqualFold(s, n) {
			return Assessment(i), nil
		}
	}
	return 0, fmt.Errorf("parse assessment %q: want one of %s", s, strings.Join(assessmentNames[:], ", "))
}

// Caveat says why an assessment is not more than it is: what makes the
// expected verdict unknown, or excuses traffic that the policies deny.
type Caveat uint8

// The caveats. From CaveatProtocol to CaveatSame they are reasons for an unknown
// expectation.
const (
	CaveatNone        Caveat = iota
	CaveatOlder              // the connection may be older than the policies, or its beginning was not seen
	CaveatRecent             // policies, labels or pods changed moments before
	CaveatOtherPolicy        // another kind of policy selects pods here
	CaveatProtocol           // NetworkPolicy defines TCP, UDP and SCTP only
	CaveatEnd                // it is not known what one end was
	CaveatInvalid            // a policy that could decide is not valid
	CaveatPort               // the destination's port or named ports are not known
	CaveatNamespace          // a namespace's labels are not known
	CaveatAddress            // an ipBlock could decide, and the address is not known
	CaveatSame               // it is not known whether both ends are one pod, or on one node
	CaveatNoEndpoint         // the Service has no endpoint at this port, so that nobody could answer
	// CaveatOtherCause: the policies deny it, but something else refused it, so
	// that it shows nothing about them.
	CaveatOtherCause
)

var caveatNames = [...]string{
	"", "older-connection", "recent-change", "other-policy",
	"protocol", "end", "invalid-policy", "port", "namespace-labels", "address", "same-pod-or-node", "no-endpoint", "other-cause",
}

// String returns the caveat as it appears in JSON; CaveatNone is empty.
func (c Caveat) String() string { return name(caveatNames[:], uint8(c)) }

// Caveats lists all but CaveatNone.
func Caveats() []Caveat { return codes[Caveat](len(caveatNames)) }

// ParseCaveat reads a caveat in any case.
func ParseCaveat(s string) (Caveat, error) { return parseCode[Caveat]("caveat", caveatNames[:], s) }

// Direction says from which side of the flow's pod the traffic ran.
type Direction uint8

// The directions.
const (
	DirectionUnknown Direction = iota
	DirectionEgress            // the local pod began it
	DirectionIngress           // the local pod was the destination
)

var directionNames = [...]string{"unknown", "egress", "ingress"}

// String returns the direction in lower case, as it appears in JSON.
func (d Direction) String() string { return name(directionNames[:], uint8(d)) }

// ParseDirection reads egress or ingress in any case.
func ParseDirection(s string) (Direction, error) {
	switch strings.ToLower(s) {
	case "egress":
		return DirectionEgress, nil
	case "ingress":
		return DirectionIngress, nil
	}
	return DirectionUnknown, fmt.Errorf("parse direction %q: want ingress or egress", s)
}

// Reason says why a flow has its verdict.
type Reason uint8

// The reasons.
const (
	ReasonNone      Reason = iota
	ReasonLogged           // a rule's own log record said so
	ReasonReply            // a reply was seen
	ReasonNoReply          // nothing came back within the grace time
	ReasonReset            // the only reply was a RST
	ReasonRefused          // an ICMP error said prohibited or unreachable
	ReasonPending          // still waiting when the agent had to stop
	ReasonConfirmed        // passed the destination node's netfilter rules
	// ReasonNeverConfirmed: the tap saw the attempt, and conntrack never
	// confirmed it. A policy is one cause; no route, a reverse path filter and a
	// Service without endpoints look alike.
	ReasonNeverConfirmed
	ReasonLost         // the events that would have told were lost
	ReasonUntracked    // the packets bypass connection tracking (NOTRACK)
	ReasonContradicted // a rule's log said refused, yet conntrack confirmed that very packet
	// The next are never-confirmed attempts of which it is known what refused them.
	ReasonNoRoute     // the node has no route to the destination, or does not forward
	ReasonReversePath // the reverse path filter (rp_filter): the way back leads elsewhere
	ReasonFirewall    // a rule of netfilter that no network plugin made; Policies names it
	ReasonNoEndpoint  // kube-proxy's rule for a Service without endpoints; Policies names it
	ReasonLostBetween // left the source's node, and did not come to the destination's
	ReasonLabelled    // the network plugin marked the connection as permitted
)

var reasonNames = [...]string{
	"", "logged", "reply", "no-reply", "reset", "refused", "pending", "confirmed", "never-confirmed", "lost", "untracked", "contradicted",
	"no-route", "reverse-path", "firewall", "no-endpoint", "lost-between", "labelled",
}

// String returns the reason as it appears in JSON; ReasonNone is empty.
func (r Reason) String() string { return name(reasonNames[:], uint8(r)) }

// Reasons lists all but ReasonNone.
func Reasons() []Reason { return codes[Reason](len(reasonNames)) }

// ParseReason reads a reason in any case.
func ParseReason(s string) (Reason, error) { return parseCode[Reason]("reason", reasonNames[:], s) }

// OtherCause reports whether something else than a policy is known to have refused.
func (r Reason) OtherCause() bool { return r >= ReasonNoRoute && r <= ReasonNoEndpoint }

// codes lists the codes from 1 to below n.
func codes[T ~uint8](n int) []T {
	out := make([]T, 0, n)
	for c := 1; c < n; c++ {
		out = append(out, T(c))
	}
	return out
}

func parseCode[T ~uint8](what string, names []string, s string) (T, error) {
	for i, n := range names {
		if n != "" && strings.EqualFold(s, n) {
			return T(i), nil
		}
	}
	return 0, fmt.Errorf("parse %s %q: want one of %s", what, s, strings.Join(names[1:], ", "))
}

// Source names a kind of event source. It is one bit, so that a flow can say
// which sources it was seen by.
type Source uint8

// The sources.
const (
	SourceNFLOG     Source = 1 << iota // NFLOG records of the enforcing rules
	SourceConntrack                    // conntrack events and dumps
	SourceTap                          // our own rules, before any policy
	SourceHubble                       // Cilium's Hubble
	SourceFelix                        // the flows that Calico's Felix reports
	SourceLog                          // the log file of a network plugin
	SourceKernelLog                    // LOG rules, by the kernel's log
)

// Plugins are the sources by which a network plugin tells what it decided.
const Plugins = SourceHubble | SourceFelix | SourceLog | SourceKernelLog

// String lists the set's sources, joined by commas.
func (s Source) String() string { return strings.Join(s.Names(), ",") }

// Names lists the sources of a set.
func (s Source) Names() []string {
	var names []string
	for i, n := range [...]string{"nflog", "conntrack", "tap", "hubble", "felix", "log", "kernel-log"} {
		if s&(1<<i) != 0 {
			names = append(names, n)
		}
	}
	return names
}

func name(names []string, i uint8) string {
	if int(i) < len(names) {
		return names[i]
	}
	return fmt.Sprintf("%d", i)
}
