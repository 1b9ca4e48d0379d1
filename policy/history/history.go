// Package history joins recorded edges with the timeline: who talked, with which labels, under which policies.
package history

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy"
)

// Input is what was recorded of one cluster over a time.
type Input struct {
	Since, Until time.Time
	Edges        []*flow.Edge
	// Changes are the state at Since, and what changed until Until.
	Changes  []flow.Change
	Coverage flow.Coverage
}

// Validate reports what cannot be.
func (in *Input) Validate() error {
	if in.Until.IsZero() || in.Until.Before(in.Since) {
		return fmt.Errorf("history from %s until %s: the end is before the beginning", in.Since.Format(time.RFC3339), in.Until.Format(time.RFC3339))
	}
	for _, e := range in.Edges {
		if e.Cluster != in.Edges[0].Cluster {
			return errors.New("the edges are of several clusters: choose one")
		}
	}
	return nil
}

// OneCluster is the cluster that edges are of. With several it is the one that
// is asked for, and without an answer to that an error that lists them.
func OneCluster(edges []*flow.Edge, asked string) (string, error) {
	if asked != "" {
		return asked, nil
	}
	var names []string
	for _, e := range edges {
		if !slices.Contains(names, e.Cluster) {
			names = append(names, e.Cluster)
		}
	}
	switch len(names) {
	case 0:
		return "", nil
	case 1:
		return names[0], nil
	}
	slices.Sort(names)
	return "", fmt.Errorf("which cluster? several were recorded: %s", strings.Join(names, ", "))
}

// History is a cluster's past. It is never changed and may be used concurrently.
type History struct {
	Since, Until time.Time
	Coverage     flow.Coverage
	Edges        []*Edge      // ordered by First
	Workloads    []*Workload  // sorted by namespace, kind and name
	Identities   []*Identity  // sorted by namespace and number
	Namespaces   []*Namespace // sorted by name
	// Policies are those at Until, sorted by namespace and name.
	Policies []*Policy
	// Revisions are the changes of policies, ordered by time. The first holds
	// the policies at Since.
	Revisions []Revision
	// Problems are entries of the timeline that could not be read, in plain words.
	Problems []string

	classes    *policy.Classes
	nodes      map[netip.Addr]string
	identities map[identityKey]*Identity
}

// Edge is a recorded edge whose ends are known objects.
type Edge struct {
	*flow.Edge
	From, To End
	Number   int // its place in Edges
}

// End is one end of an Edge. Identity and Workload are nil unless it is pods.
type End struct {
	Identity *Identity
	Workload *Workload
}

// Namespace is a namespace that was seen in the time.
type Namespace struct {
	Name    string
	Labels  map[string]string
	Known   bool      // its labels are
	Deleted time.Time // zero while it is there
}

// New joins what was recorded. Entries of the timeline that cannot be read are
// Problems of the result and no error.
func New(in Input) (*History, error) {
	if err := in.Validate(); err != nil {
		return nil, err
	}
	b := newBuilder(in)
	b.timeline(in.Changes)
	b.edges(in.Edges)
	return b.finish(), nil
}

// Classes makes the classes of all ends of this history.
func (h *History) Classes() *policy.Classes { return h.classes }

// Node names the node that has an address; "" if none is known to.
func (h *History) Node(a netip.Addr) string { return h.nodes[a] }

// Namespace finds a namespace by name; nil if it was never seen.
func (h *History) Namespace(name string) *Namespace {
	i, ok := slices.BinarySearchFunc(h.Namespaces, name, func(n *Namespace, name string) int { return cmp.Compare(n.Name, name) })
	if !ok {
		return nil
	}
	return h.Namespaces[i]
}

// Workload finds a workload; nil if it was never seen.
func (h *History) Workload(namespace string, w flow.Workload) *Workload {
	for _, known := range h.Workloads {
		if known.Namespace == namespace && known.Workload == w {
			return known
		}
	}
	return nil
}

// Blind says how much of the time was not watched, of all nodes together, from
// 0 to 1; 1 if no node reported.
func (h *History) Blind() float64 {
	span := h.Coverage.Until.Sub(h.Coverage.Since)
	if len(h.Coverage.Nodes) == 0 {
		return 1
	}
	if span <= 0 {
		return 0
	}
	var covered time.Duration
	for _, n := range h.Coverage.Nodes {
		covered += min(n.Covered, span)
	}
	return 1 - float64(covered)/float64(span*time.Duration(len(h.Coverage.Nodes)))
}
