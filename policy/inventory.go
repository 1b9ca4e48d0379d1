package policy

import (
	"cmp"
	"maps"
	"slices"

	"github.com/flowaudit/flowaudit/flow"
)

// namespace is a namespace of the inventory, with its pods.
type namespace struct {
	known  bool // SetNamespace told its labels
	labels map[string]string
	pods   map[string]*RegisteredPod
}

// RegisteredPod is a pod of a Snapshot, ready to be an end. It must not be changed.
type RegisteredPod struct {
	Pod
	// Class is nil if the pod uses the host's network.
	Class *Class
}

// End returns the pod as an end of a connection; see Classes.End.
func (p *RegisteredPod) End() End { return endOf(&p.Pod, p.Class) }

// Connect describes a connection between two pods that may have several
// addresses: it gives both ends the first pair of the same IP version.
func Connect(src, dst *RegisteredPod, protocol flow.Protocol, port uint16) Connection {
	c := Connection{Src: src.End(), Dst: dst.End(), Protocol: protocol, Port: port}
	for _, s := range src.Addrs {
		for _, d := range dst.Addrs {
			if s.Unmap().Is4() == d.Unmap().Is4() {
				c.Src.Addr, c.Dst.Addr = s, d
				return c
			}
		}
	}
	return c
}

// Namespaces returns the labels of the known namespaces, as they were given.
// They must not be changed.
func (s *Snapshot) Namespaces() map[string]map[string]string {
	out := make(map[string]map[string]string, len(s.inventory))
	for name, n := range s.inventory {
		if n.known {
			out[name] = n.labels
		}
	}
	return out
}

// NamespaceLabels returns the labels of one namespace, as they were given; nil
// if they are not known. They must not be changed.
func (s *Snapshot) NamespaceLabels(name string) map[string]string {
	if n := s.inventory[name]; n != nil {
		return n.labels
	}
	return nil
}

// Pods lists the known pods, sorted by namespace and name.
func (s *Snapshot) Pods() []*RegisteredPod {
	var out []*RegisteredPod
	for _, n := range s.inventory {
		for _, p := range n.pods {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b *RegisteredPod) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return out
}

// Pod finds a pod by name; nil if there is none.
func (s *Snapshot) Pod(namespace, name string) *RegisteredPod {
	if n := s.inventory[namespace]; n != nil {
		return n.pods[name]
	}
	return nil
}

func (c *change) setNamespace(name string, labels map[string]string) {
	n := c.ownNamespace(name)
	n.known, n.labels = true, maps.Clone(labels)
	if n.labels == nil {
		n.labels = make(map[string]string)
	}
	c.relabel(n)
}

func (c *change) deleteNamespace(name string) {
	if c.next.inventory[name] == nil {
		return
	}
	n := c.ownNamespace(name)
	n.known, n.labels = false, nil
	if len(n.pods) == 0 {
		delete(c.next.inventory, name)
	}
	c.relabel(n)
}

// relabel gives the pods of a namespace the class that its labels mean.
func (c *change) relabel(n *namespace) {
	for name, p := range n.pods {
		n.pods[name] = c.register(p.Pod, n)
	}
}

func (c *change) setPod(p Pod) {
	n := c.ownNamespace(p.Namespace)
	p.Labels, p.Ports, p.Addrs = maps.Clone(p.Labels), slices.Clone(p.Ports), slices.Clone(p.Addrs)
	n.pods[p.Name] = c.register(p, n)
}

func (c *change) register(p Pod, n *namespace) *RegisteredPod {
	p.NamespaceLabels = n.labels
	r := &RegisteredPod{Pod: p}
	if !p.HostNetwork {
		r.Class = c.next.shared.classes.Of(&p)
	}
	return r
}

func (c *change) deletePod(namespace, name string) {
	if c.next.Pod(namespace, name) == nil {
		return
	}
	n := c.ownNamespace(namespace)
	delete(n.pods, name)
	if len(n.pods) == 0 && !n.known {
		delete(c.next.inventory, namespace)
	}
}

// ownNamespace finds or makes a namespace, to be changed.
func (c *change) ownNamespace(name string) *namespace {
	n := c.next.inventory[name]
	if n != nil && c.copied[n] {
		return n
	}
	fresh := &namespace{pods: make(map[string]*RegisteredPod)}
	if n != nil {
		*fresh = namespace{n.known, n.labels, maps.Clone(n.pods)}
	}
	c.next.inventory[name], c.copied[fresh] = fresh, true
	return fresh
}
