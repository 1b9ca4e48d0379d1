package flow

import (
	"net/netip"
	"time"
)

// Key tells flows apart. The client's ephemeral port is not part of it. An
// address is the zero Addr where a plugin that aggregates tells only names
// (Calico's Felix): the endpoint is known then.
type Key struct {
	Protocol  Protocol
	Src       netip.Addr // the original source
	Dst       netip.Addr // the real destination, after DNAT
	Port      uint16     // destination port after DNAT; ICMP type<<8 | code
	Verdict   Verdict
	Direction Direction
}

// ICMPPort packs an ICMP type and code into Key.Port.
func ICMPPort(typ, code uint8) uint16 { return uint16(typ)<<8 | uint16(code) }

// ICMPUnknown stands for the type and the code of an ICMP packet where the
// source does not tell them. Both are reserved (RFC 6918, RFC 4443).
const ICMPUnknown = 255

// ICMP returns the ICMP type and code of a Key whose protocol is ICMP.
func (k Key) ICMP() (typ, code uint8) { return uint8(k.Port >> 8), uint8(k.Port) }

// EndpointKind says what an address belongs to.
type EndpointKind uint8

// The kinds.
const (
	EndpointUnknown   EndpointKind = iota
	EndpointPod                    // one pod held the address at that time
	EndpointNode                   // a node's own address; hostNetwork pods share it
	EndpointService                // a Service's virtual address
	EndpointOutside                // known not to be of the cluster
	EndpointAmbiguous              // more than one pod could have held it, or one that may be gone
	EndpointAPIServer              // the Kubernetes API server's, where it is no node's
)

var endpointKindNames = [...]string{"unknown", "pod", "node", "service", "outside", "ambiguous", "apiserver"}

// String returns the kind in lower case.
func (k EndpointKind) String() string { return name(endpointKindNames[:], uint8(k)) }

// Workload names the controller that owns a pod.
type Workload struct {
	Kind string `json:"kind"` // Deployment, StatefulSet, DaemonSet, CronJob, Job, Pod for a bare pod, …
	Name string `json:"name"`
}

// Endpoint names one end of a flow, as it was at the flow's time. It is shared
// between flows and never changed after it was made.
type Endpoint struct {
	Kind      EndpointKind
	Namespace string
	Pod       string
	Workload  Workload
	Node      string
	// Identity hashes the namespace, its labels and the pod's stable labels; 0 if unknown.
	Identity uint64
	// Labels are the pod's labels, without the volatile ones.
	Labels map[string]string
	// Candidates are who it could have been, as namespace/name: of a node's
	// address, the pods that share its network; of an ambiguous one, those that
	// could have held it.
	Candidates []string
}

// Service is the address that a client asked for before DNAT, with the name of
// the Service that owns it where that is known.
type Service struct {
	Addr      netip.Addr
	Port      uint16
	Namespace string
	Name      string
}

// KindNetfilter is the Kind of a rule of netfilter that no policy stands for.
// Its Namespace is the family and the table, its Name the chain.
const KindNetfilter = "Netfilter"

// PolicyRef names a rule that decided.
type PolicyRef struct {
	Kind      string `json:"kind,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	Rule      string `json:"rule,omitempty"`
	Side      string `json:"side,omitempty"` // egress or ingress
}

// Flow is one row: what a node reports of a Key over one window.
type Flow struct {
	Key
	Start, End time.Time // first and last activity inside the window
	Cluster    string
	Node       string // the node that reports

	Source, Destination *Endpoint // nil if unknown
	SourcePort          uint16    // of the first connection
	// TranslatedSrc is the source after SNAT, as the destination sees it. The
	// zero Addr means that it was not translated.
	TranslatedSrc netip.Addr
	Service       *Service // nil if the destination was not translated

	Reason     Reason
	Expected   Verdict
	Assessment Assessment
	Caveat     Caveat
	Policies   []PolicyRef
	Sources    Source

	// NamedFrom and NamedTo bound when the flow's connections began: whoever
	// had an address then is the flow's end, though counters may come long
	// after. They are zero where that is from Start to End, and not stored.
	NamedFrom, NamedTo time.Time

	Connections uint64
	Sent        Counters
	Received    Counters
	// Counted says that Sent and Received were counted. They are absent, not
	// zero, where nf_conntrack_acct was off. Of a denied flow, Sent counts the
	// logged packets.
	Counted  bool
	TCPFlags uint8 // of all logged packets
}

// Pair is what two nodes' reports of the same connections have in common: the
// translated tuple without the client's port.
type Pair struct {
	Protocol Protocol
	Src      netip.Addr // after SNAT
	Dst      netip.Addr // after DNAT
	Port     uint16
	// Apart is empty where both ends have addresses. Flows that only names
	// tell apart are of nobody's pair but their own node's: the names stand
	// for many pods, whose connections are not the same.
	Apart string
}

// Named returns the time by which the flow's ends are named.
func (f *Flow) Named() (from, to time.Time) {
	if f.NamedFrom.IsZero() {
		return f.Start, f.End
	}
	return f.NamedFrom, f.NamedTo
}

// Pair returns the flow's pair.
func (f *Flow) Pair() Pair {
	src := f.Src
	if f.TranslatedSrc.IsValid() {
		src = f.TranslatedSrc
	}
	p := Pair{Protocol: f.Protocol, Src: src, Dst: f.Dst, Port: f.Port}
	if !src.IsValid() || !f.Dst.IsValid() {
		p.Apart = f.Node + " " + f.Direction.String() + " " + f.Source.nameOf() + " " + f.Destination.nameOf()
	}
	return p
}

func (e *Endpoint) nameOf() string {
	if e == nil || e.Kind == EndpointUnknown {
		return "-"
	}
	return e.Kind.String() + "/" + e.Namespace + "/" + e.Pod + "/" + e.Workload.Name + "/" + e.Node
}
