package hubble

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	flowpb "github.com/cilium/cilium/api/v1/flow"

	"github.com/flowaudit/flowaudit/flow"
)

// Types of Cilium's monitor events (pkg/monitor/api/types.go).
const (
	eventDrop    = 1
	eventTrace   = 4
	eventVerdict = 5 // of a policy
)

// traceToEndpoint is the observation point at which a pod receives a packet.
const traceToEndpoint = 0

// wanted asks for what decides, and for the replies that reach a pod: that an
// egress policy let a connection out does not say that it was let in.
func wanted() []*flowpb.FlowFilter {
	reply := func() *flowpb.FlowFilter {
		return &flowpb.FlowFilter{EventType: []*flowpb.EventTypeFilter{{Type: eventTrace, MatchSubType: true, SubType: traceToEndpoint}}, Reply: []bool{true}}
	}
	// Of TCP the first reply is enough; the other protocols have no first.
	answered, others := reply(), reply()
	answered.TcpFlags = []*flowpb.TCPFlags{{SYN: true, ACK: true}}
	others.Protocol = []string{"udp", "sctp", "icmp"}
	return []*flowpb.FlowFilter{
		{EventType: []*flowpb.EventTypeFilter{{Type: eventVerdict}}},
		{EventType: []*flowpb.EventTypeFilter{{Type: eventDrop}}, DropReasonDesc: policyReasons()},
		answered, others,
	}
}

// policyReasons are the reasons of a drop that is a policy's. All others, such
// as an invalid source or a Service without backends, are no refusal.
func policyReasons() []flowpb.DropReason {
	return []flowpb.DropReason{flowpb.DropReason_POLICY_DENIED, flowpb.DropReason_POLICY_DENY, flowpb.DropReason_AUTH_REQUIRED}
}

func byPolicy(f *flowpb.Flow) bool {
	switch f.GetDropReasonDesc() {
	case flowpb.DropReason_POLICY_DENIED, flowpb.DropReason_POLICY_DENY, flowpb.DropReason_AUTH_REQUIRED:
		return true
	}
	return false
}

// convert reads a flow into o, which must be empty but for Time. ok is false
// where Hubble tells more than was asked for, as old versions do; err says
// that it cannot be read.
func convert(f *flowpb.Flow, o *flow.Observation) (ok bool, err error) {
	told := flow.Told{Direction: direction(f.GetTrafficDirection())}
	o.Source, o.Event = flow.SourceHubble, flow.EventPacket
	reply := f.GetIsReply().GetValue()
	switch f.GetEventType().GetType() {
	case eventVerdict:
		switch f.GetVerdict() {
		case flowpb.Verdict_FORWARDED, flowpb.Verdict_REDIRECTED:
			o.Verdict, told.Policies = flow.VerdictAllowed, policies(f.GetEgressAllowedBy(), f.GetIngressAllowedBy(), "")
		case flowpb.Verdict_AUDIT: // let through, because policies are only audited
			o.Verdict, told.Policies = flow.VerdictAllowed, policies(f.GetEgressDeniedBy(), f.GetIngressDeniedBy(), "audit")
		case flowpb.Verdict_DROPPED:
			o.Verdict, told.Policies = flow.VerdictDenied, policies(f.GetEgressDeniedBy(), f.GetIngressDeniedBy(), "")
		}
	case eventTrace:
		if reply {
			o.Verdict, o.Status, told.Direction = flow.VerdictAllowed, flow.StatusSeenReply, flow.DirectionEgress
		}
	default: // a drop; flows that were exported name no type
		if f.GetVerdict() == flowpb.Verdict_DROPPED {
			o.Verdict, told.Policies = flow.VerdictDenied, policies(f.GetEgressDeniedBy(), f.GetIngressDeniedBy(), "")
		}
	}
	if o.Verdict == flow.VerdictUnknown || o.Verdict == flow.VerdictDenied && !byPolicy(f) {
		return false, nil
	}
	if at := f.GetTime(); at.IsValid() && at.AsTime().Year() > 2000 && at.AsTime().Year() < 2200 {
		o.Time = at.AsTime().UnixNano()
	}
	if err := tuple(f, o); err != nil {
		return false, err
	}
	told.Source, told.Destination = endpoint(f.GetSource()), endpoint(f.GetDestination())
	if reply {
		o.Original = flow.Tuple{Src: o.Original.Dst, Dst: o.Original.Src, SrcPort: o.Original.DstPort, DstPort: o.Original.SrcPort}
		o.TCPFlags = 0
		o.ICMPType = request(o.ICMPType)
		told.Source, told.Destination = told.Destination, told.Source
	}
	local(&told, f.GetNodeName())
	o.Told = &told
	return true, nil
}

func direction(d flowpb.TrafficDirection) flow.Direction {
	switch d {
	case flowpb.TrafficDirection_EGRESS:
		return flow.DirectionEgress
	case flowpb.TrafficDirection_INGRESS:
		return flow.DirectionIngress
	}
	return flow.DirectionUnknown
}

// request is the type of the ICMP message that a reply answers.
func request(typ uint8) uint8 {
	switch typ {
	case 0: // echo reply
		return 8
	case 129: // ICMPv6 echo reply
		return 128
	}
	return typ
}

var errLayer4 = errors.New("no protocol above IP that we know")

