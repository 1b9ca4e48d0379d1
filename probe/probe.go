// Package probe sends traffic of its own, to see whether NetworkPolicies are enforced.
package probe

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
)

// Options configure a probe of a cluster.
type Options struct {
	Core, Networking rest.Interface // clients of v1 and of networking.k8s.io/v1
	Nodes            []string       // to look at; empty for those that take pods, MaxNodes at most
	// Image is agnhost, or what has its commands: /agnhost pause, netexec and
	// connect.
	Image   string
	Timeout time.Duration // of each step
	// Say tells a person what is being done.
	Say func(format string, args ...any)
}

// DefaultImage is what Kubernetes tests network plugins with.
const DefaultImage = "registry.k8s.io/e2e-test-images/agnhost:2.53"

// MaxNodes are looked at where none is named.
const MaxNodes = 10

// Validate names what cannot work.
func (o *Options) Validate() error {
	switch {
	case o.Core == nil || o.Networking == nil || o.Say == nil:
		return errors.New("probe: Core, Networking and Say must be set")
	case o.Image == "":
		return errors.New("probe: the image is empty")
	case o.Timeout < 10*time.Second || o.Timeout > 10*time.Minute:
		return fmt.Errorf("probe: a timeout of %s: want 10s to 10m", o.Timeout)
	}
	return nil
}

// State is what a probe showed.
type State string

// The states.
const (
	Enforced   State = "enforced"   // what passed before was refused while the policy was there
	Unenforced State = "unenforced" // it passed all the time
	// Unreachable: it did not pass without a policy either.
	Unreachable State = "unreachable"
	// Stuck: it was refused, and was so after the policy was gone.
	Stuck State = "stuck"
)

// Sides of a policy.
const (
	Ingress = "ingress"
	Egress  = "egress"
)

// Result is what was seen of one pair of pods and one side.
type Result struct {
	Client string `json:"client"`         // the client's node
	Server string `json:"server"`         // the server's node
	Side   string `json:"side,omitempty"` // whose policy it was; empty where there was no way
	Node   string `json:"node,omitempty"` // that has to enforce it
	State  State  `json:"state"`
	// AfterMillis is how long after the policy was made the first connection was refused.
	AfterMillis int64 `json:"after_ms,omitempty"`
}

// Problem reports whether something is wrong.
func (r *Result) Problem() bool { return r.State != Enforced }

// cleanupTime bounds the removal, which a caller's end does not interrupt.
const cleanupTime = 90 * time.Second

// Run makes a namespace with a server on each node and two clients, of its own
// and of the next node's server. When they talk, a policy denies it, on each
// side in turn, and everything is removed again, also where ctx ends early.
func Run(ctx context.Context, o Options) (results []Result, err error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	r := &run{Options: o, api: api{o.Core, o.Networking}}
	if err := r.sweep(ctx); err != nil {
		return nil, err
	}
	if err := r.choose(ctx); err != nil {
		return nil, err
	}
	o.Say("makes a namespace with %d servers and %d clients on %s, image %s; denies their traffic by a policy of each side in turn; removes everything",
		len(r.nodes), len(r.pairs), list(r.nodes), o.Image)
	defer func() { err = errors.Join(err, r.remove(context.WithoutCancel(ctx))) }()
	if err := r.populate(ctx); err != nil {
		return nil, err
	}
	for _, side := range []string{Ingress, Egress} {
		if err := r.try(ctx, side); err != nil {
			return nil, err
		}
	}
	return r.results, nil
}

// run is one probe.
type run struct {
	Options
	api       api
	namespace string // empty before it is made
	nodes     []string
	pairs     []*pair
	results   []Result
}

// pair is a client and the server that it dials all the time.
type pair struct {
	client, server string // nodes
	pod            string // the client's name
	talks          bool
}

// choose finds the nodes, and which of them talk.
func (r *run) choose(ctx context.Context) error {
	nodes, err := r.api.nodes(ctx)
	if err != nil {
		return err
	}
	known := make(map[string]bool)
	for i := range nodes {
		n := &nodes[i]
		known[n.Name] = true
		if len(r.Nodes) == 0 && takesPods(n) {
			r.nodes = append(r.nodes, n.Name)
		}
	}
	for _, name := range r.Nodes {
		if !known[name] {
			return fmt.Errorf("probe node %s: the cluster has none of that name", name)
		}
		r.nodes = append(r.nodes, name)
	}
	if len(r.Nodes) == 0 && len(r.nodes) > MaxNodes {
		r.Say("looks at %d of %d nodes; name others to look at these", MaxNodes, len(r.nodes))
		r.nodes = r.nodes[:MaxNodes]
	}
	if len(r.nodes) == 0 {
		return errors.New("probe: no node is ready and takes pods")
	}
	for i, n := range r.nodes {
		r.pairs = append(r.pairs, &pair{client: n, server: n, pod: fmt.Sprintf("client-%d-near", i)})
		if next := r.nodes[(i+1)%len(r.nodes)]; next != n {
			r.pairs = append(r.pairs, &pair{client: n, server: next, pod: fmt.Sprintf("client-%d-far", i)})
		}
	}
	return nil
}

// takesPods reports whether a node is ready, and any pod may run on it.
func takesPods(n *corev1.Node) bool {
	if n.Spec.Unschedulable {
		return false
	}
	for _, t := range n.Spec.Taints {
		if t.Effect == corev1.TaintEffectNoSchedule || t.Effect == corev1.TaintEffectNoExecute {
			return false
		}
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func list(names []string) string {
	const shown = 5
	if len(names) > shown {
		return fmt.Sprintf("%d nodes", len(names))
	}
	text := ""
	for i, n := range names {
		if i > 0 {
			text += ", "
		}
		text += n
	}
	return text
}
