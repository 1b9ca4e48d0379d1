package history

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy"
)

type builder struct {
	h          *History
	identities map[identityKey]*Identity
	workloads  map[workloadKey]*Workload
	namespaces map[string]*Namespace
	present    map[policyKey]*Policy
}

// identityKey is the identity's number, or the labels where there is none.
type identityKey struct {
	namespace string
	id        uint64
	labels    string
}

type workloadKey struct {
	namespace string
	flow.Workload
}

func newBuilder(in Input) *builder {
	return &builder{
		h: &History{
			Since: in.Since, Until: in.Until, Coverage: in.Coverage, classes: policy.NewClasses(),
			nodes: make(map[netip.Addr]string), Revisions: []Revision{{Time: in.Since}},
		},
		identities: make(map[identityKey]*Identity),
		workloads:  make(map[workloadKey]*Workload),
		namespaces: make(map[string]*Namespace),
		present:    make(map[policyKey]*Policy),
	}
}

// timeline takes changes in, in the order of their time.
func (b *builder) timeline(changes []flow.Change) {
	changes = slices.Clone(changes)
	slices.SortStableFunc(changes, func(x, y flow.Change) int { return x.Time.Compare(y.Time) })
	for i := range changes {
		c := &changes[i]
		if c.Time.After(b.h.Until) {
			continue
		}
		if err := b.change(c); err != nil {
			b.h.Problems = append(b.h.Problems, fmt.Sprintf("%s %s/%s of %s cannot be read: %v", c.Kind, c.Namespace, c.Name, c.Time.UTC().Format("2006-01-02 15:04"), err))
		}
	}
}

func (b *builder) change(c *flow.Change) error {
	switch c.Kind {
	case flow.ChangePolicy:
		return b.policy(c)
	case flow.ChangeNamespace:
		n := b.namespace(c.Name)
		if c.Deleted {
			n.Deleted = c.Time
			return nil
		}
		labels := make(map[string]string)
		if err := json.Unmarshal(c.Object, &labels); err != nil {
			return err
		}
		n.Labels, n.Known, n.Deleted = labels, true, time.Time{}
	case flow.ChangeIdentity:
		return b.identity(c)
	}
	return nil
}

func (b *builder) policy(c *flow.Change) error {
	p := &Policy{Changed: c.Time, Author: c.Author, namespace: c.Namespace, name: c.Name}
	if !c.Deleted {
		p.NetworkPolicy = &networkingv1.NetworkPolicy{}
		if err := json.Unmarshal(c.Object, p.NetworkPolicy); err != nil {
			return err
		}
		p.NetworkPolicy.Namespace, p.NetworkPolicy.Name = c.Namespace, c.Name
	}
	last := &b.h.Revisions[len(b.h.Revisions)-1]
	if c.Time.After(last.Time) {
		b.h.Revisions = append(b.h.Revisions, Revision{Time: c.Time})
		last = &b.h.Revisions[len(b.h.Revisions)-1]
	}
	last.Changes = append(last.Changes, p)
	key := policyKey{c.Namespace, c.Name}
	if c.Deleted {
		delete(b.present, key)
	} else {
		b.present[key] = p
	}
	return nil
}

func (b *builder) namespace(name string) *Namespace {
	n := b.namespaces[name]
	if n == nil {
		n = &Namespace{Name: name}
		b.namespaces[name] = n
	}
	return n
}

func (b *builder) identity(c *flow.Change) error {
	id, err := strconv.ParseUint(c.Name, 16, 64)
	if err != nil {
		return fmt.Errorf("%q is no identity", c.Name)
	}
	key := identityKey{namespace: c.Namespace, id: id}
	if c.Deleted {
		if i := b.identities[key]; i != nil {
			i.Present = false
			i.seen(c.Time, c.Time)
		}
		return nil
	}
	var s flow.IdentityState
	if err := json.Unmarshal(c.Object, &s); err != nil {
		return err
	}
	i := b.identities[key]
	if i == nil {
		i = &Identity{ID: id, Namespace: c.Namespace, Labels: s.Labels, NamespaceLabels: s.NamespaceLabels}
		if i.NamespaceLabels == nil {
			i.NamespaceLabels = map[string]string{}
		}
		b.identities[key] = i
	}
	i.Present = true
	i.seen(c.Time, c.Time)
	i.states = append(i.states, identityState{from: c.Time, known: true, ports: s.Ports})
	if s.Workload.Name != "" {
		b.workload(c.Namespace, s.Workload).add(i)
	}
	return nil
}

