package columns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/flowaudit/flowaudit/flow"
)

// Dialect is how a store's database says what databases say differently. Each
// is a format for a column; a value follows as a bound argument.
type Dialect struct {
	HasPrefix string // such as "starts_with(%s, ?)"
	Contains  string // such as "contains(%s, ?)"
	HasAddr   string // of an address column: it is not empty
	Addr      string // a bound address, 16 bytes, such as "?"
	Verdict   string // the column of the verdict, as a number
	// SourceEnd and DestinationEnd are how the columns of ends begin.
	SourceEnd, DestinationEnd string
}

// Condition is what a sight and a filter say of a key k and its ends, as SQL
// with the arguments that are bound in it. It begins with " AND", or is empty.
// For a sight of everything it says the same as flow.Filter.Matches. For others
// it lets through what shows and may pass: who sees the flow as it shows decides.
func (d *Dialect) Condition(s flow.Sight, f *flow.Filter) (sql string, args []any) {
	if !s.All() {
		return d.visible(s, f)
	}
	for _, t := range d.selectorTerms(&f.Match) {
		sql += " AND (" + t.sql + ")"
		args = append(args, t.args...)
	}
	for _, t := range d.selectorTerms(&f.Not) {
		sql += " AND (NOT (" + t.sql + "))"
		args = append(args, t.args...)
	}
	return sql, args
}

// visible are the flows of a sight that may pass a filter. What a flow must not
// match is not asked of the columns: they hold what is withheld.
func (d *Dialect) visible(s flow.Sight, f *flow.Filter) (sql string, args []any) {
	if s.Nothing() {
		return " AND (1 = 0)", nil
	}
	source, destination := list(d.SourceEnd+"namespace", s.Namespaces()), list(d.DestinationEnd+"namespace", s.Namespaces())
	sql = " AND (k.cluster = ?) AND (" + source.sql + " OR " + destination.sql + ")"
	args = append(append([]any{s.Cluster()}, source.args...), destination.args...)
	match := f.Match
	if !plainly(&match) {
		return sql, args
	}
	for _, t := range d.selectorTerms(&match) {
		sql += " AND (" + t.sql + ")"
		args = append(args, t.args...)
	}
	return sql, args
}

// plainly reports whether nothing that is withheld can meet a selector: what
// does not show is empty.
func plainly(s *flow.Selector) bool {
	for _, e := range []*flow.Ends{&s.Either, &s.From, &s.To} {
		// The Service's address counts as that of an end which has none.
		if len(e.Prefixes) > 0 || slices.ContainsFunc(e.Workloads, func(w flow.WorkloadName) bool { return w.Name == "" }) {
			return false
		}
	}
	return !slices.Contains(s.Nodes, "") && !slices.Contains(s.RefusedAt, flow.PlaceUnknown)
}

type term struct {
	sql  string
	args []any
}

// selectorTerms are the conditions of the fields that are set.
func (d *Dialect) selectorTerms(s *flow.Selector) []term {
	var terms []term
	add := func(t term, set bool) {
		if set {
			terms = append(terms, t)
		}
	}
	// ICMP keeps its type where others have a port.
	if len(s.Ports) > 0 {
		a := list("k.port", s.Ports)
		b := list("k.service_port", s.Ports)
		add(term{"k.protocol IN (6, 17, 132) AND " + a.sql + " OR " + fmt.Sprintf(d.HasAddr, "k.service_addr") + " AND " + b.sql, append(a.args, b.args...)}, true)
	}
	add(list("k.protocol", s.Protocols), len(s.Protocols) > 0)
	add(list(d.Verdict, s.Verdicts), len(s.Verdicts) > 0)
	add(list("k.direction", s.Directions), len(s.Directions) > 0)
	add(list("k.assessment", s.Assessments), len(s.Assessments) > 0)
	add(list("k.reason", s.Reasons), len(s.Reasons) > 0)
	add(list("k.caveat", s.Caveats), len(s.Caveats) > 0)
	add(list("("+d.RefusedAt()+")", s.RefusedAt), len(s.RefusedAt) > 0)
	add(list("k.node", s.Nodes), len(s.Nodes) > 0)
	add(list("k.cluster", s.Clusters), len(s.Clusters) > 0)
	from, to := d.endTerms(&s.From, d.SourceEnd), d.endTerms(&s.To, d.DestinationEnd)
	for i := range from {
		add(from[i], from[i].sql != "")
		add(to[i], to[i].sql != "")
	}
	a, b := d.endTerms(&s.Either, d.SourceEnd), d.endTerms(&s.Either, d.DestinationEnd)
	for i := range a {
		add(term{"(" + a[i].sql + ") OR (" + b[i].sql + ")", append(a[i].args, b[i].args...)}, a[i].sql != "")
	}
	return terms
}

