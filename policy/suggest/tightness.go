package suggest

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy"
	"github.com/flowaudit/flowaudit/policy/history"
	"github.com/flowaudit/flowaudit/policy/replay"
)

// pair is two workloads and a protocol.
type pair struct {
	from, to *history.Workload
	protocol flow.Protocol
}

// tightness finds what the policies at the end permit between workloads and
// nobody was seen to use, where the suggestion has a say.
func (r *run) tightness(c *replay.Change) error {
	engine, err := policy.New(policy.Options{Classes: r.h.Classes(), Policies: c.After(r.h)})
	if err != nil {
		return fmt.Errorf("make policy engine: %w", err)
	}
	t := &tight{run: r, after: engine.Snapshot(), seen: make(map[pair][]uint16), loose: make(map[LoosePair]bool), own: make(map[replay.Name]bool)}
	for _, p := range c.Apply {
		t.own[replay.Name{Namespace: p.Namespace, Name: p.Name}] = true
	}
	for _, e := range r.h.Edges {
		if e.Verdict == flow.VerdictAllowed && e.From.Workload != nil && e.To.Workload != nil {
			p := pair{e.From.Workload, e.To.Workload, e.Protocol}
			t.seen[p] = append(t.seen[p], e.Port)
		}
	}
	for p, ports := range t.seen {
		slices.Sort(ports)
		t.seen[p] = slices.Compact(ports)
	}
	t.candidates(c)
	out := &r.out.Proof.Loose
	for p := range t.loose {
		out.List = append(out.List, p)
		ports := uint64(p.LastPort) - uint64(p.FirstPort) + 1
		out.Pairs += ports
		if p.Why == "" {
			out.Unexplained += ports
		}
	}
	slices.SortFunc(out.List, func(a, b LoosePair) int {
		return cmp.Or(strings.Compare(a.Why, b.Why), strings.Compare(a.Destination, b.Destination), strings.Compare(a.Source, b.Source), strings.Compare(a.Protocol, b.Protocol), cmp.Compare(a.FirstPort, b.FirstPort))
	})
	return nil
}

type tight struct {
	*run
	after *policy.Snapshot
	seen  map[pair][]uint16 // ports, sorted
	loose map[LoosePair]bool
	own   map[replay.Name]bool // the suggested policies
}

type ends struct{ from, to *history.Identity }

// candidates looks at every pair of identities that a suggested rule joins.
func (t *tight) candidates(c *replay.Change) {
	var present []*history.Identity
	for _, g := range t.grouping.groups {
		present = append(present, g.present...)
	}
	selection := history.NewSelection(present)
	done := make(map[ends]bool)
	look := func(from, to *history.Identity) {
		if k := (ends{from, to}); !done[k] {
			done[k] = true
			t.look(from, to)
		}
	}
	for n, p := range c.Apply {
		subjects := selection.Subjects(p)
		for _, rule := range p.Spec.Ingress {
			for i := range rule.From {
				for _, from := range selection.Peers(p.Namespace, &rule.From[i]) {
					for _, to := range subjects {
						look(from, to)
					}
				}
			}
		}
		for _, rule := range p.Spec.Egress {
			for i := range rule.To {
				for _, to := range selection.Peers(p.Namespace, &rule.To[i]) {
					for _, from := range subjects {
						look(from, to)
					}
				}
			}
		}
		t.o.Progress("measuring tightness", 0.9+0.09*float64(n)/float64(len(c.Apply)))
	}
}

// look finds the ports that one identity may connect to at another, and that
// were never seen between any of their workloads.
func (t *tight) look(from, to *history.Identity) {
	src, dst := from.End(t.h.Until, "?1"), to.End(t.h.Until, "?2")
	for _, reach := range t.after.Reach(&src, &dst) {
		if reach.Verdict != flow.VerdictAllowed {
			continue
		}
		for _, a := range from.Workloads {
			for _, b := range to.Workloads {
				t.ports(a, b, &src, &dst, reach)
			}
		}
	}
}