func (b *builder) workload(namespace string, w flow.Workload) *Workload {
	key := workloadKey{namespace, w}
	known := b.workloads[key]
	if known == nil {
		known = &Workload{Namespace: namespace, Workload: w}
		b.workloads[key] = known
	}
	return known
}

func (w *Workload) add(i *Identity) {
	if !slices.Contains(w.Identities, i) {
		w.Identities = append(w.Identities, i)
	}
	if !slices.Contains(i.Workloads, w) {
		i.Workloads = append(i.Workloads, w)
	}
}

func (b *builder) edges(edges []*flow.Edge) {
	for _, e := range edges {
		out := &Edge{Edge: e}
		out.From = b.end(&e.Source, e.SourceLabels, e)
		out.To = b.end(&e.Destination, e.DestinationLabels, e)
		if w := out.From.Workload; w != nil {
			w.Egress++
		}
		if w := out.To.Workload; w != nil {
			w.Ingress++
		}
		b.h.Edges = append(b.h.Edges, out)
	}
	slices.SortStableFunc(b.h.Edges, func(x, y *Edge) int {
		return cmp.Or(x.First.Compare(y.First), compareKeys(&x.EdgeKey, &y.EdgeKey))
	})
	for n, e := range b.h.Edges {
		e.Number = n
	}
}

func (b *builder) end(e *flow.EdgeEnd, labels map[string]string, edge *flow.Edge) End {
	if e.Kind == flow.EndpointNode && e.Prefix.IsSingleIP() {
		b.h.nodes[e.Prefix.Addr()] = e.Node
	}
	if e.Kind != flow.EndpointPod {
		return End{}
	}
	key := keyOf(e, labels)
	i := b.identities[key]
	if i == nil {
		i = b.stranger(e, labels)
		b.identities[key] = i
	}
	i.seen(edge.First, edge.Last)
	b.namespace(e.Namespace)
	out := End{Identity: i}
	if e.Workload.Name != "" {
		out.Workload = b.workload(e.Namespace, e.Workload)
		out.Workload.add(i)
		out.Workload.Last = later(out.Workload.Last, edge.Last)
	}
	return out
}

func keyOf(e *flow.EdgeEnd, labels map[string]string) identityKey {
	key := identityKey{namespace: e.Namespace, id: e.Identity}
	if e.Identity == 0 {
		key.labels = labelText(labels)
	}
	return key
}

// stranger is an identity that only an edge tells of.
func (b *builder) stranger(e *flow.EdgeEnd, labels map[string]string) *Identity {
	i := &Identity{ID: e.Identity, Namespace: e.Namespace, Labels: labels}
	if n := b.namespaces[e.Namespace]; n != nil && n.Known {
		i.NamespaceLabels = n.Labels
	}
	return i
}

// finish sorts everything, so that the same input gives the same history.
func (b *builder) finish() *History {
	h := b.h
	h.identities = b.identities
	for _, i := range b.identities {
		i.classify(h.classes)
		slices.SortFunc(i.Workloads, compareWorkloads)
		h.Identities = append(h.Identities, i)
	}
	slices.SortFunc(h.Identities, compareIdentities)
	for _, w := range b.workloads {
		slices.SortFunc(w.Identities, func(x, y *Identity) int { return cmp.Or(x.First.Compare(y.First), compareIdentities(x, y)) })
		for _, i := range w.Identities {
			if w.First.IsZero() || i.First.Before(w.First) {
				w.First = i.First
			}
			w.Last = later(w.Last, i.Last)
		}
		h.Workloads = append(h.Workloads, w)
	}
	slices.SortFunc(h.Workloads, compareWorkloads)
	for _, n := range b.namespaces {
		h.Namespaces = append(h.Namespaces, n)
	}
	slices.SortFunc(h.Namespaces, func(x, y *Namespace) int { return cmp.Compare(x.Name, y.Name) })
	for _, p := range b.present {
		h.Policies = append(h.Policies, p)
	}
	slices.SortFunc(h.Policies, func(x, y *Policy) int {
		return cmp.Or(cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name))
	})
	return h
}

func labelText(labels map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		b.WriteString(k + "=" + labels[k] + ",")
	}
	return b.String()
}
