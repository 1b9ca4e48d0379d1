package felix

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/flowaudit/flowaudit/agent/calico"
	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/proto/goldmane"
)

var errKey = errors.New("no key")

// convert reads a flow as Felix aggregates it. It has no addresses and no
// client port: its ends are names, and a name may stand for many pods.
func convert(g *goldmane.Flow, node string) (f flow.Flow, err error) {
	k := g.GetKey()
	if k == nil {
		return f, errKey
	}
	if f.Protocol, err = protocolOf(k.GetProto()); err != nil {
		return f, err
	}
	if k.GetDestPort() < 0 || k.GetDestPort() > 65535 {
		return f, fmt.Errorf("port %d: want 0 to 65535", k.GetDestPort())
	}
	f.Port = uint16(k.GetDestPort())
	if f.Protocol.IsICMP() {
		f.Port = flow.ICMPPort(flow.ICMPUnknown, flow.ICMPUnknown)
	}
	if f.Start, f.End, err = times(g); err != nil {
		return f, err
	}
	f.Sources, f.Connections = flow.SourceFelix, positive(g.GetNumConnectionsStarted())
	f.Source = endpoint(k.GetSourceType(), k.GetSourceNamespace(), k.GetSourceName(), g.GetSourceLabels())
	f.Destination = endpoint(k.GetDestType(), k.GetDestNamespace(), k.GetDestName(), g.GetDestLabels())
	if f.Source == nil || f.Destination == nil {
		return f, errors.New("an end has no type")
	}
	if name := clean(k.GetDestServiceName()); name != "" && k.GetDestServicePort() >= 0 && k.GetDestServicePort() <= 65535 {
		f.Service = &flow.Service{Namespace: clean(k.GetDestServiceNamespace()), Name: name, Port: uint16(k.GetDestServicePort())}
	}
	// In and out are seen from the pod of the reporter's side.
	in := flow.Counters{Packets: positive(g.GetPacketsIn()), Bytes: positive(g.GetBytesIn())}
	out := flow.Counters{Packets: positive(g.GetPacketsOut()), Bytes: positive(g.GetBytesOut())}
	switch k.GetReporter() {
	case goldmane.Reporter_Src:
		f.Direction, f.Sent, f.Received, f.Source.Node = flow.DirectionEgress, out, in, node
	case goldmane.Reporter_Dst:
		f.Direction, f.Sent, f.Received, f.Destination.Node = flow.DirectionIngress, in, out, node
	default:
		return f, errors.New("no reporter")
	}
	f.Counted = f.Sent.Packets+f.Received.Packets > 0
	f.Verdict, f.Reason = verdict(k.GetAction(), &f)
	f.Policies = policies(k.GetPolicies().GetEnforcedPolicies(), f.Direction)
	return f, nil
}

// verdict weighs an action. That the source's side let a connection out says
// nothing of the destination's, but a reply does.
func verdict(a goldmane.Action, f *flow.Flow) (flow.Verdict, flow.Reason) {
	switch {
	case a == goldmane.Action_Deny:
		return flow.VerdictDenied, flow.ReasonLogged
	case a == goldmane.Action_Allow && f.Received.Packets > 0:
		return flow.VerdictAllowed, flow.ReasonReply
	case a == goldmane.Action_Allow && f.Direction == flow.DirectionIngress:
		return flow.VerdictAllowed, flow.ReasonLogged
	}
	return flow.VerdictUnknown, flow.ReasonLogged
}

func protocolOf(s string) (flow.Protocol, error) {
	p, err := flow.ParseProtocol(s)
	if err != nil {
		return 0, fmt.Errorf("%.20q is no protocol", s)
	}
	return p, nil
}

