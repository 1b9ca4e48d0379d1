package other

import (
	"fmt"
	"strings"
)

// calico reads a NetworkPolicy or GlobalNetworkPolicy of Calico.
func (p *Policy) calico(object []byte) error {
	var o struct {
		Spec struct {
			Selector               string `json:"selector"`
			NamespaceSelector      string `json:"namespaceSelector"`
			ServiceAccountSelector string `json:"serviceAccountSelector"`
			DoNotTrack             bool   `json:"doNotTrack"`
			PreDNAT                bool   `json:"preDNAT"`
			ApplyOnForward         bool   `json:"applyOnForward"`
		} `json:"spec"`
	}
	if strings.HasPrefix(p.Kind, "Staged") {
		return nil // it is only watched, and decides nothing
	}
	if err := decode(object, &o); err != nil {
		return err
	}
	s := &o.Spec
	if s.DoNotTrack || s.PreDNAT || s.ApplyOnForward {
		return fmt.Errorf("it applies to traffic that nodes forward to any pod (doNotTrack, preDNAT or applyOnForward)")
	}
	var parts []expression
	for _, from := range []struct {
		field, text string
		view        view
	}{
		{"selector", s.Selector, calicoPod},
		{"namespaceSelector", s.NamespaceSelector, calicoNamespace},
		{"serviceAccountSelector", s.ServiceAccountSelector, calicoServiceAccount},
	} {
		e, err := parseCalico(from.text, from.view)
		if err != nil {
			return fmt.Errorf("spec.%s: %w", from.field, err)
		}
		parts = append(parts, e)
	}
	p.targets = []expression{all(parts...)}
	p.nodes = p.Namespace == "" // its selector may match host endpoints, whose labels are their own
	return nil
}

// Calico gives a pod's labels, and those of its namespace and service account
// with a prefix.
const (
	calicoPrefix           = "projectcalico.org/"
	calicoOfNamespace      = "pcns."
	calicoOfServiceAccount = "pcsa."
)

func calicoPod(p *Pod, key string) (string, truth) {
	switch key {
	case calicoPrefix + "namespace":
		return p.Namespace, yes
	case calicoPrefix + "orchestrator":
		return "k8s", yes
	case calicoPrefix + "serviceaccount":
		return "", maybe
	}
	if of, ok := strings.CutPrefix(key, calicoOfNamespace); ok {
		return calicoNamespace(p, of)
	}
	if of, ok := strings.CutPrefix(key, calicoOfServiceAccount); ok {
		return calicoServiceAccount(p, of)
	}
	return podLabels(p, key)
}

func calicoNamespace(p *Pod, key string) (string, truth) {
	if key == calicoPrefix+"name" {
		return p.Namespace, yes
	}
	return namespaceLabels(p, key)
}

// calicoServiceAccount: the labels of service accounts are not known here.
func calicoServiceAccount(*Pod, string) (string, truth) { return "", maybe }
