package flow

import (
	"net/netip"
	"slices"
	"strings"
)

// Sight says what a reader may see: everything, or the flows with an end in
// some namespaces of one cluster. Of such a flow's other end it shows the
// namespace only. The zero value sees nothing.
type Sight struct {
	all        bool
	cluster    string
	namespaces []string // sorted
}

// SeeAll sees everything.
func SeeAll() Sight { return Sight{all: true} }

// SeeNamespaces sees what has to do with namespaces of a cluster.
func SeeNamespaces(cluster string, namespaces ...string) Sight {
	names := slices.DeleteFunc(slices.Clone(namespaces), func(n string) bool { return n == "" })
	slices.Sort(names)
	return Sight{cluster: cluster, namespaces: slices.Compact(names)}
}

// All reports whether it sees everything.
func (s Sight) All() bool { return s.all }

// Nothing reports whether it sees nothing at all.
func (s Sight) Nothing() bool { return !s.all && len(s.namespaces) == 0 }

// Cluster is the cluster whose namespaces these are; empty for everything.
func (s Sight) Cluster() string { return s.cluster }

// Namespaces are those that it sees, sorted; none for everything.
func (s Sight) Namespaces() []string { return slices.Clone(s.namespaces) }

// Namespace reports whether it sees what is in a namespace. What is in none is
// for those who see everything.
func (s Sight) Namespace(name string) bool {
	if s.all {
		return true
	}
	_, found := slices.BinarySearch(s.namespaces, name)
	return found && name != ""
}

// Equal reports whether both see the same.
func (s Sight) Equal(o Sight) bool {
	return s.all == o.all && s.cluster == o.cluster && slices.Equal(s.namespaces, o.namespaces)
}

// Flow is a flow as it shows; false if it does not.
func (s Sight) Flow(f Flow) (Flow, bool) {
	if s.all {
		return f, true
	}
	source, destination := s.endpoint(f.Source), s.endpoint(f.Destination)
	if f.Cluster != s.cluster || !source && !destination {
		return Flow{}, false
	}
	f.Node = s.reporter(&f, source, destination)
	if !source && !bare(f.Source) {
		f.Src, f.TranslatedSrc = netip.Addr{}, netip.Addr{}
	}
	if !destination && !bare(f.Destination) {
		f.Dst = netip.Addr{}
	}
	f.Source, f.Destination = s.shown(f.Source), s.shown(f.Destination)
	if f.Service != nil && !s.Namespace(f.Service.Namespace) {
		f.Service = nil
	}
	f.Policies = s.Policies(f.Policies)
	return f, true
}

// Policies are those of the namespaces that it sees.
func (s Sight) Policies(refs []PolicyRef) []PolicyRef {
	if s.all {
		return refs
	}
	return slices.DeleteFunc(slices.Clone(refs), func(p PolicyRef) bool { return p.Kind == KindNetfilter || !s.Namespace(p.Namespace) })
}

func (s Sight) endpoint(e *Endpoint) bool { return e != nil && s.Namespace(e.Namespace) }

// bare reports whether an end has no namespace that could withhold it: it is
// known to be no pod and no Service.
func bare(e *Endpoint) bool { return e != nil && e.Namespace == "" && bareKind(e.Kind) }

func bareKind(k EndpointKind) bool {
	return k == EndpointNode || k == EndpointOutside || k == EndpointAPIServer
}

// shown is what shows of an end.
func (s Sight) shown(e *Endpoint) *Endpoint {
	switch {
	case e == nil:
		return nil
	case s.Namespace(e.Namespace):
		out := *e
		out.Candidates = s.candidates(e.Candidates)
		return &out
	case bare(e):
		return &Endpoint{Kind: e.Kind, Node: e.Node, Candidates: s.candidates(e.Candidates)}
	case e.Namespace == "":
		return nil
	}
	return &Endpoint{Namespace: e.Namespace}
}

func (s Sight) candidates(names []string) []string {
	var out []string
	for _, n := range names {
		if namespace, _, ok := strings.Cut(n, "/"); ok && s.Namespace(namespace) {
			out = append(out, n)
		}
	}
	return out
}

// reporter is the node that reports where that does not tell where the other
// end is.
func (s Sight) reporter(f *Flow, source, destination bool) string {
	if strings.Contains(f.Node, "/") {
		if s.reports(f.Node) {
			return f.Node
		}
		return ""
	}
	if source && f.Source.Node == f.Node || destination && f.Destination.Node == f.Node {
		return f.Node
	}
	return ""
}

// reports tells whether it sees who reports: a node, or a pod as namespace/name.
func (s Sight) reports(reporter string) bool {
	namespace, _, pod := strings.Cut(reporter, "/")
	return s.all || !pod || s.Namespace(namespace)
}

// Change reports whether it sees a change: of a namespace, or of what is in it.
func (s Sight) Change(c *Change) bool {
	if s.all {
		return true
	}
	namespace := c.Namespace
	if c.Kind == ChangeNamespace && namespace == "" {
		namespace = c.Name
	}
	return c.Cluster == s.cluster && s.Namespace(namespace)
}

// Gap is a gap as it shows; false if it does not. How well nodes are watched
// is for every reader to know, for an answer means nothing without; why not is
// told in words that may name anything.
func (s Sight) Gap(g Gap) (Gap, bool) {
	if s.all {
		return g, true
	}
	g.Detail = ""
	return g, !s.Nothing() && s.reports(g.Node)
}

// Coverage is coverage as it shows.
func (s Sight) Coverage(c Coverage) Coverage {
	if s.all {
		return c
	}
	out := Coverage{Since: c.Since, Until: c.Until}
	for _, n := range c.Nodes {
		if s.Nothing() || !s.reports(n.Node) {
			continue
		}
		shown := NodeCoverage{Node: n.Node, Scope: n.Scope, Covered: n.Covered, Limits: n.Limits}
		for _, g := range n.Gaps {
			if g, ok := s.Gap(g); ok {
				shown.Gaps = append(shown.Gaps, g)
			}
		}
		out.Nodes = append(out.Nodes, shown)
	}
	return out
}
