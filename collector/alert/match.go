package alert

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/flowaudit/flowaudit/flow"
)

// criterion says whether a flow meets one field of a selector.
type criterion func(f *flow.Flow) bool

// matcher is a compiled selector, and what it says before a flow is looked at
// closely: the verdict, the assessment and the kind of the destination decide
// for nearly all flows.
type matcher struct {
	verdicts    uint // bits
	assessments uint
	kinds       uint
	refused     *bool
	all         []criterion
}

const (
	verdictCount    = int(flow.VerdictUnanswered) + 1
	assessmentCount = int(flow.AssessmentUnanswered) + 1
	kindCount       = int(flow.EndpointAPIServer) + 1
	everything      = ^uint(0)
)

// refused says what counts as a refusal.
func refused(v flow.Verdict, a flow.Assessment) bool {
	return v == flow.VerdictDenied || v == flow.VerdictUnanswered && a == flow.AssessmentEnforced
}

func kindOf(e *flow.Endpoint) flow.EndpointKind {
	if e == nil {
		return flow.EndpointUnknown
	}
	return e.Kind
}

// could reports whether a flow of these may match.
func (m *matcher) could(v flow.Verdict, a flow.Assessment, to flow.EndpointKind) bool {
	return m.verdicts>>v&1 == 1 && m.assessments>>a&1 == 1 && m.kinds>>to&1 == 1 && (m.refused == nil || *m.refused == refused(v, a))
}

// matches reports whether a flow meets all criteria, given that it could.
func (m *matcher) matches(f *flow.Flow) bool {
	for _, c := range m.all {
		if !c(f) {
			return false
		}
	}
	return true
}

func compileSelector(s *Selector) (m *matcher, err error) {
	m = &matcher{verdicts: everything, assessments: everything, kinds: everything, refused: s.Refused}
	if m.verdicts, err = bits(s.Verdict, flow.ParseVerdict); err != nil {
		return nil, err
	}
	if m.assessments, err = bits(s.Assessment, flow.ParseAssessment); err != nil {
		return nil, err
	}
	if m.kinds, err = bits(s.To.Kind, parseKind); err != nil {
		return nil, fmt.Errorf("to.kind: %w", err)
	}
	add := func(c criterion) { m.all = append(m.all, c) }
	if err := m.addEnds(&s.From, "from", func(f *flow.Flow) (*flow.Endpoint, netip.Addr) { return f.Source, f.Src }, add); err != nil {
		return nil, err
	}
	if err := m.addEnds(&s.To, "to", func(f *flow.Flow) (*flow.Endpoint, netip.Addr) { return f.Destination, f.Dst }, add); err != nil {
		return nil, err
	}
	if len(s.From.Service) > 0 {
		return nil, fmt.Errorf("from.service: only a destination can be asked for by its Service")
	}
	if err := addParsed(s.Protocol, flow.ParseProtocol, func(f *flow.Flow) flow.Protocol { return f.Protocol }, add); err != nil {
		return nil, err
	}
	if err := addParsed(s.Direction, flow.ParseDirection, func(f *flow.Flow) flow.Direction { return f.Direction }, add); err != nil {
		return nil, err
	}
	if len(s.Port) > 0 {
		ranges, err := parsePorts(s.Port)
		if err != nil {
			return nil, err
		}
		add(func(f *flow.Flow) bool {
			return f.Protocol.HasPorts() && slices.ContainsFunc(ranges, func(r [2]uint16) bool { return r[0] <= f.Port && f.Port <= r[1] })
		})
	}
	if err := addGlobs("node", s.Node, func(f *flow.Flow) string { return f.Node }, add); err != nil {
		return nil, err
	}
	return m, addGlobs("cluster", s.Cluster, func(f *flow.Flow) string { return f.Cluster }, add)
}

func parseKind(text string) (flow.EndpointKind, error) {
	for k := range kindCount {
		if flow.EndpointKind(k).String() == text {
			return flow.EndpointKind(k), nil
		}
	}
	return 0, fmt.Errorf("%q is no kind of end: want pod, node, service, outside, ambiguous, apiserver or unknown", text)
}

