package alert

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// State says how far an alert has come.
type State string

// The states.
const (
	Pending  State = "pending" // its rule's "for" is not over
	Firing   State = "firing"
	Resolved State = "resolved"
)

// Alert is what one rule says about one group of flows.
type Alert struct {
	// ID is made of the rule and the group: the same trouble has the same ID,
	// also after a restart.
	ID       string            `json:"id"` // 16 hexadecimal digits
	Rule     string            `json:"rule"`
	Severity string            `json:"severity"` // info, warning or critical
	State    State             `json:"state"`
	Summary  string            `json:"summary"`
	Labels   map[string]string `json:"labels"`

	Cluster  string `json:"cluster,omitempty"`
	From     *End   `json:"from,omitempty"` // nil where the rule groups otherwise
	To       *End   `json:"to,omitempty"`
	Protocol string `json:"protocol,omitempty"`
	Port     uint16 `json:"port,omitempty"`
	Node     string `json:"node,omitempty"`

	Started time.Time `json:"started"`         // when it fired
	Ended   time.Time `json:"ended,omitempty"` // when it resolved; zero while it fires
	Since   time.Time `json:"since"`           // the first of the flows that it is about
	Last    time.Time `json:"last"`            // the last of them
	// Count is how many connections, Value what the rule measures.
	Count uint64  `json:"count"`
	Value float64 `json:"value,omitempty"`
	Times int     `json:"times"` // how often it has fired, this time included

	Ports    []uint16         `json:"ports,omitempty"` // some of them
	Peers    []string         `json:"peers,omitempty"` // some of the destinations
	Policies []flow.PolicyRef `json:"policies,omitempty"`
	// Change names the change that it followed.
	Change *Change `json:"change,omitempty"`

	Explanation string `json:"explanation,omitempty"` // why the policies decide as they do
	NearestMiss string `json:"nearest_miss,omitempty"`
	Detail      string `json:"detail,omitempty"` // of lost coverage
	Command     string `json:"command"`          // to ask more
	Link        string `json:"link,omitempty"`
	Runbook     string `json:"runbook,omitempty"`

	SilencedBy   string          `json:"silenced_by,omitempty"` // a silence's ID
	Acknowledged *Acknowledgment `json:"acknowledged,omitempty"`
	// Undelivered are the notifiers that were not told of this state yet.
	Undelivered []string `json:"undelivered,omitempty"`
	Notified    bool     `json:"notified,omitempty"` // that it fires
}

// Change is a change of a policy or of a namespace's labels.
type Change struct {
	Time      time.Time `json:"time"`
	Kind      string    `json:"kind"` // policy or namespace
	Namespace string    `json:"namespace,omitempty"`
	Name      string    `json:"name"`
	Author    string    `json:"author,omitempty"` // a field manager, such as kubectl
	Deleted   bool      `json:"deleted,omitempty"`
}

// String says what was changed, and by whom.
func (c *Change) String() string {
	verb := "changed"
	if c.Deleted {
		verb = "deleted"
	}
	text := fmt.Sprintf("%s %s %s at %s", c.Kind, strings.TrimPrefix(c.Namespace+"/"+c.Name, "/"), verb, c.Time.UTC().Format(time.RFC3339))
	if c.Author != "" {
		text += " by " + c.Author
	}
	return text
}

// Acknowledgment says that somebody knows: until then the alert is not told again.
type Acknowledgment struct {
	By      string    `json:"by"`
	Comment string    `json:"comment,omitempty"`
	At      time.Time `json:"at"`
	Until   time.Time `json:"until"`
}

// End is one end of what an alert is about.
type End struct {
	Kind         string `json:"kind"` // pod, node, service, outside, apiserver, ambiguous or unknown
	Namespace    string `json:"namespace,omitempty"`
	WorkloadKind string `json:"workload_kind,omitempty"`
	Workload     string `json:"workload,omitempty"`
	Pod          string `json:"pod,omitempty"` // one of them
	Node         string `json:"node,omitempty"`
	Address      string `json:"address,omitempty"` // of the last flow
}

