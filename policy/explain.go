package policy

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/flowaudit/flowaudit/flow"
)

// Explanation is a decision in words. The same decision always has the same
// explanation.
type Explanation struct {
	Source      string          `json:"source"`      // shop/web, node n1, 203.0.113.7
	Destination string          `json:"destination"` // shop/db
	Protocol    string          `json:"protocol"`
	Port        uint16          `json:"port,omitempty"`
	Verdict     string          `json:"verdict"`
	Egress      SideExplanation `json:"egress"`
	Ingress     SideExplanation `json:"ingress"`
	Revision    uint64          `json:"revision"`
}

// SideExplanation is one side of a decision in words.
type SideExplanation struct {
	Verdict string           `json:"verdict"`
	Reason  string           `json:"reason"`
	Text    string           `json:"text"` // the reason as a sentence
	By      []flow.PolicyRef `json:"isolated_by,omitempty"`
	Allowed []flow.PolicyRef `json:"allowed_by,omitempty"`
	// Problems are the invalid fields of the policies above, where the verdict is unknown.
	Problems []Problem `json:"problems,omitempty"`
	// Nearest is the rule that came closest, of a denial; nil if no policy that
	// isolates the pod has a rule for this direction.
	Nearest *NearMiss `json:"nearest,omitempty"`
	// Patch is the smallest change that would allow it, of a denial; nil if
	// there is none, as where a rule would have to name an unknown address.
	Patch *Patch `json:"patch,omitempty"`
}

// NearMiss is a rule that does not allow a connection, and all that fails.
type NearMiss struct {
	Rule  flow.PolicyRef `json:"rule"`
	Fails []Failure      `json:"fails"`
}

// Failure is one thing of a rule that the connection does not fulfil.
type Failure struct {
	Field string `json:"field"` // spec.ingress[0].from[1].podSelector
	Text  string `json:"text"`  // pod shop/web lacks label role=api, has role=web
}

// Explain says why a connection is allowed or not, with the nearest miss of
// each side that denies.
func (s *Snapshot) Explain(c *Connection) *Explanation {
	d := s.Decide(c)
	e := &Explanation{
		Source: c.Src.String(), Destination: c.Dst.String(), Protocol: c.Protocol.String(), Port: c.Port,
		Verdict: d.Verdict.String(), Revision: d.Revision,
	}
	e.Egress = s.explain(&d.Egress, egress, &c.Src, &c.Dst, c)
	e.Ingress = s.explain(&d.Ingress, ingress, &c.Dst, c.seen(), c)
	return e
}

func (s *Snapshot) explain(side *Side, direction int, subject, peer *End, c *Connection) SideExplanation {
	e := SideExplanation{
		Verdict: side.Verdict.String(), Reason: side.Reason.String(), By: side.By, Allowed: side.Allowed,
		Text: reasonText(side, direction, subject, peer, c),
	}
	if len(side.By) == 0 {
		return e
	}
	policies := &s.class(subject.Class).sides[direction]
	switch side.Verdict {
	case flow.VerdictUnknown:
		for _, p := range policies.selected() {
			e.Problems = append(e.Problems, p.policy.problems...)
		}
	case flow.VerdictDenied:
		a := &attempt{snapshot: s, direction: direction, subject: subject, peer: peer, connection: c}
		nearest := a.nearest(policies)
		if nearest != nil {
			e.Nearest = &NearMiss{Rule: nearest.rule.alone[0], Fails: nearest.failures()}
		}
		e.Patch = a.patch(policies, nearest)
	}
	return e
}

func reasonText(side *Side, direction int, subject, peer *End, c *Connection) string {
	by := "isolated by " + list(side.By)
	if !side.Isolated && len(side.By) > 0 {
		by = "perhaps isolated by " + list(side.By)
	}
	switch side.Reason {
	case ReasonNotPod:
		return fmt.Sprintf("policies select pods only, and %s is none", subject)
	case ReasonNotIsolated:
		return fmt.Sprintf("no policy isolates %s for %s", subject, directionNames[direction])
	case ReasonSamePod:
		return "a pod always reaches itself"
	case ReasonOwnNode:
		return "a pod and the node that runs it always reach each other"
	case ReasonRule:
		return list(side.Allowed) + " allows it"
	case ReasonNoRule:
		return by + ", and no rule allows it"
	case ReasonProtocol:
		return fmt.Sprintf("%s, and NetworkPolicy speaks of tcp, udp and sctp only: what becomes of %s is up to the network solution", by, c.Protocol)
	case ReasonEnd:
		if len(side.By) > 0 {
			return by + ": " + peer.doubt()
		}
		return subject.doubt()
	case ReasonInvalid:
		return by + ", and what an invalid policy would do is not known"
	case ReasonPort:
		return by + ": rules name ports, and the port or the port names of the destination are not known"
	case ReasonNamespace:
		return fmt.Sprintf("%s: rules select namespaces, and the labels of namespace %s are not known", by, peer.namespace())
	case ReasonAddress:
		return fmt.Sprintf("%s: rules have an ipBlock, and the address of %s is not known", by, peer)
	case ReasonSame:
		return by + ", and no rule allows it; it is not known whether the ends are one pod, or a pod and its own node"
	}
	return ""
}