func tuple(f *flowpb.Flow, o *flow.Observation) (err error) {
	if o.Original.Src, err = netip.ParseAddr(f.GetIP().GetSource()); err != nil {
		return fmt.Errorf("source: %w", err)
	}
	if o.Original.Dst, err = netip.ParseAddr(f.GetIP().GetDestination()); err != nil {
		return fmt.Errorf("destination: %w", err)
	}
	o.Original.Src, o.Original.Dst = o.Original.Src.Unmap().WithZone(""), o.Original.Dst.Unmap().WithZone("")
	var src, dst uint32
	switch l := f.GetL4(); {
	case l.GetTCP() != nil:
		o.Protocol, o.TCPFlags = flow.TCP, tcpFlags(l.GetTCP().GetFlags())
		src, dst = l.GetTCP().GetSourcePort(), l.GetTCP().GetDestinationPort()
	case l.GetUDP() != nil:
		o.Protocol, src, dst = flow.UDP, l.GetUDP().GetSourcePort(), l.GetUDP().GetDestinationPort()
	case l.GetSCTP() != nil:
		o.Protocol, src, dst = flow.SCTP, l.GetSCTP().GetSourcePort(), l.GetSCTP().GetDestinationPort()
	case l.GetICMPv4() != nil:
		o.Protocol, o.ICMPType, o.ICMPCode = flow.ICMP, uint8(l.GetICMPv4().GetType()), uint8(l.GetICMPv4().GetCode())
	case l.GetICMPv6() != nil:
		o.Protocol, o.ICMPType, o.ICMPCode = flow.ICMPv6, uint8(l.GetICMPv6().GetType()), uint8(l.GetICMPv6().GetCode())
	default:
		return errLayer4
	}
	if src > 65535 || dst > 65535 {
		return fmt.Errorf("ports %d and %d: more than 65535", src, dst)
	}
	o.Original.SrcPort, o.Original.DstPort = uint16(src), uint16(dst)
	return nil
}

func tcpFlags(f *flowpb.TCPFlags) (flags uint8) {
	for i, set := range [...]bool{f.GetFIN(), f.GetSYN(), f.GetRST(), f.GetPSH(), f.GetACK(), f.GetURG(), f.GetECE(), f.GetCWR()} {
		if set {
			flags |= 1 << i
		}
	}
	return flags
}

// policies lists the policies of both sides; rule marks them.
func policies(egress, ingress []*flowpb.Policy, rule string) (refs []flow.PolicyRef) {
	add := func(list []*flowpb.Policy, side string) {
		for _, p := range list {
			ref := flow.PolicyRef{Kind: p.GetKind(), Namespace: p.GetNamespace(), Name: p.GetName(), Rule: rule, Side: side}
			for _, l := range p.GetLabels() { // all that older versions tell
				switch key, value, _ := strings.Cut(l, "="); key {
				case "k8s:io.cilium.k8s.policy.derived-from":
					ref.Kind = orElse(ref.Kind, value)
				case "k8s:io.cilium.k8s.policy.namespace":
					ref.Namespace = orElse(ref.Namespace, value)
				case "k8s:io.cilium.k8s.policy.name":
					ref.Name = orElse(ref.Name, value)
				}
			}
			if ref.Name != "" {
				refs = append(refs, ref)
			}
		}
	}
	add(egress, "egress")
	add(ingress, "ingress")
	return refs
}

func orElse(s, other string) string {
	if s != "" {
		return s
	}
	return other
}

// endpoint names an end as Cilium does; nil if it does not.
func endpoint(e *flowpb.Endpoint) *flow.Endpoint {
	if e.GetPodName() != "" {
		out := &flow.Endpoint{Kind: flow.EndpointPod, Namespace: e.GetNamespace(), Pod: e.GetPodName(), Labels: podLabels(e.GetLabels())}
		if w := e.GetWorkloads(); len(w) > 0 {
			out.Workload = flow.Workload{Kind: w[0].GetKind(), Name: w[0].GetName()}
		}
		return out
	}
	// kube-apiserver stands beside where it runs.
	for _, l := range e.GetLabels() {
		switch l {
		case "reserved:host", "reserved:remote-node":
			return &flow.Endpoint{Kind: flow.EndpointNode}
		case "reserved:world", "reserved:world-ipv4", "reserved:world-ipv6":
			return &flow.Endpoint{Kind: flow.EndpointOutside}
		}
	}
	return nil
}

// podLabels are a pod's own of Cilium's identity labels.
func podLabels(labels []string) map[string]string {
	out := make(map[string]string)
	for _, l := range labels {
		l, k8s := strings.CutPrefix(l, "k8s:")
		key, value, _ := strings.Cut(l, "=")
		if k8s && !strings.HasPrefix(key, "io.kubernetes.pod.") && !strings.HasPrefix(key, "io.cilium.k8s.") {
			out[key] = value
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// local says at which end the reporting node is.
func local(told *flow.Told, node string) {
	if i := strings.LastIndexByte(node, '/'); i >= 0 {
		node = node[i+1:] // cluster/node
	}
	end := told.Destination
	if told.Direction == flow.DirectionEgress {
		end = told.Source
	}
	if told.Direction != flow.DirectionUnknown && end != nil && end.Kind != flow.EndpointOutside {
		end.Node = node
	}
}
