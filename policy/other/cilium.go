package other

import (
	"errors"
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ciliumRule is the part of a rule that selects.
type ciliumRule struct {
	EndpointSelector *metav1.LabelSelector `json:"endpointSelector"`
	NodeSelector     *metav1.LabelSelector `json:"nodeSelector"`
}

// ciliumPodNamespace is the label that holds a pod's namespace.
const ciliumPodNamespace = "io.kubernetes.pod.namespace"

// cilium reads a CiliumNetworkPolicy or CiliumClusterwideNetworkPolicy.
func (p *Policy) cilium(object []byte) error {
	var o struct {
		Spec  *ciliumRule   `json:"spec"`
		Specs []*ciliumRule `json:"specs"`
	}
	if err := decode(object, &o); err != nil {
		return err
	}
	if o.Spec != nil {
		o.Specs = append(o.Specs, o.Spec)
	}
	if len(o.Specs) == 0 {
		return errors.New("it has neither spec nor specs")
	}
	for _, r := range o.Specs {
		switch {
		case r != nil && r.NodeSelector != nil:
			p.nodes = true
		case r == nil || r.EndpointSelector == nil:
			return errors.New("a rule has neither endpointSelector nor nodeSelector")
		default:
			p.ownNamespace(r.EndpointSelector)
			e, err := labelSelector(r.EndpointSelector, ciliumPod)
			if err != nil {
				return fmt.Errorf("endpointSelector: %w", err)
			}
			p.targets = append(p.targets, e)
		}
	}
	return nil
}

// ownNamespace drops a namespace that a namespaced policy asks for: Cilium
// puts the policy's own in its place.
func (p *Policy) ownNamespace(s *metav1.LabelSelector) {
	for key := range s.MatchLabels {
		if p.Namespace != "" && withoutSource(key) == ciliumPodNamespace {
			delete(s.MatchLabels, key)
		}
	}
}

// withoutSource cuts off where a label is from, of those that a pod's can be from.
func withoutSource(key string) string {
	return strings.TrimPrefix(strings.TrimPrefix(key, "any:"), "k8s:")
}

func ciliumPod(p *Pod, key string) (string, truth) {
	key = withoutSource(key)
	if of, ok := strings.CutPrefix(key, "io.cilium.k8s.namespace.labels."); ok {
		return namespaceLabels(p, of)
	}
	switch {
	case key == ciliumPodNamespace:
		return p.Namespace, yes
	case strings.HasPrefix(key, "io.cilium.k8s."): // the service account and the cluster
		return "", maybe
	case strings.HasPrefix(key, "reserved:"):
		return "", no // no pod has one
	case strings.Contains(key, ":"):
		return "", maybe // a source that is not known here
	}
	return podLabels(p, key)
}
