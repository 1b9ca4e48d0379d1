package policylog

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// GKE reads policy_action.log of GKE's Dataplane V2, one JSON object a line.
type GKE struct{}

type gkeLine struct {
	Connection struct {
		SrcIP     string `json:"src_ip"`
		DestIP    string `json:"dest_ip"`
		SrcPort   uint16 `json:"src_port"`
		DestPort  uint16 `json:"dest_port"`
		Protocol  string `json:"protocol"`
		Direction string `json:"direction"`
	} `json:"connection"`
	Disposition string `json:"disposition"`
	Policies    []struct {
		Kind      string `json:"kind"`
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
	} `json:"policies"`
	Src       gkeEnd `json:"src"`
	Dest      gkeEnd `json:"dest"`
	Count     uint64 `json:"count"`
	Timestamp string `json:"timestamp"`
}

type gkeEnd struct {
	PodName      string `json:"pod_name"`
	PodNamespace string `json:"pod_namespace"`
	Namespace    string `json:"namespace"`
	WorkloadName string `json:"workload_name"`
	WorkloadKind string `json:"workload_kind"`
	NodeName     string `json:"node_name"`
	Instance     string `json:"instance"`
}

// Parse reads a line; see tuple.go.
func (GKE) Parse(line []byte, o *flow.Observation) (bool, error) {
	var l gkeLine
	if err := json.Unmarshal(line, &l); err != nil {
		return false, fmt.Errorf("read JSON: %w", err)
	}
	switch l.Disposition {
	case "allow":
		packet(o, flow.VerdictAllowed)
	case "deny":
		packet(o, flow.VerdictDenied)
	default:
		return false, fmt.Errorf("disposition %.20q: want allow or deny", l.Disposition)
	}
	stamp(o, time.RFC3339Nano, l.Timestamp)
	c := &l.Connection
	if err := tuple(o, c.Protocol, c.SrcIP, "", c.DestIP, ""); err != nil {
		return false, err
	}
	if o.Protocol.HasPorts() {
		o.Original.SrcPort, o.Original.DstPort = c.SrcPort, c.DestPort
	}
	told := flow.Told{Direction: side(c.Direction), Source: l.Src.endpoint(), Destination: l.Dest.endpoint(), Packets: l.Count}
	for _, p := range l.Policies {
		told.Policies = append(told.Policies, flow.PolicyRef{Kind: p.Kind, Namespace: p.Namespace, Name: p.Name, Side: sideText(told.Direction)})
	}
	o.Told = &told
	return true, sameFamily(o)
}

func (e gkeEnd) endpoint() *flow.Endpoint {
	switch {
	case e.PodName != "":
		namespace := e.PodNamespace
		if namespace == "" {
			namespace = e.Namespace
		}
		p := pod(namespace, e.PodName)
		p.Workload = flow.Workload{Kind: e.WorkloadKind, Name: e.WorkloadName}
		return p
	case e.NodeName != "":
		return &flow.Endpoint{Kind: flow.EndpointNode, Node: e.NodeName}
	case e.Instance != "":
		return &flow.Endpoint{Kind: flow.EndpointOutside}
	}
	return nil
}
