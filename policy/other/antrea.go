package other

import (
	"encoding/json"
	"errors"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// antreaTarget is an item of appliedTo.
type antreaTarget struct {
	PodSelector            *metav1.LabelSelector `json:"podSelector"`
	NamespaceSelector      *metav1.LabelSelector `json:"namespaceSelector"`
	NodeSelector           *metav1.LabelSelector `json:"nodeSelector"`
	ExternalEntitySelector json.RawMessage       `json:"externalEntitySelector"`
}

type antreaRule struct {
	AppliedTo []antreaTarget `json:"appliedTo"`
}

// antrea reads a NetworkPolicy or ClusterNetworkPolicy of Antrea.
func (p *Policy) antrea(object []byte) error {
	var o struct {
		Spec struct {
			AppliedTo []antreaTarget `json:"appliedTo"`
			Ingress   []antreaRule   `json:"ingress"`
			Egress    []antreaRule   `json:"egress"`
		} `json:"spec"`
	}
	if err := decode(object, &o); err != nil {
		return err
	}
	targets := o.Spec.AppliedTo
	for _, rules := range [][]antreaRule{o.Spec.Ingress, o.Spec.Egress} {
		for _, r := range rules {
			targets = append(targets, r.AppliedTo...)
		}
	}
	if len(targets) == 0 {
		return errors.New("it has no appliedTo")
	}
	for i := range targets {
		if err := p.appliedTo(&targets[i]); err != nil {
			return fmt.Errorf("appliedTo: %w", err)
		}
	}
	return nil
}

func (p *Policy) appliedTo(t *antreaTarget) error {
	everything := &metav1.LabelSelector{}
	switch {
	case t.NodeSelector != nil:
		p.nodes = true
	case t.ExternalEntitySelector != nil: // no pods
	case t.PodSelector == nil && t.NamespaceSelector == nil:
		return errors.New("a group, Service or service account: which pods that means is not known here")
	case t.PodSelector == nil:
		return p.selectIn(t.NamespaceSelector, everything, "namespaceSelector")
	case t.NamespaceSelector == nil:
		return p.selectIn(everything, t.PodSelector, "podSelector")
	default:
		return p.selectIn(t.NamespaceSelector, t.PodSelector, "podSelector and namespaceSelector")
	}
	return nil
}
