package flow

import (
	"fmt"
	"strings"
	"time"
)

// ChangeKind says what kind of object a Change is about.
type ChangeKind uint8

// The kinds.
const (
	ChangeUnknown   ChangeKind = iota
	ChangePolicy               // a NetworkPolicy
	ChangeNamespace            // a namespace's labels
	ChangeIdentity             // an identity that pods have: IdentityState
)

var changeKindNames = [...]string{"unknown", "policy", "namespace", "identity"}

// String returns the kind in lower case.
func (k ChangeKind) String() string { return name(changeKindNames[:], uint8(k)) }

// ParseChangeKind reads a kind in any case.
func ParseChangeKind(s string) (ChangeKind, error) {
	for i, n := range changeKindNames {
		if strings.EqualFold(s, n) {
			return ChangeKind(i), nil
		}
	}
	return ChangeUnknown, fmt.Errorf("parse kind of change %q: want one of %s", s, strings.Join(changeKindNames[1:], ", "))
}

// Change is an entry of the timeline: what an object became at a moment. The
// changes up to a moment say how the cluster was then.
type Change struct {
	Time    time.Time
	Cluster string
	Kind    ChangeKind
	// Namespace is empty for a namespace, whose name is Name. An identity's
	// Name is its 16 hexadecimal digits.
	Namespace, Name string
	// Author is the manager of the newest managedFields entry, such as
	// "kubectl-client-side-apply"; empty if it is not known.
	Author string
	// Deleted says that the object is gone: of an identity, that no pod has it.
	Deleted bool
	// Object is JSON: a NetworkPolicy of networking.k8s.io/v1 with its name,
	// labels and spec; a namespace's labels as an object; an IdentityState.
	// It is empty where Deleted is set.
	Object []byte
}

// IdentityState is what policies can see of the pods of an identity.
type IdentityState struct {
	Namespace       string            `json:"namespace"`
	NamespaceLabels map[string]string `json:"namespaceLabels,omitempty"`
	Workload        Workload          `json:"workload"`
	Labels          map[string]string `json:"labels,omitempty"`
	Ports           []NamedPort       `json:"ports,omitempty"`
}

// NamedPort is a port that a container gives a name to.
type NamedPort struct {
	Name     string   `json:"name"`
	Protocol Protocol `json:"protocol"`
	Port     uint16   `json:"port"`
}
