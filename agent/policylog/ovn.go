package policylog

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// OVN reads the ACL log of OVN-Kubernetes' ovn-controller:
//
//	time|sequence|acl_log(thread)|INFO|name="N", verdict=V, severity=S, direction=D: flow
type OVN struct{}

// Parse reads a line; see tuple.go.
func (OVN) Parse(line []byte, o *flow.Observation) (bool, error) {
	// The flow may hold more of these bars, in tcp_flags.
	parts := strings.SplitN(string(line), "|", 5)
	if len(parts) < 5 || !strings.HasPrefix(parts[2], "acl_log") {
		return false, nil
	}
	head, match, ok := strings.Cut(parts[4], ": ")
	if !ok {
		return false, errors.New("no flow behind the verdict")
	}
	acl := ovnFields(head)
	var told flow.Told
	switch acl["direction"] {
	case "from-lport":
		told.Direction = flow.DirectionEgress
	case "to-lport":
		told.Direction = flow.DirectionIngress
	}
	switch acl["verdict"] {
	case "allow":
		packet(o, flow.VerdictAllowed)
	case "drop", "reject":
		packet(o, flow.VerdictDenied)
	case "pass": // a later tier decides
		packet(o, flow.VerdictUnknown)
	default:
		return false, fmt.Errorf("verdict %.20q: want allow, drop, reject or pass", acl["verdict"])
	}
	if p, named := ovnPolicy(strings.Trim(acl["name"], `"`), &told); named {
		told.Policies = []flow.PolicyRef{p}
	}
	stamp(o, time.RFC3339Nano, parts[0])
	if err := ovnFlow(match, o); err != nil {
		return false, err
	}
	// Packets of established connections are logged again and again.
	if o.Verdict == flow.VerdictAllowed && o.Protocol == flow.TCP && o.TCPFlags&(flow.TCPSyn|flow.TCPAck) != flow.TCPSyn {
		return false, nil
	}
	o.Told = &told
	return true, sameFamily(o)
}

// ovnFields reads key=value, key="value", …
func ovnFields(s string) map[string]string {
	out := make(map[string]string)
	for _, f := range strings.Split(s, ",") {
		if k, v, ok := strings.Cut(strings.TrimSpace(f), "="); ok {
			out[k] = v
		}
	}
	return out
}

// ovnFlow reads an OpenFlow match: the protocol, then key=value.
func ovnFlow(s string, o *flow.Observation) error {
	protocol, _, _ := strings.Cut(s, ",")
	m := ovnFields(s)
	src, dst := m["nw_src"], m["nw_dst"]
	if src == "" {
		src, dst = m["ipv6_src"], m["ipv6_dst"]
	}
	if protocol == "ip" || protocol == "ipv6" {
		protocol = m["nw_proto"]
	}
	if err := tuple(o, protocol, src, m["tp_src"], dst, m["tp_dst"]); err != nil {
		return err
	}
	if o.Protocol.IsICMP() {
		typ, err := strconv.ParseUint(m["icmp_type"], 10, 8)
		code, err2 := strconv.ParseUint(m["icmp_code"], 10, 8)
		if err == nil && err2 == nil {
			o.ICMPType, o.ICMPCode = uint8(typ), uint8(code)
		}
	}
	for i, name := range [...]string{"fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"} {
		for _, f := range strings.Split(m["tcp_flags"], "|") {
			if f == name {
				o.TCPFlags |= 1 << i
			}
		}
	}
	return nil
}

// ovnPolicy reads an ACL's name, which says the policy and often the side:
// NP:namespace:policy:Ingress:0, EF:namespace:0, ANP:name:Egress:1 and BANP
// likewise. NP:namespace:Ingress is a namespace's default denial and names no
// policy. Before, it was namespace_policy. Names are cut at 63 characters.
func ovnPolicy(name string, told *flow.Told) (p flow.PolicyRef, ok bool) {
	f := strings.Split(name, ":")
	switch {
	case f[0] == "NP" && len(f) == 3 && side(f[2]) != flow.DirectionUnknown:
		ovnSide(f[2], told)
		return p, false
	case f[0] == "NP" && len(f) >= 3:
		p = flow.PolicyRef{Kind: "NetworkPolicy", Namespace: f[1], Name: f[2]}
		f = f[3:]
	case f[0] == "EF" && len(f) >= 2: // there is one in a namespace, of this name
		p = flow.PolicyRef{Kind: "EgressFirewall", Namespace: f[1], Name: "default"}
		f = append([]string{"egress"}, f[2:]...)
	case f[0] == "ANP" && len(f) >= 2:
		p, f = flow.PolicyRef{Kind: "AdminNetworkPolicy", Name: f[1]}, f[2:]
	case f[0] == "BANP" && len(f) >= 2:
		p, f = flow.PolicyRef{Kind: "BaselineAdminNetworkPolicy", Name: f[1]}, f[2:]
	default:
		namespace, policy, old := strings.Cut(name, "_")
		if !old || policy == "" {
			return p, false
		}
		p, f = flow.PolicyRef{Kind: "NetworkPolicy", Namespace: namespace, Name: policy}, nil
	}
	if len(f) > 0 {
		ovnSide(f[0], told)
	}
	p.Side = sideText(told.Direction)
	if len(f) > 1 && p.Side != "" {
		p.Rule = p.Side + "[" + f[1] + "]"
	}
	return flow.PolicyRef{
		Kind: p.Kind, Namespace: strings.Clone(p.Namespace), Name: strings.Clone(p.Name), Rule: p.Rule, Side: p.Side,
	}, p.Name != ""
}

// ovnSide takes the side from a name where the record does not tell it.
func ovnSide(s string, told *flow.Told) {
	if told.Direction == flow.DirectionUnknown {
		told.Direction = side(s)
	}
}
