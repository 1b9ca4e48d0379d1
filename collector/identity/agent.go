// Package identity says which agent calls, by its certificate or by the token of its ServiceAccount.
package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/flowaudit/flowaudit/flow"
)

// Agent is an agent whose identity is proven: that of a node, or of a pod.
type Agent struct {
	Cluster        string
	Node           string // of a node's agent; empty for a pod's
	Namespace, Pod string // of a pod's own agent
}

// Reporter is the name that the agent's batches have as their node.
func (a Agent) Reporter() string {
	if a.Node != "" {
		return a.Node
	}
	return a.Namespace + "/" + a.Pod
}

func (a Agent) scope() flow.Scope {
	if a.Node != "" {
		return flow.ScopeNode
	}
	return flow.ScopePod
}

func (a Agent) String() string {
	return a.scope().String() + " " + a.Reporter() + " of cluster " + a.Cluster
}

// Check says what of a batch the agent may not report: it speaks for its own
// cluster and its own node or pod, and for nobody else.
func (a Agent) Check(b *flow.Batch) error {
	switch {
	case b.Key.Cluster != a.Cluster:
		return fmt.Errorf("the agent is %s, and its batch is of cluster %q", a, b.Key.Cluster)
	case b.Scope != a.scope() || b.Node != a.Reporter():
		return fmt.Errorf("the agent is %s, and its batch is of %s %q", a, b.Scope, b.Node)
	}
	for i := range b.Flows {
		if f := &b.Flows[i]; f.Node != b.Node || f.Cluster != b.Key.Cluster {
			return fmt.Errorf("the agent is %s, and flow %d is of node %q of cluster %q", a, i, f.Node, f.Cluster)
		}
	}
	for i := range b.Gaps {
		if g := &b.Gaps[i]; g.Node != b.Node {
			return fmt.Errorf("the agent is %s, and gap %d is of node %q", a, i, g.Node)
		}
	}
	return nil
}

// uriScheme is that of the names which agents have in certificates.
const uriScheme = "flowaudit"

// FromCertificate reads the URI name (RFC 5280, 4.2.1.6) of a certificate that
// was verified: flowaudit://CLUSTER/node/NAME or flowaudit://CLUSTER/pod/NAMESPACE/NAME.
func FromCertificate(c *x509.Certificate) (Agent, error) {
	var found []Agent
	for _, u := range c.URIs {
		if u.Scheme != uriScheme {
			continue
		}
		a, err := fromURI(u)
		if err != nil {
			return Agent{}, err
		}
		found = append(found, a)
	}
	switch len(found) {
	case 0:
		return Agent{}, errors.New("the certificate has no URI name such as flowaudit://CLUSTER/node/NAME, and is no agent's")
	case 1:
		return found[0], nil
	}
	return Agent{}, errors.New("the certificate has several names of agents: issue one with a single name")
}

func fromURI(u *url.URL) (Agent, error) {
	parts := strings.Split(strings.TrimPrefix(u.EscapedPath(), "/"), "/")
	for i, p := range parts {
		text, err := url.PathUnescape(p)
		if err != nil || text == "" {
			return Agent{}, fmt.Errorf("the certificate's name %s is none of an agent", u)
		}
		parts[i] = text
	}
	switch {
	case u.Host != "" && len(parts) == 2 && parts[0] == "node":
		return Agent{Cluster: u.Host, Node: parts[1]}, nil
	case u.Host != "" && len(parts) == 3 && parts[0] == "pod":
		return Agent{Cluster: u.Host, Namespace: parts[1], Pod: parts[2]}, nil
	}
	return Agent{}, fmt.Errorf("the certificate's name %s is none of an agent: want flowaudit://CLUSTER/node/NAME or flowaudit://CLUSTER/pod/NAMESPACE/NAME", u)
}
