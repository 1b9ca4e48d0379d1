package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"

	"github.com/flowaudit/flowaudit/flow"
)

// filterFlags reads a filter from flags. A --not negates the filter flag that
// comes after it.
type filterFlags struct {
	filter flow.Filter
	not    bool
	all    bool // -A
}

// filterValue is a flag whose value goes into the filter. The value may be a
// list with commas, and the flag be given again: both mean or.
type filterValue struct {
	f     *filterFlags
	whole bool // the value is not split at commas
	set   func(sel *flow.Selector, value string) error
}

func (v *filterValue) String() string { return "" }
func (v *filterValue) Type() string   { return "strings" }

func (v *filterValue) Set(s string) error {
	sel := &v.f.filter.Match
	if v.f.not {
		sel, v.f.not = &v.f.filter.Not, false
	}
	values := []string{s}
	if !v.whole {
		values = strings.Split(s, ",")
	}
	for _, part := range values {
		if part = strings.TrimSpace(part); part == "" {
			return errors.New("the value is empty")
		}
		if err := v.set(sel, part); err != nil {
			return err
		}
	}
	return nil
}

// notValue is --not.
type notValue struct{ f *filterFlags }

func (v *notValue) String() string   { return "false" }
func (v *notValue) Type() string     { return "bool" }
func (v *notValue) IsBoolFlag() bool { return true }

func (v *notValue) Set(s string) (err error) {
	v.f.not, err = strconv.ParseBool(s)
	return err
}

type endsOf func(*flow.Selector) *flow.Ends

// register adds the filter flags that users of hubble observe and kubectl know.
func (f *filterFlags) register(fs *pflag.FlagSet) {
	add := func(name, short, usage string, whole bool, set func(*flow.Selector, string) error) {
		fs.VarP(&filterValue{f, whole, set}, name, short, usage)
	}
	either := func(s *flow.Selector) *flow.Ends { return &s.Either }
	from := func(s *flow.Selector) *flow.Ends { return &s.From }
	to := func(s *flow.Selector) *flow.Ends { return &s.To }
	add("namespace", "n", "either end's namespace", false, setNamespace(either))
	fs.BoolVarP(&f.all, "all-namespaces", "A", false, "all namespaces, which is also what no -n means")
	for _, side := range []struct {
		prefix, who string
		ends        endsOf
	}{{"", "either end's", either}, {"from-", "the source's", from}, {"to-", "the destination's", to}} {
		if side.prefix != "" {
			add(side.prefix+"namespace", "", side.who+" namespace", false, setNamespace(side.ends))
		}
		add(side.prefix+"pod", "", side.who+" pod: [namespace/]prefix of its name", false, setPod(side.ends))
		add(side.prefix+"workload", "", side.who+" workload: [namespace/][kind/]name", false, setWorkload(side.ends))
		add(side.prefix+"ip", "", side.who+" address, or addresses in CIDR notation", false, setPrefix(side.ends))
		short := ""
		if side.prefix == "" {
			short = "l"
		}
		add(side.prefix+"label", short, side.who+" pod labels, a selector as in kubectl: app=web,tier!=db", true, setLabels(side.ends))
	}
	add("port", "", "destination port, or the port of the Service that was asked", false, func(s *flow.Selector, v string) error {
		n, err := strconv.ParseUint(v, 10, 16)
		if err != nil {
			return fmt.Errorf("%q is no port: want a number up to 65535", v)
		}
		s.Ports = append(s.Ports, uint16(n))
		return nil
	})
	add("protocol", "", "tcp, udp, sctp, icmp, icmpv6 or a number", false, appendParsed(flow.ParseProtocol, func(s *flow.Selector) *[]flow.Protocol { return &s.Protocols }))
	add("verdict", "", "denied (or dropped), allowed (or forwarded), unanswered, unknown", false, appendParsed(flow.ParseVerdict, func(s *flow.Selector) *[]flow.Verdict { return &s.Verdicts }))
	add("assessment", "", "how the verdict compares with the policies: allowed, enforced, unenforced, unexplained, unanswered, unknown", false,
		appendParsed(flow.ParseAssessment, func(s *flow.Selector) *[]flow.Assessment { return &s.Assessments }))
	add("reason", "", "why the verdict: "+codeNames(flow.Reasons()), false, appendParsed(flow.ParseReason, func(s *flow.Selector) *[]flow.Reason { return &s.Reasons }))
	add("caveat", "", "why the assessment is not more than it is: "+codeNames(flow.Caveats()), false, appendParsed(flow.ParseCaveat, func(s *flow.Selector) *[]flow.Caveat { return &s.Caveats }))
	add("refused-at", "", "where connections between nodes were stopped: egress, ingress or between", false, appendParsed(flow.ParsePlace, func(s *flow.Selector) *[]flow.Place { return &s.RefusedAt }))
	add("traffic-direction", "", "ingress or egress", false, appendParsed(flow.ParseDirection, func(s *flow.Selector) *[]flow.Direction { return &s.Directions }))
	add("node-name", "", "the node that reports", false, func(s *flow.Selector, v string) error { s.Nodes = append(s.Nodes, v); return nil })
	add("cluster", "", "the cluster", false, func(s *flow.Selector, v string) error { s.Clusters = append(s.Clusters, v); return nil })
	fs.Var(&notValue{f}, "not", "negate the filter flag that comes next")
	fs.Lookup("not").NoOptDefVal = "true"
}

