package flow

import (
	"cmp"
	"net/netip"
	"slices"
)

// Edge is an edge as it shows; false if it does not.
func (s Sight) Edge(e *Edge) (*Edge, bool) {
	if s.all {
		return e, true
	}
	source, destination := s.Namespace(e.Source.Namespace), s.Namespace(e.Destination.Namespace)
	if e.Cluster != s.cluster || !source && !destination {
		return nil, false
	}
	out := *e
	if !source {
		out.Source, out.SourceLabels = e.Source.withheld(), nil
		if !out.Source.Prefix.IsValid() {
			out.Seen = netip.Addr{}
		}
	}
	if !destination {
		out.Destination, out.DestinationLabels = e.Destination.withheld(), nil
	}
	return &out, true
}

// withheld is what shows of an end in another namespace.
func (e *EdgeEnd) withheld() EdgeEnd {
	if e.Namespace == "" && bareKind(e.Kind) {
		return EdgeEnd{Kind: e.Kind, Node: e.Node, Prefix: e.Prefix}
	}
	return EdgeEnd{Namespace: e.Namespace}
}

// SeenEdges shows edges by a Sight. Edges that look alike then are one: how
// many there are tells of what is withheld.
type SeenEdges struct {
	sight Sight
	yield func(*Edge) bool
	alike map[EdgeKey]*Edge
}

// NewSeenEdges gives edges to yield.
func NewSeenEdges(s Sight, yield func(*Edge) bool) *SeenEdges {
	return &SeenEdges{sight: s, yield: yield, alike: make(map[EdgeKey]*Edge)}
}

// Add takes an edge in. It returns false when no more are wanted.
func (s *SeenEdges) Add(e *Edge) bool {
	if s.sight.all {
		return s.yield(e)
	}
	shown, ok := s.sight.Edge(e)
	if !ok {
		return true
	}
	if first := s.alike[shown.EdgeKey]; first != nil {
		first.Join(shown)
		// Which hours they have in common is not known here: it is in as many at least.
		first.Hours = max(first.Hours, shown.Hours)
		return true
	}
	s.alike[shown.EdgeKey] = shown
	return true
}

// Close gives what was joined, in an order that follows from what shows.
func (s *SeenEdges) Close() {
	edges := make([]*Edge, 0, len(s.alike))
	for _, e := range s.alike {
		edges = append(edges, e)
	}
	slices.SortFunc(edges, func(a, b *Edge) int {
		return cmp.Or(a.First.Compare(b.First), a.Source.compare(&b.Source), a.Destination.compare(&b.Destination),
			cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Direction, b.Direction),
			cmp.Compare(a.Verdict, b.Verdict), cmp.Compare(a.Expected, b.Expected), cmp.Compare(a.Assessment, b.Assessment),
			cmp.Compare(a.Caveat, b.Caveat), cmp.Compare(a.Exempt, b.Exempt), a.Seen.Compare(b.Seen))
	})
	for _, e := range edges {
		if !s.yield(e) {
			return
		}
	}
}

func (e *EdgeEnd) compare(o *EdgeEnd) int {
	return cmp.Or(cmp.Compare(e.Namespace, o.Namespace), cmp.Compare(e.Kind, o.Kind), cmp.Compare(e.Workload.Kind, o.Workload.Kind),
		cmp.Compare(e.Workload.Name, o.Workload.Name), cmp.Compare(e.Identity, o.Identity), cmp.Compare(e.Node, o.Node), e.Prefix.Addr().Compare(o.Prefix.Addr()),
		cmp.Compare(e.Prefix.Bits(), o.Prefix.Bits()))
}
