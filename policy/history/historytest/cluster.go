// Package historytest makes histories of clusters for tests.
package historytest

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy/history"
)

// Begin and End bound every history: thirty days.
func Begin() time.Time { return time.Date(2026, 10, 1, 0, 0, 0, 0, time.UTC) }

// End is when a history ends.
func End() time.Time { return Begin().Add(30 * 24 * time.Hour) }

// Cluster is a cluster whose past is being written.
type Cluster struct {
	Input      history.Input
	namespaces map[string]map[string]string
}

// New returns a cluster that was watched all the time by one node.
func New() *Cluster {
	return &Cluster{
		Input: history.Input{
			Since: Begin(), Until: End(),
			Coverage: flow.Coverage{Since: Begin(), Until: End(), Nodes: []flow.NodeCoverage{{Node: "n1", Covered: End().Sub(Begin())}}},
		},
		namespaces: make(map[string]map[string]string),
	}
}

// History joins what was written.
func (c *Cluster) History(t testing.TB) *history.History {
	t.Helper()
	h, err := history.New(c.Input)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// Change adds an entry to the timeline.
func (c *Cluster) Change(x flow.Change, object any) {
	if object != nil {
		var err error
		if x.Object, err = json.Marshal(object); err != nil {
			panic(err) // a test's own object
		}
	}
	c.Input.Changes = append(c.Input.Changes, x)
}

// Namespace makes a namespace known.
func (c *Cluster) Namespace(name string, labels map[string]string) {
	all := map[string]string{"kubernetes.io/metadata.name": name}
	maps.Copy(all, labels)
	c.namespaces[name] = all
	c.Change(flow.Change{Time: Begin().Add(-time.Hour), Kind: flow.ChangeNamespace, Name: name}, all)
}

// DeleteNamespace deletes a namespace.
func (c *Cluster) DeleteNamespace(name string, at time.Time) {
	c.Change(flow.Change{Time: at, Kind: flow.ChangeNamespace, Name: name, Deleted: true}, nil)
}

// Policy applies a policy.
func (c *Cluster) Policy(p *networkingv1.NetworkPolicy, at time.Time) {
	c.Change(flow.Change{Time: at, Kind: flow.ChangePolicy, Namespace: p.Namespace, Name: p.Name, Author: "kubectl"}, p)
}

// DeletePolicy deletes a policy.
func (c *Cluster) DeletePolicy(namespace, name string, at time.Time) {
	c.Change(flow.Change{Time: at, Kind: flow.ChangePolicy, Namespace: namespace, Name: name, Deleted: true}, nil)
}

// Pods are the pods of a workload that have the same labels.
type Pods struct {
	cluster *Cluster
	State   flow.IdentityState
	ID      uint64
}

// Workload is Kind namespace/name with labels "a=b,c=d" and ports
// "http=8080,dns=53/udp". Its pods run from the beginning.
func (c *Cluster) Workload(name, labels, ports string) *Pods {
	return c.WorkloadAt(name, labels, ports, Begin().Add(-time.Hour))
}

// WorkloadAt is a Workload whose pods run from a moment on.
func (c *Cluster) WorkloadAt(name, labels, ports string, at time.Time) *Pods {
	kind, rest, _ := strings.Cut(name, " ")
	namespace, name, _ := strings.Cut(rest, "/")
	if c.namespaces[namespace] == nil {
		c.Namespace(namespace, nil)
	}
	p := &Pods{cluster: c, State: flow.IdentityState{
		Namespace: namespace, NamespaceLabels: c.namespaces[namespace], Workload: flow.Workload{Kind: kind, Name: name},
		Labels: Labels(labels), Ports: namedPorts(ports),
	}}
	h := fnv.New64a()
	fmt.Fprint(h, namespace, p.State.NamespaceLabels, p.State.Labels)
	p.ID = h.Sum64()
	c.Change(flow.Change{Time: at, Kind: flow.ChangeIdentity, Namespace: namespace, Name: fmt.Sprintf("%016x", p.ID)}, p.State)
	return p
}

// Labels reads "a=b,c=d".
func Labels(text string) map[string]string {
	out := make(map[string]string)
	for _, part := range strings.Split(text, ",") {
		if k, v, ok := strings.Cut(part, "="); ok {
			out[k] = v
		}
	}
	return out
}

func namedPorts(text string) []flow.NamedPort {
	var out []flow.NamedPort
	for _, part := range strings.Split(text, ",") {
		if name, service, ok := strings.Cut(part, "="); ok {
			protocol, port := Service(service)
			out = append(out, flow.NamedPort{Name: name, Protocol: protocol, Port: port})
		}
	}
	return out
}

// Service reads 8080 or 53/udp.
func Service(text string) (flow.Protocol, uint16) {
	number, name, ok := strings.Cut(text, "/")
	if !ok {
		name = "tcp"
	}
	protocol, err := flow.ParseProtocol(name)
	if err != nil {
		panic(err) // a test's own text
	}
	var port uint16
	if _, err := fmt.Sscan(number, &port); err != nil {
		panic(err) // a test's own text
	}
	return protocol, port
}

// Gone says that no pod has the labels any more.
func (p *Pods) Gone(at time.Time) *Pods {
	p.cluster.Change(flow.Change{Time: at, Kind: flow.ChangeIdentity, Namespace: p.State.Namespace, Name: fmt.Sprintf("%016x", p.ID), Deleted: true}, nil)
	return p
}

// Party is an end of traffic.
type Party interface {
	end() (flow.EdgeEnd, map[string]string)
}

func (p *Pods) end() (flow.EdgeEnd, map[string]string) {
	return flow.EdgeEnd{Kind: flow.EndpointPod, Identity: p.ID, Namespace: p.State.Namespace, Workload: p.State.Workload}, p.State.Labels
}

// Address is an end that is no pod.
type Address struct {
	Kind   flow.EndpointKind
	Prefix string // an address, or a CIDR
	Node   string
}

func (a Address) end() (flow.EdgeEnd, map[string]string) {
	p, err := netip.ParsePrefix(a.Prefix)
	if err != nil {
		addr := netip.MustParseAddr(a.Prefix)
		p = netip.PrefixFrom(addr, addr.BitLen())
	}
	return flow.EdgeEnd{Kind: a.Kind, Node: a.Node, Prefix: p}, nil
}

// Outside is an address outside of the cluster.
func Outside(prefix string) Address { return Address{Kind: flow.EndpointOutside, Prefix: prefix} }

// Node is a node's address.
func Node(name, addr string) Address {
	return Address{Kind: flow.EndpointNode, Prefix: addr, Node: name}
}

// Talk records that one end connected to another, on "8080" or "53/udp", all
// the time, with a reply and as no policy forbade. The edge may be changed.
func (c *Cluster) Talk(from, to Party, service string) *flow.Edge {
	protocol, port := Service(service)
	e := &flow.Edge{First: Begin().Add(time.Hour), Last: End().Add(-time.Hour), Hours: 700, Connections: 1000, Sent: 1 << 20, Received: 1 << 20}
	e.Source, e.SourceLabels = from.end()
	e.Destination, e.DestinationLabels = to.end()
	e.Protocol, e.Port, e.Direction = protocol, port, flow.DirectionEgress
	e.Verdict, e.Expected, e.Assessment = flow.VerdictAllowed, flow.VerdictAllowed, flow.AssessmentAllowed
	c.Input.Edges = append(c.Input.Edges, e)
	return e
}

// Refuse makes an edge one that was denied, as policies say.
func Refuse(e *flow.Edge) *flow.Edge {
	e.Verdict, e.Expected, e.Assessment = flow.VerdictDenied, flow.VerdictDenied, flow.AssessmentEnforced
	return e
}

// Between bounds when an edge was seen.
func Between(e *flow.Edge, first, last time.Time) *flow.Edge {
	e.First, e.Last, e.Hours = first, last, max(1, int(last.Sub(first)/flow.EdgeHour))
	return e
}

// Shuffled returns the input in another order, which says the same.
func (c *Cluster) Shuffled(swap func(n int, swap func(i, j int))) history.Input {
	in := c.Input
	in.Edges = slices.Clone(in.Edges)
	swap(len(in.Edges), func(i, j int) { in.Edges[i], in.Edges[j] = in.Edges[j], in.Edges[i] })
	return in
}