// endTerms are the conditions on the end whose columns begin so, one a field,
// empty where it is not set.
func (d *Dialect) endTerms(e *flow.Ends, alias string) [5]term {
	var t [5]term
	if len(e.Namespaces) > 0 {
		t[0] = list(alias+"namespace", e.Namespaces)
	}
	t[1] = anyOf(e.Pods, func(p flow.PodPrefix) term {
		return term{alias + "pod <> '' AND " + fmt.Sprintf(d.HasPrefix, alias+"pod") + " AND (? = '' OR " + alias + "namespace = ?)", []any{p.Name, p.Namespace, p.Namespace}}
	})
	t[2] = anyOf(e.Workloads, func(w flow.WorkloadName) term {
		return term{
			alias + "workload = ? AND (? = '' OR " + alias + "namespace = ?) AND (? = '' OR lower(" + alias + "workload_kind) = lower(?))",
			[]any{w.Name, w.Namespace, w.Namespace, w.Kind, w.Kind},
		}
	})
	t[3] = anyOf(e.Prefixes, func(p netip.Prefix) term {
		own, service := d.within(alias+"addr", p), d.within("k.service_addr", p)
		// The Service's address counts as the destination's, and as the
		// source's where a pod talks to itself through it.
		return term{own.sql + " OR " + d.DestinationEnd + "addr = " + alias + "addr AND " + fmt.Sprintf(d.HasAddr, "k.service_addr") + " AND " + service.sql, append(own.args, service.args...)}
	})
	if len(e.Labels) > 0 {
		t[4] = d.labelTerms(e.Labels, alias)
	}
	return t
}

func (d *Dialect) labelTerms(labels []flow.LabelTerm, alias string) term {
	out := term{sql: alias + "pod <> ''"}
	for _, l := range labels {
		exists := fmt.Sprintf(d.Contains, alias+"labels")
		existsArg := "\n" + l.Key + "="
		has := anyOf(l.Values, func(v string) term { return term{exists, []any{"\n" + l.Key + "=" + v + "\n"}} })
		if has.sql == "" {
			has.sql = "false"
		}
		switch l.Op {
		case flow.LabelIn:
			out.sql += " AND (" + has.sql + ")"
			out.args = append(out.args, has.args...)
		case flow.LabelNotIn:
			out.sql += " AND NOT (" + has.sql + ")"
			out.args = append(out.args, has.args...)
		case flow.LabelExists:
			out.sql += " AND " + exists
			out.args = append(out.args, existsArg)
		default:
			out.sql += " AND NOT " + exists
			out.args = append(out.args, existsArg)
		}
	}
	return out
}

// list is column IN (values).
func list[T any](column string, values []T) term {
	t := term{sql: column + " IN (" + strings.TrimSuffix(strings.Repeat("?,", len(values)), ",") + ")"}
	for _, v := range values {
		t.args = append(t.args, number(v))
	}
	return t
}

// number gives the driver a type that it knows.
func number(v any) any {
	switch x := v.(type) {
	case flow.Protocol:
		return uint8(x)
	case flow.Verdict:
		return uint8(x)
	case flow.Direction:
		return uint8(x)
	case flow.Assessment:
		return uint8(x)
	case flow.Reason:
		return uint8(x)
	case flow.Caveat:
		return uint8(x)
	case flow.Place:
		return uint8(x)
	}
	return v
}

// anyOf is the disjunction of a term for each value; empty for none.
func anyOf[T any](values []T, f func(T) term) term {
	var out term
	for i, v := range values {
		t := f(v)
		if i > 0 {
			out.sql += " OR "
		}
		out.sql += "(" + t.sql + ")"
		out.args = append(out.args, t.args...)
	}
	return out
}

// within says that a stored address lies in a prefix.
func (d *Dialect) within(column string, p netip.Prefix) term {
	lo, hi := bounds16(p)
	t := term{column + " BETWEEN " + d.Addr + " AND " + d.Addr, []any{lo, hi}}
	if !p.Addr().Is4() {
		// IPv4 is stored mapped, and no IPv6 prefix contains it.
		first, last := bounds16(netip.PrefixFrom(netip.IPv4Unspecified(), 0))
		t.sql += " AND NOT (" + column + " BETWEEN " + d.Addr + " AND " + d.Addr + ")"
		t.args = append(t.args, first, last)
	}
	return t
}

// bounds16 are the first and last address of a prefix as they are stored.
func bounds16(p netip.Prefix) (lo, hi []byte) {
	a := p.Masked().Addr()
	first := a.As16()
	last := first
	bits := p.Bits()
	if a.Is4() {
		bits += 96
	}
	for i := bits; i < 128; i++ {
		last[i/8] |= 1 << (7 - i%8)
	}
	return first[:], last[:]
}