// times are whole seconds. Some versions tell the start as the end.
func times(g *goldmane.Flow) (start, end time.Time, err error) {
	const earliest, latest = 946_684_800, 7_258_118_400 // the years 2000 and 2200
	if g.GetStartTime() < earliest || g.GetStartTime() > latest || g.GetEndTime() > latest {
		return start, end, fmt.Errorf("times %d to %d: not of this age", g.GetStartTime(), g.GetEndTime())
	}
	start = time.Unix(g.GetStartTime(), 0)
	return start, time.Unix(max(g.GetStartTime(), g.GetEndTime()), 0), nil
}

func positive(n int64) uint64 { return uint64(max(0, n)) }

// clean takes Felix's mark for a field that it does not tell.
func clean(s string) string {
	if s == "-" {
		return ""
	}
	return s
}

// endpoint names an end; nil if it has no type.
func endpoint(typ goldmane.EndpointType, namespace, name string, labels []string) *flow.Endpoint {
	e := &flow.Endpoint{Namespace: clean(namespace)}
	switch typ {
	case goldmane.EndpointType_WorkloadEndpoint:
		e.Kind, e.Labels = flow.EndpointPod, make(map[string]string)
		hash := ""
		for _, l := range labels {
			key, value, _ := strings.Cut(l, "=")
			switch key {
			case "pod-template-hash":
				hash = value
			case "controller-revision-hash", "pod-template-generation", "statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index":
			default:
				e.Labels[key] = value
			}
		}
		e.Workload = workload(name, hash)
	case goldmane.EndpointType_HostEndpoint:
		e.Kind, e.Node = flow.EndpointNode, clean(name)
	case goldmane.EndpointType_NetworkSet:
		e.Kind, e.Workload = flow.EndpointOutside, flow.Workload{Kind: "NetworkSet", Name: clean(name)}
	case goldmane.EndpointType_Network: // pub or pvt
		e.Kind, e.Workload = flow.EndpointOutside, flow.Workload{Kind: "Network", Name: clean(name)}
	default:
		return nil
	}
	return e
}

// workload is what a generateName tells of who owns the pods. A Deployment's
// is sure by the label with its template's hash; the kind of the others is not.
func workload(name, hash string) flow.Workload {
	name = strings.TrimSuffix(strings.TrimSuffix(clean(name), "*"), "-")
	if deployment, ok := strings.CutSuffix(name, "-"+hash); ok && hash != "" {
		return flow.Workload{Kind: "Deployment", Name: deployment}
	}
	return flow.Workload{Name: name}
}

// policies lists those that decided, not those that passed the packet on.
func policies(hits []*goldmane.PolicyHit, side flow.Direction) (refs []flow.PolicyRef) {
	for _, h := range hits {
		if h.GetAction() == goldmane.Action_Pass {
			continue
		}
		if h.GetKind() == goldmane.PolicyKind_EndOfTier {
			refs = append(refs, flow.PolicyRef{Kind: calico.KindTier, Name: h.GetTier(), Side: side.String()})
			if t := h.GetTrigger(); t.GetName() != "" { // no rule of it matched
				refs = append(refs, policyRef(t, side))
			}
			continue
		}
		ref := policyRef(h, side)
		ref.Rule = fmt.Sprintf("%s[%d]", side, h.GetRuleIndex())
		refs = append(refs, ref)
	}
	return refs
}

func policyRef(h *goldmane.PolicyHit, side flow.Direction) flow.PolicyRef {
	return flow.PolicyRef{
		Kind: kind(h.GetKind()), Namespace: h.GetNamespace(), Name: strings.TrimPrefix(h.GetName(), "knp.default."), Side: side.String(),
	}
}

func kind(k goldmane.PolicyKind) string {
	switch k {
	case goldmane.PolicyKind_NetworkPolicy:
		return calico.KindKubernetes
	case goldmane.PolicyKind_Profile:
		return calico.KindProfile
	case goldmane.PolicyKind_ClusterNetworkPolicyAdminTier, goldmane.PolicyKind_ClusterNetworkPolicyBaselineTier:
		return "ClusterNetworkPolicy"
	}
	return k.String() // the others' names are those of calico's kinds
}
