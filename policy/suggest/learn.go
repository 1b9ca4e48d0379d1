package suggest

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy"
	"github.com/flowaudit/flowaudit/policy/history"
	"github.com/flowaudit/flowaudit/policy/replay"
)

// party is an end of traffic as a rule names it: a group, or an address.
type party struct {
	group  *group
	prefix netip.Prefix
	kind   addressKind
	node   string
}

// addressKind says whose an address is.
type addressKind uint8

const (
	noAddress    addressKind = iota
	outsideAddr              // nobody's of the cluster
	nodeAddr                 // a node's, or of a pod on its network
	apiAddr                  // the API server's, where it is no node's
	hostAddr                 // answered by the node or the cloud: metadata, the node-local DNS cache
	dnsCacheAddr             // the address of a node-local DNS cache
)

// lesson is an edge that is learnt from.
type lesson struct {
	edge     *history.Edge
	from, to party
	// seen is the source as the destination's node sees it.
	seen party
	// now are the sides of the decision by the present policies.
	now policy.Decision
}

// learner goes through the edges.
type learner struct {
	o        *Options
	h        *history.History
	grouping *grouping
	scope    map[*group]bool
	present  *policy.Snapshot
	scans    map[*history.Edge]bool

	lessons []lesson
	aside   map[*history.Edge]Reason
}

// learn sorts the edges of the scope into lessons and what is set aside.
func (l *learner) learn() {
	l.aside = make(map[*history.Edge]Reason)
	for _, e := range l.h.Edges {
		if !l.inScope(e) {
			continue
		}
		one, reason := l.look(e)
		if reason != "" {
			l.aside[e] = reason
		}
		if one != nil {
			l.lessons = append(l.lessons, *one)
		}
	}
}

func (l *learner) inScope(e *history.Edge) bool {
	return l.scope[l.group(e.From)] && !l.o.NoEgress || l.scope[l.group(e.To)] && !l.o.NoIngress
}

// group is nil for what is no workload.
func (l *learner) group(e history.End) *group {
	if e.Workload == nil {
		return nil
	}
	return l.grouping.of[e.Workload]
}

// look says what is to be learnt from an edge, and why it is not, or not all.
func (l *learner) look(e *history.Edge) (*lesson, Reason) {
	switch {
	case e.Verdict != flow.VerdictAllowed:
		return nil, NotAllowed
	case e.Exempt == flow.ExemptSamePod, e.Exempt == flow.ExemptOwnNode && e.To.Identity != nil:
		return nil, OwnNode
	case e.Assessment == flow.AssessmentUnenforced, e.Expected == flow.VerdictDenied:
		return nil, Unenforced
	case !e.Protocol.HasPorts() || e.Port == 0:
		return nil, OtherTraffic
	case l.named(e, l.o.Reject):
		return nil, Rejected
	case l.scans[e]:
		return nil, Scan
	}
	one := &lesson{edge: e}
	var reason Reason
	if one.from, reason = l.party(&e.Source, e.From); reason != "" {
		return nil, reason
	}
	if one.to, reason = l.party(&e.Destination, e.To); reason != "" {
		return nil, reason
	}
	one.seen = one.from
	if e.Seen.IsValid() {
		one.seen = l.address(netip.PrefixFrom(e.Seen, e.Seen.BitLen()), outsideAddr)
	}
	if d := l.decideNow(one); d.Verdict == flow.VerdictDenied {
		return nil, RefusedNow
	}
	c := l.h.Connection(e)
	one.now = l.present.Decide(&c)
	if one.now.Verdict == flow.VerdictDenied {
		reason = OldLabels
	}
	for _, end := range []struct {
		party
		history.End
	}{{one.from, e.From}, {one.to, e.To}} {
		if end.group != nil && end.Identity != nil && !end.group.selects(end.Identity) {
			reason = OldLabels
		}
	}
	return one, reason
}

// named reports whether one of the edge's ends is in a list of names.
func (l *learner) named(e *history.Edge, names []string) bool {
	return len(names) > 0 && (isNamed(names, &e.Source) || isNamed(names, &e.Destination))
}

