package other

import (
	"errors"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// subject reads a policy of network-policy-api: AdminNetworkPolicy,
// BaselineAdminNetworkPolicy or ClusterNetworkPolicy.
func (p *Policy) subject(object []byte) error {
	var o struct {
		Spec struct {
			Subject struct {
				Namespaces *metav1.LabelSelector `json:"namespaces"`
				Pods       *struct {
					NamespaceSelector metav1.LabelSelector `json:"namespaceSelector"`
					PodSelector       metav1.LabelSelector `json:"podSelector"`
				} `json:"pods"`
			} `json:"subject"`
		} `json:"spec"`
	}
	if err := decode(object, &o); err != nil {
		return err
	}
	switch s := &o.Spec.Subject; {
	case s.Namespaces != nil && s.Pods == nil:
		return p.selectIn(s.Namespaces, &metav1.LabelSelector{}, "spec.subject")
	case s.Pods != nil && s.Namespaces == nil:
		return p.selectIn(&s.Pods.NamespaceSelector, &s.Pods.PodSelector, "spec.subject")
	}
	return errors.New("spec.subject has neither namespaces nor pods, or both")
}

// selectIn adds the pods of some namespaces.
func (p *Policy) selectIn(namespaces, pods *metav1.LabelSelector, field string) error {
	inNamespace, err := labelSelector(namespaces, namespaceLabels)
	if err != nil {
		return fmt.Errorf("%s: %w", field, err)
	}
	isPod, err := labelSelector(pods, podLabels)
	if err != nil {
		return fmt.Errorf("%s: %w", field, err)
	}
	p.targets = append(p.targets, all(inNamespace, isPod))
	return nil
}
