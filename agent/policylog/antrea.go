package policylog

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/flowaudit/flowaudit/flow"
)

// Antrea reads Antrea's np.log, one packet a line:
//
//	date time table policy rule direction action priority applied-to source port destination port protocol length label [N packets in D]
type Antrea struct{}

// Places of Antrea's fields.
const (
	antreaDate = iota
	antreaTime
	antreaTable
	antreaPolicy
	antreaRule
	antreaDirection
	antreaAction
	antreaPriority
	antreaAppliedTo
	antreaSrc
	antreaSrcPort
	antreaDst
	antreaDstPort
	antreaProtocol
	antreaLength
	antreaLabel
	antreaFields
)

// Parse reads a line; see tuple.go.
func (Antrea) Parse(line []byte, o *flow.Observation) (bool, error) {
	f := strings.Fields(string(line))
	if len(f) < antreaFields {
		return false, fmt.Errorf("%d fields, want at least %d: the log of Antrea 1.13 and later", len(f), antreaFields)
	}
	for i := range f[:antreaFields] {
		if f[i] == "<nil>" {
			f[i] = ""
		}
	}
	switch f[antreaAction] {
	case "Allow":
		packet(o, flow.VerdictAllowed)
	case "Drop", "Reject":
		packet(o, flow.VerdictDenied)
	case "Redirect": // to the layer 7 engine, which decides
		packet(o, flow.VerdictUnknown)
	default:
		return false, fmt.Errorf("action %.20q: want Allow, Drop, Reject or Redirect", f[antreaAction])
	}
	stamp(o, "2006/01/02 15:04:05.999999", f[antreaDate]+" "+f[antreaTime])
	if err := tuple(o, f[antreaProtocol], f[antreaSrc], f[antreaSrcPort], f[antreaDst], f[antreaDstPort]); err != nil {
		return false, err
	}
	if n, err := strconv.ParseUint(f[antreaLength], 10, 16); err == nil {
		o.Size = uint32(n)
	}
	told := flow.Told{Direction: side(f[antreaDirection])}
	if p, ok := antreaPolicyRef(f[antreaPolicy]); ok {
		p.Rule, p.Side = strings.Clone(f[antreaRule]), sideText(told.Direction)
		told.Policies = []flow.PolicyRef{p}
	}
	switch applied := antreaEnd(f[antreaAppliedTo]); told.Direction {
	case flow.DirectionIngress:
		told.Destination = applied
	case flow.DirectionEgress:
		told.Source = applied
	}
	if rest := f[antreaFields:]; len(rest) == 4 && rest[1] == "packets" {
		told.Packets, _ = strconv.ParseUint(strings.TrimPrefix(rest[0], "["), 10, 32)
	}
	o.Told = &told
	return true, sameFamily(o)
}

// antreaPolicyRef reads Kind:namespace/name or Kind:name. The default drop of
// Kubernetes' policies has the kind alone, and so names none.
func antreaPolicyRef(s string) (p flow.PolicyRef, ok bool) {
	kind, name, ok := strings.Cut(s, ":")
	if !ok || name == "" {
		return p, false
	}
	if kind == "K8sNetworkPolicy" {
		kind = "NetworkPolicy"
	}
	p.Kind = strings.Clone(kind)
	if namespace, rest, namespaced := strings.Cut(name, "/"); namespaced {
		p.Namespace, name = strings.Clone(namespace), rest
	}
	p.Name = strings.Clone(name)
	return p, true
}

// antreaEnd is the pod, or the node, that the policy applies to.
func antreaEnd(s string) *flow.Endpoint {
	if s == "" {
		return nil
	}
	if p := podOf(s); p != nil {
		return p
	}
	return &flow.Endpoint{Kind: flow.EndpointNode, Node: strings.Clone(s)}
}