// ports lists what of a range was never seen.
func (t *tight) ports(a, b *history.Workload, src, dst *policy.End, reach policy.PortRange) {
	first := uint32(reach.First)
	gap := func(last uint32) {
		if first <= last {
			t.loose[LoosePair{
				Source: a.String(), Destination: b.String(), Protocol: reach.Protocol.String(), FirstPort: uint16(first), LastPort: uint16(last),
				Why: t.why(a, b, src, dst, service{reach.Protocol, uint16(first)}),
			}] = true
		}
	}
	for _, port := range t.seen[pair{a, b, reach.Protocol}] {
		if p := uint32(port); p >= first && p <= uint32(reach.Last) {
			gap(p - 1)
			first = p + 1
		}
	}
	gap(uint32(reach.Last))
}

// why says what accounts for a permission that nobody used.
func (t *tight) why(a, b *history.Workload, src, dst *policy.End, s service) string {
	d := t.after.Decide(&policy.Connection{Src: *src, Dst: *dst, Protocol: s.protocol, Port: s.port})
	if t.others(&d.Egress) && t.others(&d.Ingress) {
		return "existing-policy"
	}
	twin := s
	if s.protocol == flow.TCP {
		twin.protocol = flow.UDP
	} else {
		twin.protocol = flow.TCP
	}
	groupA, groupB := t.grouping.of[a], t.grouping.of[b]
	switch {
	case t.o.Isolation == PerNamespace:
		return "namespace"
	case t.o.Mode == Tighten:
		return "existing-policy" // no wider than it was
	case t.anySeen(groupA, groupB, s):
		return "labels-alike"
	case s.protocol != flow.SCTP && t.anySeen(groupA, groupB, twin) && t.isDNS(b, twin):
		return "dns"
	case t.samePortName(b, s):
		return "port-name"
	case t.o.PortSlack > 0 && t.between(groupA, groupB, s):
		return "port-slack"
	}
	return ""
}

// others reports whether a side needs none of the suggested rules.
func (t *tight) others(s *policy.Side) bool {
	if s.Reason != policy.ReasonRule {
		return true
	}
	return slices.ContainsFunc(s.Allowed, func(r flow.PolicyRef) bool { return !t.own[replay.Name{Namespace: r.Namespace, Name: r.Name}] })
}

// anySeen reports whether any workloads of two groups used a port.
func (t *tight) anySeen(a, b *group, s service) bool {
	for _, from := range a.workloads {
		for _, to := range b.workloads {
			if _, ok := slices.BinarySearch(t.seen[pair{from, to, s.protocol}], s.port); ok {
				return true
			}
		}
	}
	return false
}

func (t *tight) isDNS(w *history.Workload, s service) bool {
	if s.port == dnsPort {
		return true
	}
	return slices.ContainsFunc(w.Identities, func(i *history.Identity) bool {
		ports, _ := i.Ports()
		return names(ports, "dns", s) || names(ports, "dns-tcp", s)
	})
}

// samePortName reports whether a port has a name that other pods of the
// workload's group give to another one.
func (t *tight) samePortName(w *history.Workload, s service) bool {
	g := t.grouping.of[w]
	for _, i := range g.present {
		ports, _ := i.Ports()
		for _, p := range ports {
			if p.Protocol != s.protocol || p.Port != s.port {
				continue
			}
			if slices.ContainsFunc(g.present, func(o *history.Identity) bool {
				others, _ := o.Ports()
				return slices.ContainsFunc(others, func(q policy.NamedPort) bool { return q.Name == p.Name && q.Port != p.Port && q.Protocol == p.Protocol })
			}) {
				return true
			}
		}
	}
	return false
}

// between reports whether ports on both sides of a port were seen.
func (t *tight) between(a, b *group, s service) bool {
	below, above := false, false
	for _, from := range a.workloads {
		for _, to := range b.workloads {
			for _, port := range t.seen[pair{from, to, s.protocol}] {
				below, above = below || port < s.port, above || port > s.port
			}
		}
	}
	return below && above
}
