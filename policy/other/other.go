// Package other tells which pods policies of other kinds than NetworkPolicy select: those of Calico, Cilium, Antrea and of network-policy-api.
package other

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Pod is what a selector can see of a pod.
type Pod struct {
	Namespace string
	// NamespaceLabels is nil if they are not known.
	NamespaceLabels map[string]string
	Labels          map[string]string
}

// Policy is a policy of another kind, as far as it says whom it selects. It is
// never changed.
type Policy struct {
	Kind      string
	Namespace string // empty if it is of the whole cluster
	Name      string
	// Doubt says why the policy, or a part of it, is taken to select all pods
	// that it could; empty if its selectors are understood.
	Doubt string

	nodes   bool
	targets []expression // it selects a pod that one of them holds for
}

// Read reads a policy's JSON. It never fails: what cannot be understood may
// select every pod of the policy's namespace, or of the cluster.
func Read(group, kind, namespace, name string, object []byte) *Policy {
	p := &Policy{Kind: kind, Namespace: namespace, Name: name}
	if object == nil {
		p.doubtful("there is no permission to read policies of this kind")
		return p
	}
	var err error
	switch group {
	case "projectcalico.org", "crd.projectcalico.org":
		err = p.calico(object)
	case "cilium.io":
		err = p.cilium(object)
	case "policy.networking.k8s.io":
		err = p.subject(object)
	case "crd.antrea.io":
		err = p.antrea(object)
	default:
		err = fmt.Errorf("whom a %s of %s selects is not known here", kind, group)
	}
	if err != nil {
		p.doubtful(err.Error())
	}
	return p
}

// String is the kind and name.
func (p *Policy) String() string {
	return strings.TrimSpace(p.Kind + " " + strings.TrimPrefix(p.Namespace+"/"+p.Name, "/"))
}

// Selects reports whether the policy selects a pod, or may.
func (p *Policy) Selects(pod *Pod) bool {
	if p.Namespace != "" && p.Namespace != pod.Namespace {
		return false
	}
	for _, t := range p.targets {
		if t(pod) != no {
			return true
		}
	}
	return false
}

// SelectsNodes reports whether the policy selects nodes, or may: which of them
// is not asked.
func (p *Policy) SelectsNodes() bool { return p.nodes }

// doubtful makes the policy select, perhaps, whatever it could.
func (p *Policy) doubtful(why string) {
	if p.Doubt == "" {
		p.Doubt = why
	}
	p.targets = append(p.targets, func(*Pod) truth { return maybe })
	p.nodes = p.nodes || p.Namespace == ""
}

// Set is a cluster's policies of other kinds. The nil Set has none.
type Set struct {
	wide        []*Policy
	byNamespace map[string][]*Policy
}

// NewSet returns a set of policies.
func NewSet(policies []*Policy) *Set {
	s := &Set{byNamespace: make(map[string][]*Policy)}
	for _, p := range policies {
		if p.Namespace == "" {
			s.wide = append(s.wide, p)
		} else {
			s.byNamespace[p.Namespace] = append(s.byNamespace[p.Namespace], p)
		}
	}
	return s
}

// Empty reports whether there are no policies.
func (s *Set) Empty() bool { return s == nil || len(s.wide)+len(s.byNamespace) == 0 }

// Selecting lists the policies that select a pod, or may.
func (s *Set) Selecting(pod *Pod) (out []*Policy) {
	if s == nil {
		return nil
	}
	for _, list := range [][]*Policy{s.wide, s.byNamespace[pod.Namespace]} {
		for _, p := range list {
			if p.Selects(pod) {
				out = append(out, p)
			}
		}
	}
	return out
}

// SelectingNodes lists the policies that select nodes, or may.
func (s *Set) SelectingNodes() (out []*Policy) {
	if s == nil {
		return nil
	}
	for _, p := range s.wide {
		if p.nodes {
			out = append(out, p)
		}
	}
	return out
}

// Doubtful lists the policies that may select more than is known.
func (s *Set) Doubtful() (out []*Policy) {
	if s == nil {
		return nil
	}
	add := func(list []*Policy) {
		for _, p := range list {
			if p.Doubt != "" {
				out = append(out, p)
			}
		}
	}
	add(s.wide)
	for _, list := range s.byNamespace {
		add(list)
	}
	return out
}

func decode(object []byte, into any) error {
	if err := json.Unmarshal(object, into); err != nil {
		return fmt.Errorf("cannot be read: %w", err)
	}
	return nil
}
