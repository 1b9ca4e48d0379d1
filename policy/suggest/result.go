package suggest

import (
	"slices"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/flowaudit/flowaudit/policy/history"
	"github.com/flowaudit/flowaudit/policy/replay"
	"github.com/flowaudit/flowaudit/policy/unused"
)

// Result is a suggestion, and all there is to know before it is applied.
type Result struct {
	Since time.Time `json:"since"`
	Until time.Time `json:"until"`
	Mode  Mode      `json:"mode"`
	// Policies are sorted by namespace and name.
	Policies []Policy `json:"policies"`
	// Delete are the policies that mode replace removes.
	Delete []replay.Name `json:"delete,omitempty"`
	// Notices are what a person has to know or to decide.
	Notices []Notice `json:"notices,omitempty"`
	// SetAside is traffic from which nothing was learnt.
	SetAside []SetAside `json:"set_aside,omitempty"`
	// Unused are rules that mode tighten drops.
	Unused []unused.Rule `json:"unused,omitempty"`
	// Ready says that every workload is.
	Ready     bool        `json:"ready"`
	Readiness []Readiness `json:"readiness"`
	// Blind is how much of the time was not watched, from 0 to 1.
	Blind float64 `json:"blind"`
	Proof Proof   `json:"proof"`
}

// Policy is one suggested policy.
type Policy struct {
	Object    *networkingv1.NetworkPolicy `json:"object"`
	Workloads []string                    `json:"workloads,omitempty"` // Deployment shop/web
	Rules     []Rule                      `json:"rules,omitempty"`
}

// Rule says why a rule of a policy is there.
type Rule struct {
	Direction string     `json:"direction"` // ingress or egress
	Index     int        `json:"index"`
	Reasons   []string   `json:"reasons,omitempty"`
	Evidence  []Evidence `json:"evidence,omitempty"`
}

// Evidence is recorded traffic that needs a rule.
type Evidence struct {
	Source      string    `json:"source"`
	Destination string    `json:"destination"`
	Protocol    string    `json:"protocol"`
	Port        uint16    `json:"port"`
	Connections uint64    `json:"connections"`
	Hours       int       `json:"hours"`
	First       time.Time `json:"first"`
	Last        time.Time `json:"last"`
}

// Notice is something a person has to know.
type Notice struct {
	// Code tells kinds of notices apart, such as labels-alike.
	Code      string `json:"code"`
	Namespace string `json:"namespace,omitempty"`
	Workload  string `json:"workload,omitempty"`
	Text      string `json:"text"`
	// Fix is what one can do; empty where there is nothing to do.
	Fix string `json:"fix,omitempty"`
}

// String is the notice in one line.
func (n Notice) String() string {
	text := n.Text
	if n.Fix != "" {
		text += ": " + n.Fix
	}
	return text
}

// SetAside is traffic from which nothing was learnt, and why.
type SetAside struct {
	Reason      Reason    `json:"reason"`
	Source      string    `json:"source"`
	Destination string    `json:"destination"`
	Protocol    string    `json:"protocol"`
	Port        uint16    `json:"port,omitempty"`
	Connections uint64    `json:"connections"`
	First       time.Time `json:"first"`
	Last        time.Time `json:"last"`
}

// Reason says why nothing was learnt from traffic.
type Reason string

// The reasons.
const (
	NotAllowed   Reason = "not-allowed"       // denied, unanswered, or of unknown verdict
	Unenforced   Reason = "unenforced"        // it passed although the policies deny it
	RefusedNow   Reason = "refused-now"       // the present policies deny it
	Scan         Reason = "scan"              // it looks like one
	Rejected     Reason = "rejected"          // somebody said so
	OwnNode      Reason = "own-node"          // a pod and its node, or itself: needs no rule
	OtherTraffic Reason = "protocol"          // NetworkPolicy knows TCP, UDP and SCTP only
	UnknownEnd   Reason = "end-unknown"       // it is not known who an end was
	Untranslated Reason = "service"           // to a Service's address that nothing translated
	GoneWith     Reason = "namespace-deleted" // of a namespace that is gone
	NoSelector   Reason = "no-selector"       // an end has no labels that tell it
	OldLabels    Reason = "old-labels"        // the labels of an end are others now; learnt for the new ones
)

// Readiness says whether a workload was watched enough.
type Readiness struct {
	Namespace string `json:"namespace"`
	Workload  string `json:"workload"` // Deployment shop/web
	Ready     bool   `json:"ready"`
	// Watched is from when it was first known of until the end.
	Watched time.Duration `json:"-"`
	Days    float64       `json:"days"` // Watched, in days
	Egress  int           `json:"egress_edges"`
	Ingress int           `json:"ingress_edges"`
	Reasons []string      `json:"reasons,omitempty"`
}

// Proof is all recorded traffic, with the labels of its time, judged by the
// suggestion and the policies that stay.
type Proof struct {
	Edges       int    `json:"edges"`
	Connections uint64 `json:"connections"`
	// Refused is traffic that was learnt and would be refused. It is empty, or
	// the suggestion must not be applied.
	Refused []replay.Flip `json:"refused"`
	// Decided is allowed traffic that would be refused because nothing was to
	// be learnt from it; each with its reason.
	Decided []Decided `json:"decided,omitempty"`
	// Allowed is traffic that was denied and would be allowed.
	Allowed []replay.Flip `json:"allowed,omitempty"`
	// Unclear is traffic of which the policies cannot say it.
	Unclear []replay.Flip `json:"unclear,omitempty"`
	// Loose are workloads and ports that are permitted and were never seen.
	Loose Tightness `json:"loose"`
}

// Decided is traffic that would be refused on purpose.
type Decided struct {
	Reason Reason `json:"reason"`
	replay.Flip
}

// Tightness counts what is permitted and was never seen.
type Tightness struct {
	// Pairs counts (workload, workload, protocol, port).
	Pairs uint64 `json:"pairs"`
	// Unexplained are those that no option and no notice accounts for.
	Unexplained uint64 `json:"unexplained"`
	// List has them as ranges of ports.
	List []LoosePair `json:"list,omitempty"`
}

// LoosePair is ports between two workloads that are permitted and were never seen.
type LoosePair struct {
	Source      string `json:"source"`
	Destination string `json:"destination"`
	Protocol    string `json:"protocol"`
	FirstPort   uint16 `json:"first_port"`
	LastPort    uint16 `json:"last_port"`
	// Why is existing-policy, dns, port-slack, port-name, labels-alike or
	// namespace; empty if nothing accounts for it.
	Why string `json:"why,omitempty"`
}

// evidence turns edges into what --explain shows.
func evidence(edges []*history.Edge) []Evidence {
	edges = slices.Clone(edges)
	slices.SortFunc(edges, compareEdges)
	var out []Evidence
	for _, e := range slices.Compact(edges) {
		out = append(out, Evidence{
			Source: replay.EndText(&e.Source), Destination: replay.EndText(&e.Destination), Protocol: e.Protocol.String(), Port: e.Port,
			Connections: e.Connections, Hours: e.Hours, First: e.First, Last: e.Last,
		})
	}
	return joinEvidence(out)
}