// doubt says what is not known of an end.
func (e *End) doubt() string {
	switch e.kind() {
	case flow.EndpointService:
		return fmt.Sprintf("which pod stands behind %s, the address of a Service, is not known", e)
	case flow.EndpointAmbiguous:
		return fmt.Sprintf("which of several pods %s is, is not known", e)
	}
	return fmt.Sprintf("what %s is, is not known", e)
}

// list names policies and rules in one line.
func list(refs []flow.PolicyRef) string {
	var b strings.Builder
	for i, r := range refs {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(r.Namespace + "/" + r.Name)
		if r.Rule != "" {
			b.WriteString(" " + r.Rule)
		}
	}
	return b.String()
}

// String names an end as people would: shop/web, node n1, 203.0.113.7.
func (e *End) String() string {
	switch {
	case e.kind() == flow.EndpointPod && e.Pod != "":
		return e.namespace() + "/" + e.Pod
	case e.kind() == flow.EndpointPod:
		return "a pod of " + e.namespace()
	case e.Kind == flow.EndpointAPIServer && e.Addr.IsValid():
		return "API server " + e.Addr.Unmap().String()
	case e.kind() == flow.EndpointNode && e.Node != "":
		return "node " + e.Node
	case e.kind() == flow.EndpointNode && e.Addr.IsValid():
		return "node " + e.Addr.Unmap().String()
	case e.Addr.IsValid():
		return e.Addr.Unmap().String()
	}
	return "an end without address"
}

// String is the explanation for people, several lines.
func (e *Explanation) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s -> %s, %s", e.Source, e.Destination, e.Protocol)
	if e.Port != 0 {
		fmt.Fprintf(&b, " port %d", e.Port)
	}
	fmt.Fprintf(&b, ": %s\n", e.Verdict)
	e.Egress.write(&b, "egress")
	e.Ingress.write(&b, "ingress")
	return b.String()
}

func (e *SideExplanation) write(b *strings.Builder, name string) {
	fmt.Fprintf(b, "%-7s  %s: %s\n", name, e.Verdict, e.Text)
	for _, p := range e.Problems {
		fmt.Fprintf(b, "         %s\n", p)
	}
	if n := e.Nearest; n != nil {
		fmt.Fprintf(b, "  nearest rule: %s/%s %s\n", n.Rule.Namespace, n.Rule.Name, n.Rule.Rule)
		for _, f := range n.Fails {
			fmt.Fprintf(b, "    %s (%s)\n", f.Text, f.Field)
		}
	}
	if e.Patch != nil {
		e.Patch.write(b)
	}
}

func (p *Patch) write(b *strings.Builder) {
	if p.New {
		b.WriteString("  a policy that would allow it:\n")
	} else {
		fmt.Fprintf(b, "  what would allow it, at %s of %s/%s:\n", p.Operations[0].Path, p.Policy.Namespace, p.Policy.Name)
	}
	for line := range strings.Lines(p.YAML) {
		b.WriteString("    " + line)
	}
	if command := p.Command(); command != "" {
		fmt.Fprintf(b, "  %s\n", command)
	}
}

// Command is a command for a shell that applies the patch; "" for a new
// policy, whose YAML is applied as it is.
func (p *Patch) Command() string {
	if p.New {
		return ""
	}
	operations, err := json.Marshal(p.Operations)
	if err != nil {
		return "" // API types always have a JSON form
	}
	quoted := "'" + strings.ReplaceAll(string(operations), "'", `'\''`) + "'"
	return fmt.Sprintf("kubectl patch networkpolicy %s -n %s --type=json -p %s", p.Policy.Name, p.Policy.Namespace, quoted)
}