func bits[T ~uint8](texts []string, parse func(string) (T, error)) (uint, error) {
	if len(texts) == 0 {
		return everything, nil
	}
	var out uint
	for _, t := range texts {
		v, err := parse(t)
		if err != nil {
			return 0, err
		}
		out |= 1 << v
	}
	return out, nil
}

func addParsed[T comparable](texts []string, parse func(string) (T, error), of func(*flow.Flow) T, add func(criterion)) error {
	if len(texts) == 0 {
		return nil
	}
	var want []T
	for _, t := range texts {
		v, err := parse(t)
		if err != nil {
			return err
		}
		want = append(want, v)
	}
	add(func(f *flow.Flow) bool { return slices.Contains(want, of(f)) })
	return nil
}

func parsePorts(texts []string) ([][2]uint16, error) {
	var out [][2]uint16
	for _, t := range texts {
		first, last, isRange := strings.Cut(t, "-")
		if !isRange {
			last = first
		}
		a, err1 := strconv.ParseUint(first, 10, 16)
		b, err2 := strconv.ParseUint(last, 10, 16)
		if err1 != nil || err2 != nil || b < a {
			return nil, fmt.Errorf("port: %q is no port: want such as 443 or 8000-8099", t)
		}
		out = append(out, [2]uint16{uint16(a), uint16(b)})
	}
	return out, nil
}

// addGlobs matches a text by patterns of path.Match.
func addGlobs(field string, patterns []string, of func(*flow.Flow) string, add func(criterion)) error {
	if len(patterns) == 0 {
		return nil
	}
	for _, p := range patterns {
		if _, err := path.Match(p, ""); err != nil {
			return fmt.Errorf("%s: %q is no pattern", field, p)
		}
	}
	add(func(f *flow.Flow) bool { return anyGlob(patterns, of(f)) })
	return nil
}

func anyGlob(patterns []string, text string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, _ := path.Match(p, text) // checked when it was compiled
		return ok
	})
}

func (m *matcher) addEnds(e *Ends, side string, of func(*flow.Flow) (*flow.Endpoint, netip.Addr), add func(criterion)) error {
	kinds, err := bits(e.Kind, parseKind)
	if err != nil {
		return fmt.Errorf("%s.kind: %w", side, err)
	}
	if kinds != everything && side == "from" {
		add(func(f *flow.Flow) bool { return kinds>>kindOf(f.Source)&1 == 1 })
	}
	err = addGlobs(side+".namespace", e.Namespace, func(f *flow.Flow) string {
		if end, _ := of(f); end != nil {
			return end.Namespace
		}
		return ""
	}, add)
	if err != nil {
		return err
	}
	if err := addWorkloads(e.Workload, side, of, add); err != nil {
		return err
	}
	if len(e.CIDR) > 0 {
		prefixes, err := parsePrefixes(e.CIDR)
		if err != nil {
			return fmt.Errorf("%s.cidr: %w", side, err)
		}
		add(func(f *flow.Flow) bool {
			_, addr := of(f)
			return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(addr) })
		})
	}
	return addGlobs(side+".service", e.Service, func(f *flow.Flow) string {
		if f.Service == nil || f.Service.Name == "" {
			return ""
		}
		return f.Service.Namespace + "/" + f.Service.Name
	}, add)
}

func addWorkloads(patterns []string, side string, of func(*flow.Flow) (*flow.Endpoint, netip.Addr), add func(criterion)) error {
	if len(patterns) == 0 {
		return nil
	}
	for _, p := range patterns {
		if _, err := path.Match(p, ""); err != nil {
			return fmt.Errorf("%s.workload: %q is no pattern", side, p)
		}
	}
	add(func(f *flow.Flow) bool {
		end, _ := of(f)
		if end == nil || end.Workload.Name == "" {
			return false
		}
		return slices.ContainsFunc(patterns, func(p string) bool {
			name := end.Workload.Name
			if strings.Contains(p, "/") {
				name = end.Namespace + "/" + name
			}
			ok, _ := path.Match(p, name) // checked when it was compiled
			return ok
		})
	})
	return nil
}

func parsePrefixes(texts []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, t := range texts {
		if a, err := netip.ParseAddr(t); err == nil {
			out = append(out, single(a))
			continue
		}
		p, err := netip.ParsePrefix(t)
		if err != nil {
			return nil, fmt.Errorf("%q is no address and no CIDR", t)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}
