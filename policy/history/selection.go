package history

import (
	"fmt"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// nameLabel is the label that the control plane sets on every namespace.
const nameLabel = "kubernetes.io/metadata.name"

// Selection finds the identities that policies and peers select. The zero
// value selects none.
type Selection struct {
	byNamespace map[string][]*Identity
	selectors   map[string]labels.Selector
	peers       map[string][]*Identity // that were found before
}

// NewSelection chooses among identities. It may not be used concurrently.
func NewSelection(identities []*Identity) *Selection {
	s := &Selection{byNamespace: make(map[string][]*Identity), selectors: make(map[string]labels.Selector), peers: make(map[string][]*Identity)}
	for _, i := range identities {
		s.byNamespace[i.Namespace] = append(s.byNamespace[i.Namespace], i)
	}
	return s
}

// Subjects are the identities that a policy selects; none if its selector is
// invalid.
func (s *Selection) Subjects(p *networkingv1.NetworkPolicy) []*Identity {
	selector := s.selector(&p.Spec.PodSelector)
	if selector == nil {
		return nil
	}
	return matching(s.byNamespace[p.Namespace], selector)
}

// Peers are the identities that a peer of a policy in a namespace selects;
// none of an ipBlock, or if a selector is invalid. The result must not be changed.
func (s *Selection) Peers(namespace string, p *networkingv1.NetworkPolicyPeer) []*Identity {
	if p.IPBlock != nil || p.PodSelector == nil && p.NamespaceSelector == nil {
		return nil
	}
	key := namespace
	for _, l := range []*metav1.LabelSelector{p.NamespaceSelector, p.PodSelector} {
		key += "\x00"
		if l != nil {
			key += fmt.Sprint(l.MatchLabels, l.MatchExpressions)
		}
	}
	known, ok := s.peers[key]
	if !ok {
		known = s.find(namespace, p)
		s.peers[key] = known
	}
	return known
}

func (s *Selection) find(namespace string, p *networkingv1.NetworkPolicyPeer) []*Identity {
	pods := labels.Everything()
	if p.PodSelector != nil {
		if pods = s.selector(p.PodSelector); pods == nil {
			return nil
		}
	}
	if p.NamespaceSelector == nil {
		return matching(s.byNamespace[namespace], pods)
	}
	namespaces := s.selector(p.NamespaceSelector)
	if namespaces == nil {
		return nil
	}
	if name, ok := namespaces.RequiresExactMatch(nameLabel); ok && s.byNamespace[name] == nil {
		return nil
	} else if ok {
		return s.within(name, namespaces, pods)
	}
	var out []*Identity
	for name := range s.byNamespace {
		out = append(out, s.within(name, namespaces, pods)...)
	}
	slices.SortFunc(out, compareIdentities)
	return out
}

func (s *Selection) within(name string, namespaces, pods labels.Selector) []*Identity {
	var out []*Identity
	for _, i := range s.byNamespace[name] {
		of := labels.Set{nameLabel: name}
		for k, v := range i.NamespaceLabels {
			of[k] = v
		}
		if namespaces.Matches(of) && pods.Matches(labels.Set(i.Labels)) {
			out = append(out, i)
		}
	}
	return out
}

// selector compiles a selector once; nil if it is invalid.
func (s *Selection) selector(l *metav1.LabelSelector) labels.Selector {
	key := fmt.Sprint(l.MatchLabels, l.MatchExpressions)
	known, ok := s.selectors[key]
	if !ok {
		if compiled, err := metav1.LabelSelectorAsSelector(l); err == nil {
			known = compiled
		}
		s.selectors[key] = known
	}
	return known
}

func matching(identities []*Identity, pods labels.Selector) []*Identity {
	var out []*Identity
	for _, i := range identities {
		if pods.Matches(labels.Set(i.Labels)) {
			out = append(out, i)
		}
	}
	return out
}
