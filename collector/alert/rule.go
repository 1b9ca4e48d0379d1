package alert

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Rule says what is worth an alert. It is about flows, or with Coverage about
// what could not be seen.
type Rule struct {
	Name     string `yaml:"name"`
	Enabled  *bool  `yaml:"enabled"` // true unless it says otherwise
	Severity string `yaml:"severity"`
	// Summary is a text/template over the Alert.
	Summary string            `yaml:"summary"`
	Runbook string            `yaml:"runbook"`
	Labels  map[string]string `yaml:"labels"`

	Match  Selector `yaml:"match"`
	Except Selector `yaml:"except"`
	// Group lists what tells alerts of this rule apart: source, destination,
	// port, node, policy or change. "edge" is source, destination and port.
	Group []string `yaml:"group"`
	// New asks for what was never seen before: an edge, or a denial.
	New string `yaml:"new"`
	// Learning is how much time must have been watched before New means
	// anything: of the source's workload, or of the whole cluster.
	Learning Duration `yaml:"learning"`
	LearnBy  string   `yaml:"learn_by"`
	Count    *Count   `yaml:"count"`
	// AfterChange asks for denials that began so soon after a change of a
	// policy that made them.
	AfterChange Duration `yaml:"after_change"`
	Coverage    *Lost    `yaml:"coverage"`

	// For is how long it must last before it fires, KeepFiring how long it is
	// over before it resolves.
	For        Duration `yaml:"for"`
	KeepFiring Duration `yaml:"keep_firing_for"`
	// Unless names rules whose alerts say the same of the same source better.
	Unless []string `yaml:"unless"`

	line int
}

// Count is a threshold in a time.
type Count struct {
	Of     string   `yaml:"of"` // connections, ports, addresses or workloads
	Over   int      `yaml:"over"`
	Clear  int      `yaml:"clear"` // at or above it, what fires goes on; half of Over if not given
	Within Duration `yaml:"within"`
}

// Lost is what of a node's coverage is worth an alert.
type Lost struct {
	Silent   Duration `yaml:"silent"`   // no word from the node for so long
	Gaps     []string `yaml:"gaps"`     // kinds: overrun, sequence, queue, source, malformed, table, names
	Downtime Duration `yaml:"downtime"` // the agent did not run for so long
}

// Selector chooses flows: every field that is given must match, by one of its
// values.
type Selector struct {
	Refused    *bool    `yaml:"refused"` // denied, or unanswered where the policies deny
	Verdict    []string `yaml:"verdict"`
	Assessment []string `yaml:"assessment"`
	Direction  []string `yaml:"direction"`
	Protocol   []string `yaml:"protocol"`
	Port       []string `yaml:"port"` // numbers, or ranges such as 8000-8099
	Node       []string `yaml:"node"`
	Cluster    []string `yaml:"cluster"`
	From       Ends     `yaml:"from"`
	To         Ends     `yaml:"to"`
}

// Ends chooses ends of flows. Names may hold * and ?.
type Ends struct {
	Kind      []string `yaml:"kind"`
	Namespace []string `yaml:"namespace"`
	Workload  []string `yaml:"workload"` // name, or namespace/name
	CIDR      []string `yaml:"cidr"`
	Service   []string `yaml:"service"` // namespace/name of the Service that was asked
}

// Duration is written as in Prometheus: 30s, 10m, 24h, 7d.
type Duration time.Duration

// String is the duration as it is written.
func (d Duration) String() string {
	text := time.Duration(d).String()
	for _, unit := range []string{"m0s", "h0m"} {
		if short, ok := strings.CutSuffix(text, unit); ok {
			text = short + unit[:1]
		}
	}
	return text
}

// IsEnabled reports whether the rule is evaluated.
func (r *Rule) IsEnabled() bool { return r.Enabled == nil || *r.Enabled }

var (
	severities   = []string{"info", "warning", "critical"}
	groupFields  = []string{"source", "destination", "port", "node", "policy", "change"}
	countFields  = []string{"connections", "ports", "addresses", "workloads"}
	learnFields  = []string{"workload", "cluster"}
	newFields    = []string{"edge", "denial"}
	coverageGaps = []string{"overrun", "sequence", "queue", "source", "malformed", "table", "names"}
)

// validate names everything that cannot work.
func (r *Rule) validate() []string {
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	choice := func(field, value string, of []string) {
		if !slices.Contains(of, value) {
			say("%s: %q is not one of %s", field, value, strings.Join(of, ", "))
		}
	}
	choice("severity", r.Severity, severities)
	for _, g := range r.Group {
		choice("group", g, groupFields)
	}
	if r.New != "" {
		choice("new", r.New, newFields)
	}
	if r.New == "" && r.Learning != 0 {
		say("learning: only a rule with new: learns")
	}
	choice("learn_by", r.LearnBy, learnFields)
	for field, d := range map[string]Duration{"for": r.For, "keep_firing_for": r.KeepFiring, "learning": r.Learning, "after_change": r.AfterChange} {
		if d < 0 {
			say("%s: %s is less than nothing", field, d)
		}
	}
	if c := r.Count; c != nil {
		choice("count.of", c.Of, countFields)
		if c.Over < 1 || c.Within < Duration(time.Second) {
			say("count: wants over: 1 or more, and within: 1s or more")
		}
		if c.Clear > c.Over || c.Clear < 0 {
			say("count.clear: %d is not between 0 and over", c.Clear)
		}
	}
	switch {
	case r.Coverage != nil && (r.Count != nil || r.New != "" || r.AfterChange != 0 || len(r.Group) > 0 && !slices.Equal(r.Group, []string{"node"})):
		say("coverage: a rule about coverage is by node, and has no count, new or after_change")
	case r.Coverage != nil:
		for _, g := range r.Coverage.Gaps {
			choice("coverage.gaps", g, coverageGaps)
		}
	case len(r.Group) == 0:
		say("group: say what tells alerts apart: edge, or some of %s", strings.Join(groupFields, ", "))
	case slices.Contains(r.Group, "change") != (r.AfterChange > 0):
		say("group: change and after_change belong together")
	}
	return out
}

// complete fills in what a rule may leave out.
func (r *Rule) complete(learning Duration) {
	if r.Severity == "" {
		r.Severity = "warning"
	}
	if r.LearnBy == "" {
		r.LearnBy = "workload"
	}
	if r.New == "edge" && r.Learning == 0 {
		r.Learning = learning
	}
	if r.KeepFiring == 0 {
		r.KeepFiring = Duration(15 * time.Minute)
	}
	if i := slices.Index(r.Group, "edge"); i >= 0 {
		r.Group = slices.Concat(r.Group[:i], []string{"source", "destination", "port"}, r.Group[i+1:])
	}
	if c := r.Count; c != nil && c.Clear == 0 {
		c.Clear = max(1, c.Over/2)
	}
	if r.Summary == "" {
		r.Summary = "{{.Rule}}: {{.From}} to {{.To}}"
	}
}
