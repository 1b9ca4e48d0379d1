package policy

import (
	"cmp"
	"encoding/binary"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"weak"

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
type NamedPort = flow.NamedPort

// Class is a set of pods that policies cannot tell apart: same namespace, same
// labels of both, same named ports. It is made by Classes, never changed, and
// may be used by every Engine.
type Class struct {
	// compiled is what each engine last found out about the class. It lives
	// here so that it goes when the class goes.
	compiled [engineSlots]atomic.Pointer[compiledClass]

	namespace       string
	namespaceKnown  bool
	namespaceLabels map[string]string
	labels          map[string]string
	ports           []NamedPort
	portsUnknown    bool
}

// engineSlots is how many engines can use the same classes without forgetting
// each other's work.
const engineSlots = 8

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
type Classes struct {
	mu      sync.Mutex
	byKey   map[string]weak.Pointer[Class]
	engines atomic.Uint32 // that use them; gives each its slot
}

// NewClasses returns Classes without any class.
func NewClasses() *Classes { return &Classes{byKey: make(map[string]weak.Pointer[Class])} }

// Of returns the class of a pod. It copies what it keeps.
func (c *Classes) Of(p *Pod) *Class {
	ports := sortedPorts(p)
	key := classKey(p, ports)
	c.mu.Lock()
	defer c.mu.Unlock()
	if known := c.byKey[string(key)].Value(); known != nil {
		return known
	}
	made := &Class{
		namespace: p.Namespace, namespaceKnown: p.NamespaceLabels != nil, namespaceLabels: withName(p.NamespaceLabels, p.Namespace),
		labels: maps.Clone(p.Labels), ports: ports, portsUnknown: p.PortsUnknown,
	}
	c.byKey[string(key)] = weak.Make(made)
	runtime.AddCleanup(made, c.forget, string(key))
	return made
}

// forget drops the entry of a class that nobody has, unless it was made anew.
func (c *Classes) forget(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byKey[key].Value() == nil {
		delete(c.byKey, key)
	}
}

// End returns the pod as an end of a connection; of kind node if it uses the
// host's network. Its address is the pod's primary one.
func (c *Classes) End(p *Pod) End {
	if p.HostNetwork {
		return endOf(p, nil)
	}
	return endOf(p, c.Of(p))
}

func endOf(p *Pod, class *Class) End {
	var addr netip.Addr
	if len(p.Addrs) > 0 {
		addr = p.Addrs[0]
	}
	if p.HostNetwork {
		return End{Kind: flow.EndpointNode, Node: p.Node, Addr: addr}
	}
	return End{Kind: flow.EndpointPod, Class: class, Pod: p.Name, Node: p.Node, Addr: addr}
}

func withName(labels map[string]string, namespace string) map[string]string {
	out := make(map[string]string, len(labels)+1)
	maps.Copy(out, labels)
	out[metadataName] = namespace
	return out
}

// sortedPorts are a pod's ports that have a name, each once.
func sortedPorts(p *Pod) []NamedPort {
	if len(p.Ports) == 0 || p.PortsUnknown {
		return nil
	}
	ports := slices.DeleteFunc(slices.Clone(p.Ports), func(n NamedPort) bool { return n.Name == "" })
	slices.SortFunc(ports, func(a, b NamedPort) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
	})
	return slices.Compact(ports)
}

// classKey is equal for pods of one class only.
func classKey(p *Pod, ports []NamedPort) []byte {
	b := make([]byte, 0, 256)
	b = append(b, byte(isTrue(p.NamespaceLabels != nil)), byte(isTrue(p.PortsUnknown)))
	b = appendString(b, p.Namespace)
	b = appendLabels(b, p.NamespaceLabels)
	b = appendLabels(b, p.Labels)
	for _, port := range ports {
		b = append(appendString(b, port.Name), byte(port.Protocol))
		b = binary.BigEndian.AppendUint16(b, port.Port)
	}
	return b
}

func appendLabels(b []byte, labels map[string]string) []byte {
	b = binary.AppendUvarint(b, uint64(len(labels)))
	if len(labels) == 0 {
		return b
	}
	keys := make([]string, 0, 16)
	for k := range labels {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		b = appendString(appendString(b, k), labels[k])
	}
	return b
}