// done checks what only the whole command line shows.
func (f *filterFlags) done() error {
	if f.not {
		return fmt.Errorf("--not has no filter flag after it")
	}
	if f.all && len(f.filter.Match.Either.Namespaces) > 0 {
		return fmt.Errorf("-A and -n exclude each other")
	}
	return nil
}

// codeNames lists what values are called.
func codeNames[T fmt.Stringer](values []T) string {
	var out []string
	for _, v := range values {
		out = append(out, v.String())
	}
	return strings.Join(out, ", ")
}

func appendParsed[T any](parse func(string) (T, error), list func(*flow.Selector) *[]T) func(*flow.Selector, string) error {
	return func(s *flow.Selector, v string) error {
		parsed, err := parse(v)
		if err != nil {
			return err
		}
		l := list(s)
		*l = append(*l, parsed)
		return nil
	}
}

func setNamespace(ends endsOf) func(*flow.Selector, string) error {
	return func(s *flow.Selector, v string) error {
		e := ends(s)
		e.Namespaces = append(e.Namespaces, v)
		return nil
	}
}

func setPod(ends endsOf) func(*flow.Selector, string) error {
	return func(s *flow.Selector, v string) error {
		namespace, name, ok := strings.Cut(v, "/")
		if !ok {
			namespace, name = "", v
		}
		e := ends(s)
		e.Pods = append(e.Pods, flow.PodPrefix{Namespace: namespace, Name: name})
		return nil
	}
}

func setWorkload(ends endsOf) func(*flow.Selector, string) error {
	return func(s *flow.Selector, v string) error {
		w := flow.WorkloadName{}
		switch parts := strings.Split(v, "/"); len(parts) {
		case 1:
			w.Name = parts[0]
		case 2:
			w.Namespace, w.Name = parts[0], parts[1]
		case 3:
			w.Namespace, w.Kind, w.Name = parts[0], parts[1], parts[2]
		default:
			return fmt.Errorf("%q is no workload: want [namespace/][kind/]name", v)
		}
		e := ends(s)
		e.Workloads = append(e.Workloads, w)
		return nil
	}
}

func setPrefix(ends endsOf) func(*flow.Selector, string) error {
	return func(s *flow.Selector, v string) error {
		p, err := netip.ParsePrefix(v)
		if err != nil {
			addr, addrErr := netip.ParseAddr(v)
			if addrErr != nil {
				return fmt.Errorf("%q is no IP address and no CIDR", v)
			}
			addr = addr.Unmap()
			p = netip.PrefixFrom(addr, addr.BitLen())
		}
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		e := ends(s)
		e.Prefixes = append(e.Prefixes, p.Masked())
		return nil
	}
}

func setLabels(ends endsOf) func(*flow.Selector, string) error {
	return func(s *flow.Selector, v string) error {
		selector, err := labels.Parse(v)
		if err != nil {
			return fmt.Errorf("%q is no label selector: %w", v, err)
		}
		requirements, _ := selector.Requirements()
		e := ends(s)
		for _, r := range requirements {
			t := flow.LabelTerm{Key: r.Key(), Values: r.ValuesUnsorted()}
			switch r.Operator() {
			case selection.In, selection.Equals, selection.DoubleEquals:
				t.Op = flow.LabelIn
			case selection.NotIn, selection.NotEquals:
				t.Op = flow.LabelNotIn
			case selection.Exists:
				t.Op = flow.LabelExists
			case selection.DoesNotExist:
				t.Op = flow.LabelNotExists
			default:
				return fmt.Errorf("%q: operator %s is not for labels of flows", v, r.Operator())
			}
			e.Labels = append(e.Labels, t)
		}
		return nil
	}
}
