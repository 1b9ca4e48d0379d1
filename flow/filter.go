package flow

import (
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Filter chooses flows. A flow passes if it lies in the time range, matches
// Match, and matches no set field of Not.
type Filter struct {
	Since, Until time.Time // by the flow's time window; zero means unbounded
	Match        Selector
	Not          Selector
}

// Selector lists wanted values. A field that is empty does not restrict; in a
// field, one matching value is enough.
type Selector struct {
	Either, From, To Ends // Either matches if one of the two ends does
	Ports            []uint16
	Protocols        []Protocol
	Verdicts         []Verdict
	Directions       []Direction
	Assessments      []Assessment
	Reasons          []Reason
	Caveats          []Caveat
	RefusedAt        []Place
	Nodes            []string // reporting nodes
	Clusters         []string
}

// Ends restricts one end of a flow.
type Ends struct {
	Namespaces []string
	Pods       []PodPrefix
	Workloads  []WorkloadName
	Prefixes   []netip.Prefix // an address is a prefix of full length; a Service address counts as the destination's
	Labels     []LabelTerm    // all of them must hold, as in a Kubernetes selector
}

// PodPrefix matches pods whose name begins with Name, in Namespace or, if that
// is empty, in any.
type PodPrefix struct {
	Namespace, Name string
}

// WorkloadName matches a workload by name and, where they are given, by
// namespace and kind.
type WorkloadName struct {
	Namespace, Kind, Name string
}

// LabelTerm is one requirement of a label selector.
type LabelTerm struct {
	Key    string
	Op     LabelOp
	Values []string
}

// LabelOp is the operator of a LabelTerm.
type LabelOp uint8

// The operators, as in Kubernetes' set-based selectors.
const (
	LabelIn LabelOp = iota
	LabelNotIn
	LabelExists
	LabelNotExists
)

// Matches reports whether labels meet the term.
func (t LabelTerm) Matches(labels map[string]string) bool {
	v, ok := labels[t.Key]
	switch t.Op {
	case LabelIn:
		return ok && slices.Contains(t.Values, v)
	case LabelNotIn:
		return !ok || !slices.Contains(t.Values, v)
	case LabelExists:
		return ok
	default:
		return !ok
	}
}

// Matches reports whether the flow passes the filter.
func (f *Filter) Matches(fl *Flow) bool {
	if !f.Since.IsZero() && fl.End.Before(f.Since) || !f.Until.IsZero() && fl.Start.After(f.Until) {
		return false
	}
	return f.Match.all(fl) && !f.Not.any(fl)
}

// all reports whether every set field matches.
func (s *Selector) all(f *Flow) bool {
	for _, c := range s.criteria(f) {
		if c == no {
			return false
		}
	}
	return true
}

// any reports whether a set field matches.
func (s *Selector) any(f *Flow) bool {
	return slices.Contains(s.criteria(f), yes)
}

// criterion is a field's answer about a flow.
type criterion uint8

const (
	unset criterion = iota
	yes
	no
)

func (s *Selector) criteria(f *Flow) []criterion {
	out := make([]criterion, 0, 27)
	out = append(out,
		in(s.Ports, f.Port, f.Protocol.HasPorts()),
		in(s.Protocols, f.Protocol, true),
		in(s.Verdicts, f.Verdict, true),
		in(s.Directions, f.Direction, true),
		in(s.Assessments, f.Assessment, true),
		in(s.Reasons, f.Reason, true),
		in(s.Caveats, f.Caveat, true),
		in(s.RefusedAt, f.RefusedAt(), true),
		in(s.Nodes, f.Node, true),
		in(s.Clusters, f.Cluster, true))
	// A port also matches as the Service's, which is what people type.
	if out[0] == no && f.Service != nil && slices.Contains(s.Ports, f.Service.Port) {
		out[0] = yes
	}
	src, dst := s.From.criteria(f, f.Source, f.Src), s.To.criteria(f, f.Destination, f.Dst)
	out = append(append(out, src[:]...), dst[:]...)
	a, b := s.Either.criteria(f, f.Source, f.Src), s.Either.criteria(f, f.Destination, f.Dst)
	for i := range a {
		out = append(out, either(a[i], b[i]))
	}
	return out
}

func (e *Ends) criteria(f *Flow, ep *Endpoint, addr netip.Addr) [5]criterion {
	if ep == nil {
		ep = &Endpoint{}
	}
	var c [5]criterion
	c[0] = in(e.Namespaces, ep.Namespace, true)
	c[1] = where(e.Pods, func(p PodPrefix) bool {
		return ep.Pod != "" && strings.HasPrefix(ep.Pod, p.Name) && (p.Namespace == "" || p.Namespace == ep.Namespace)
	})
	c[2] = where(e.Workloads, func(w WorkloadName) bool {
		return ep.Workload.Name == w.Name && (w.Namespace == "" || w.Namespace == ep.Namespace) &&
			(w.Kind == "" || strings.EqualFold(w.Kind, ep.Workload.Kind))
	})
	c[3] = where(e.Prefixes, func(p netip.Prefix) bool {
		return p.Contains(addr) || addr == f.Dst && f.Service != nil && p.Contains(f.Service.Addr)
	})
	if len(e.Labels) > 0 {
		c[4] = yes
		for _, t := range e.Labels {
			if ep.Pod == "" || !t.Matches(ep.Labels) {
				c[4] = no
			}
		}
	}
	return c
}

func in[T comparable](want []T, got T, applies bool) criterion {
	return where(want, func(w T) bool { return applies && w == got })
}

func where[T any](want []T, ok func(T) bool) criterion {
	switch {
	case len(want) == 0:
		return unset
	case slices.ContainsFunc(want, ok):
		return yes
	}
	return no
}

func either(a, b criterion) criterion {
	if a == yes || b == yes {
		return yes
	}
	return a
}