// String names the end as people would: shop/web, node n1, 203.0.113.7.
func (e *End) String() string {
	switch {
	case e == nil:
		return "-"
	case e.Workload != "" || e.Pod != "":
		return e.Namespace + "/" + cmp.Or(e.Workload, e.Pod)
	case e.Kind == flow.EndpointNode.String() && e.Node != "":
		return "node " + e.Node
	case e.Kind == flow.EndpointAPIServer.String():
		return "the API server"
	case e.Namespace != "" && e.Address == "":
		return "namespace " + e.Namespace
	}
	return cmp.Or(e.Address, e.Kind)
}

// endKey tells ends apart: pods by their workload, all others by address.
type endKey struct {
	Kind      flow.EndpointKind
	Namespace string        `json:",omitempty"`
	Workload  flow.Workload `json:",omitzero"`
	Node      string        `json:",omitempty"`
	Prefix    netip.Prefix  `json:",omitzero"`
}

// keyOf is the key of an end of a flow.
func keyOf(addr netip.Addr, e *flow.Endpoint) endKey {
	if e == nil {
		return endKey{Prefix: single(addr)}
	}
	k := endKey{Kind: e.Kind}
	switch e.Kind {
	case flow.EndpointPod:
		k.Namespace, k.Workload = e.Namespace, e.Workload
		if k.Workload.Name == "" {
			k.Workload = flow.Workload{Kind: "Pod", Name: e.Pod}
		}
	case flow.EndpointAPIServer:
	case flow.EndpointNode:
		if k.Node = e.Node; k.Node == "" {
			k.Prefix = single(addr)
		}
	default:
		k.Prefix = single(addr)
	}
	return k
}

// edgeEndKey is the same of an end of an edge.
func edgeEndKey(e *flow.EdgeEnd) endKey {
	k := endKey{Kind: e.Kind}
	switch e.Kind {
	case flow.EndpointPod:
		k.Namespace, k.Workload = e.Namespace, e.Workload
	case flow.EndpointAPIServer:
	case flow.EndpointNode:
		if k.Node = e.Node; k.Node == "" {
			k.Prefix = e.Prefix
		}
	default:
		k.Prefix = e.Prefix
	}
	return k
}

func single(a netip.Addr) netip.Prefix {
	if !a.IsValid() {
		return netip.Prefix{}
	}
	a = a.Unmap()
	return netip.PrefixFrom(a, a.BitLen())
}

// wide is the key by which addresses beyond the cluster are remembered: the
// store joins those of a busy port into the same networks.
func (k endKey) wide() endKey {
	if k.Kind == flow.EndpointOutside && k.Prefix.IsValid() {
		bits := 64
		if k.Prefix.Addr().Is4() {
			bits = 24
		}
		k.Prefix = netip.PrefixFrom(k.Prefix.Addr(), min(bits, k.Prefix.Bits())).Masked()
	}
	return k
}

// end is what an alert says of the key.
func (k endKey) end() *End {
	e := &End{Kind: k.Kind.String(), Namespace: k.Namespace, WorkloadKind: k.Workload.Kind, Workload: k.Workload.Name, Node: k.Node}
	if k.Prefix.IsValid() {
		e.Address = k.Prefix.String()
		if k.Prefix.IsSingleIP() {
			e.Address = k.Prefix.Addr().String()
		}
	}
	return e
}

// groupKey tells the alerts of a rule apart. Fields by which a rule does not
// group are zero.
type groupKey struct {
	Cluster  string        `json:",omitempty"`
	From     endKey        `json:",omitzero"`
	To       endKey        `json:",omitzero"`
	Protocol flow.Protocol `json:",omitempty"`
	Port     uint16        `json:",omitempty"`
	Node     string        `json:",omitempty"`
	Policy   policyKey     `json:",omitzero"`
	Changed  int64         `json:",omitempty"` // Unix milliseconds of the policy's change
	// More stands for all groups that came when there were too many.
	More bool `json:",omitempty"`
}

type policyKey struct {
	Kind      string `json:",omitempty"`
	Namespace string `json:",omitempty"`
	Name      string `json:",omitempty"`
}
