package policy

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/flowaudit/flowaudit/flow"
)

// metadataName is the label that the control plane sets on every namespace and
// lets nobody change.
const metadataName = "kubernetes.io/metadata.name"

// Pod is what policies can tell of a pod, at one moment.
type Pod struct {
	Namespace string
	// NamespaceLabels are the namespace's labels at that moment. nil means that
	// they are not known: what depends on them is then unknown, but for
	// kubernetes.io/metadata.name, which every namespace has.
	NamespaceLabels map[string]string
	Name            string
	Labels          map[string]string // all of them, the volatile ones too
	// Ports are the named ports of all containers, those of restartable init
	// containers included. Ports without a name may be left out.
	Ports []NamedPort
	// PortsUnknown says that Ports are not known: rules that name a port by its
	// name are then in doubt.
	PortsUnknown bool
	Node         string
	HostNetwork  bool         // the pod shares its node's addresses
	Addrs        []netip.Addr // the pod's own, the primary one first
}

// NamedPort is a container's port that has a name.
type NamedPort struct {
	Name     string
	Protocol flow.Protocol
	Port     uint16
}

// Class is a set of pods that policies cannot tell apart: same namespace, same
// labels of both, same named ports. It is made by Classes, never changed, and
// may be used by every Engine.
type Class struct {
	namespace       string
	namespaceKnown  bool
	namespaceLabels map[string]string
	labels          map[string]string
	ports           []NamedPort
	portsUnknown    bool
}

// Namespace is the name of the pods' namespace.
func (c *Class) Namespace() string { return c.namespace }

// NamespaceLabels are the namespace's labels, kubernetes.io/metadata.name
// included; known is false if that is the only one known. They must not be changed.
func (c *Class) NamespaceLabels() (labels map[string]string, known bool) {
	return c.namespaceLabels, c.namespaceKnown
}

// Labels are the pods' labels. They must not be changed.
func (c *Class) Labels() map[string]string { return c.labels }

// Ports are the pods' named ports, sorted; known is false if they are not
// known. They must not be changed.
func (c *Class) Ports() (ports []NamedPort, known bool) { return c.ports, !c.portsUnknown }

// Classes makes classes, one for all pods that are alike, so that decisions
// about one are decisions about all. It keeps none that nobody uses. It may be
// used concurrently.
type Classes struct{}

// NewClasses returns Classes without any class.
func NewClasses() *Classes { return &Classes{} }

// Of returns the class of a pod. It copies what it keeps.
func (c *Classes) Of(p *Pod) *Class {
	labels := maps.Clone(p.NamespaceLabels)
	if labels == nil {
		labels = make(map[string]string, 1)
	}
	labels[metadataName] = p.Namespace
	return &Class{
		namespace: p.Namespace, namespaceKnown: p.NamespaceLabels != nil, namespaceLabels: labels,
		labels: maps.Clone(p.Labels), ports: slices.Clone(p.Ports), portsUnknown: p.PortsUnknown,
	}
}

// End returns the pod as an end of a connection; of kind node if it uses the
// host's network. Its address is the pod's primary one.
func (c *Classes) End(p *Pod) End {
	var addr netip.Addr
	if len(p.Addrs) > 0 {
		addr = p.Addrs[0].Unmap()
	}
	if p.HostNetwork {
		return End{Kind: flow.EndpointNode, Node: p.Node, Addr: addr}
	}
	return End{Kind: flow.EndpointPod, Class: c.Of(p), Pod: p.Name, Node: p.Node, Addr: addr}
}