// isNamed finds an end in a list by its text, its namespace/name, or its address.
func isNamed(names []string, e *flow.EdgeEnd) bool {
	for _, n := range names {
		if n == replay.EndText(e) || e.Workload.Name != "" && n == e.Namespace+"/"+e.Workload.Name {
			return true
		}
		if p, err := netip.ParsePrefix(n); err == nil && e.Prefix.IsValid() && p.Contains(e.Prefix.Addr()) {
			return true
		}
	}
	return false
}

// party says how a rule can name an end.
func (l *learner) party(e *flow.EdgeEnd, end history.End) (party, Reason) {
	if e.Kind != flow.EndpointPod && !e.Prefix.IsValid() {
		return party{}, UnknownEnd // only its name was told
	}
	switch e.Kind {
	case flow.EndpointPod:
		g := l.group(end)
		switch {
		case g == nil:
			return party{}, UnknownEnd
		case l.deleted(g.namespace):
			return party{}, GoneWith
		case g.selector == nil:
			return party{}, NoSelector
		}
		return party{group: g}, ""
	case flow.EndpointAmbiguous:
		return party{}, UnknownEnd
	case flow.EndpointUnknown:
		if !history.HostLocal(e.Prefix.Addr()) {
			return party{}, UnknownEnd
		}
		return l.address(e.Prefix, hostAddr), ""
	case flow.EndpointService:
		if !slices.Contains(l.o.DNSCaches, e.Prefix.Addr()) {
			return party{}, Untranslated
		}
		return l.address(e.Prefix, dnsCacheAddr), ""
	case flow.EndpointNode:
		return l.address(e.Prefix, nodeAddr), ""
	case flow.EndpointAPIServer:
		return l.address(e.Prefix, apiAddr), ""
	}
	return l.address(e.Prefix, outsideAddr), ""
}

// address is the party of an address, which may be a node's after all.
func (l *learner) address(p netip.Prefix, kind addressKind) party {
	out := party{prefix: p.Masked(), kind: kind}
	if out.node = l.h.Node(p.Addr()); out.node != "" && p.IsSingleIP() {
		out.kind = nodeAddr
	}
	if slices.Contains(l.o.DNSCaches, p.Addr()) {
		out.kind = dnsCacheAddr
	}
	return out
}

func (l *learner) deleted(namespace string) bool {
	n := l.h.Namespace(namespace)
	return n != nil && !n.Deleted.IsZero()
}

// decideNow asks the present policies, with the labels that the ends have now:
// what somebody has forbidden since is not to be allowed again.
func (l *learner) decideNow(one *lesson) policy.Decision {
	c := l.h.Connection(one.edge)
	for _, end := range []struct {
		party
		was *history.Identity
		at  *policy.End
		pod string
	}{{one.from, one.edge.From.Identity, &c.Src, "?1"}, {one.to, one.edge.To.Identity, &c.Dst, "?2"}} {
		if end.group != nil && end.was != nil && !slices.Contains(end.group.present, end.was) {
			*end.at = end.group.present[0].End(l.h.Until, end.pod)
		}
	}
	return l.present.Decide(&c)
}

// setAside lists what was set aside, joined by ends and port; what was never
// allowed is not listed but counted.
func setAside(aside map[*history.Edge]Reason) []SetAside {
	type key struct {
		reason                        Reason
		source, destination, protocol string
		port                          uint16
	}
	joined := make(map[key]*SetAside)
	for e, reason := range aside {
		k := key{reason, replay.EndText(&e.Source), replay.EndText(&e.Destination), e.Protocol.String(), e.Port}
		known := joined[k]
		if known == nil {
			joined[k] = &SetAside{reason, k.source, k.destination, k.protocol, k.port, e.Connections, e.First, e.Last}
			continue
		}
		known.Connections += e.Connections
		if e.First.Before(known.First) {
			known.First = e.First
		}
		if e.Last.After(known.Last) {
			known.Last = e.Last
		}
	}
	out := make([]SetAside, 0, len(joined))
	for _, a := range joined {
		out = append(out, *a)
	}
	slices.SortFunc(out, func(a, b SetAside) int {
		return cmp.Or(strings.Compare(string(a.Reason), string(b.Reason)), strings.Compare(a.Source, b.Source), strings.Compare(a.Destination, b.Destination),
			strings.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
	})
	return out
}
