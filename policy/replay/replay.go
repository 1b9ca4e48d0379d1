package replay

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy"
	"github.com/flowaudit/flowaudit/policy/history"
)

// Result says which recorded traffic a change would have decided otherwise.
type Result struct {
	Since time.Time `json:"since"`
	Until time.Time `json:"until"`
	// Refused is what policies allowed, or did not decide, and would be denied;
	// Allowed the other way; Unclear what the change leaves undecided.
	Refused []Flip `json:"refused"`
	Allowed []Flip `json:"allowed"`
	Unclear []Flip `json:"unclear,omitempty"`
	// Edges and Connections are how much was judged.
	Edges       int    `json:"edges"`
	Connections uint64 `json:"connections"`
	// Problems are what of the change could not be compiled.
	Problems []policy.Problem `json:"problems,omitempty"`
	// Blind is how much of the time was not watched, from 0 to 1.
	Blind float64 `json:"blind"`
	// Notes say in plain words what the answer lacks.
	Notes []string `json:"notes,omitempty"`
}

// Flip is traffic between two ends that a change decides otherwise.
type Flip struct {
	Source      string `json:"source"` // Deployment shop/web, an address, or a node
	Destination string `json:"destination"`
	Protocol    string `json:"protocol"`
	Port        uint16 `json:"port,omitempty"`
	// Happened is the recorded verdict, Before and After what the policies say.
	Happened string    `json:"happened"`
	Before   string    `json:"before"`
	After    string    `json:"after"`
	First    time.Time `json:"first"`
	Last     time.Time `json:"last"`
	Hours    int       `json:"hours"` // in how many hours it was seen; the largest of the edges'
	// Connections is an upper bound where InPart is set: policies changed in
	// between, and only a part of the time is decided otherwise.
	Connections uint64 `json:"connections"`
	InPart      bool   `json:"in_part,omitempty"`
	// Side is where it is decided: egress, ingress or both. Policies are those
	// that decide with the change; Why says it in words.
	Side     string           `json:"side,omitempty"`
	Policies []flow.PolicyRef `json:"policies,omitempty"`
	Why      string           `json:"why"`

	edges []*history.Edge
}

// Edges are the edges behind a flip.
func (f *Flip) Edges() []*history.Edge { return f.edges }

// Options of Run.
type Options struct {
	// Progress is told how much is done, from 0 to 1; nil tells nobody.
	Progress func(float64)
}

// Run judges all that was recorded by a change.
func Run(h *history.History, c *Change, o Options) (*Result, error) {
	judged, problems, err := Judge(h, c, o.Progress)
	if err != nil {
		return nil, err
	}
	r := &Result{Since: h.Since, Until: h.Until, Edges: len(judged), Problems: problems, Blind: h.Blind(), Notes: notes(h)}
	flips := make(map[flipKey]*Flip)
	for i := range judged {
		r.Connections += judged[i].Edge.Connections
		flip(flips, &judged[i])
	}
	for _, f := range flips {
		switch f.After {
		case flow.VerdictDenied.String():
			r.Refused = append(r.Refused, *f)
		case flow.VerdictAllowed.String():
			r.Allowed = append(r.Allowed, *f)
		default:
			r.Unclear = append(r.Unclear, *f)
		}
	}
	for _, list := range [][]Flip{r.Refused, r.Allowed, r.Unclear} {
		slices.SortFunc(list, compareFlips)
	}
	return r, nil
}

type flipKey struct {
	source, destination, protocol string
	port                          uint16
	happened, before, after       flow.Verdict
}

// flip joins an edge to the flip of its workloads, if the change decides it
// otherwise at any time.
func flip(flips map[flipKey]*Flip, j *Judgement) {
	var at *Span
	inPart := false
	for i := range j.Spans {
		s := &j.Spans[i]
		if s.Before.Verdict == s.After.Verdict {
			inPart = true
		} else if at == nil {
			at = s
		}
	}
	if at == nil {
		return
	}
	e := j.Edge
	before := at.Before.Verdict
	if before == flow.VerdictUnknown && e.Expected == at.After.Verdict {
		return // what was decided then, with the exact addresses at hand, is known better
	}
	f := Describe(e, before, &at.After)
	f.InPart = inPart
	if inPart {
		f.First, f.Last = at.From, at.To
	}
	key := flipKey{f.Source, f.Destination, f.Protocol, f.Port, e.Verdict, before, at.After.Verdict}
	known := flips[key]
	if known == nil {
		flips[key] = f
		return
	}
	if f.First.Before(known.First) {
		known.First = f.First
	}
	if f.Last.After(known.Last) {
		known.Last = f.Last
	}
	known.Hours = max(known.Hours, f.Hours)
	known.Connections += f.Connections
	known.InPart = known.InPart || f.InPart
	known.edges = append(known.edges, e)
}

// Describe says of an edge that it is decided otherwise.
func Describe(e *history.Edge, before flow.Verdict, after *policy.Decision) *Flip {
	f := &Flip{
		Source: EndText(&e.Source), Destination: EndText(&e.Destination), Protocol: e.Protocol.String(), Port: e.Port,
		Happened: e.Verdict.String(), Before: before.String(), After: after.Verdict.String(),
		First: e.First, Last: e.Last, Hours: e.Hours, Connections: e.Connections, Policies: after.Policies(), edges: []*history.Edge{e},
	}
	f.Side, f.Why = why(after)
	return f
}

// why says which side decides, and in which words.
func why(d *policy.Decision) (side, text string) {
	var sides, texts []string
	for _, s := range []struct {
		name string
		*policy.Side
	}{{"egress", &d.Egress}, {"ingress", &d.Ingress}} {
		if s.Verdict != d.Verdict || d.Verdict == flow.VerdictAllowed && s.Reason != policy.ReasonRule {
			continue
		}
		sides = append(sides, s.name)
		texts = append(texts, sideText(s.name, s.Side))
	}
	if len(sides) == 0 {
		return "", "no policy isolates either end"
	}
	if len(sides) == 2 {
		side = "both"
	} else {
		side = sides[0]
	}
	return side, strings.Join(texts, "; ")
}

func sideText(name string, s *policy.Side) string {
	switch s.Reason {
	case policy.ReasonNoRule:
		return "no " + name + " rule of " + refsText(s.By) + " allows it"
	case policy.ReasonRule:
		return refsText(s.Allowed) + " allows it"
	}
	return name + " is not known: " + s.Reason.String()
}

// refsText names a few policies.
func refsText(refs []flow.PolicyRef) string {
	const shown = 3
	var out []string
	for i, r := range refs {
		if i == shown {
			out = append(out, "and "+strconv.Itoa(len(refs)-shown)+" more")
			break
		}
		text := r.Namespace + "/" + r.Name
		if r.Rule != "" {
			text += " " + r.Rule
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}

// EndText names an end for people.
func EndText(e *flow.EdgeEnd) string {
	address := e.Prefix.String()
	if e.Prefix.IsSingleIP() {
		address = e.Prefix.Addr().String()
	}
	switch {
	case e.Kind == flow.EndpointPod && e.Workload.Name != "":
		return e.Workload.Kind + " " + e.Namespace + "/" + e.Workload.Name
	case e.Kind == flow.EndpointPod:
		return "a pod of " + e.Namespace
	case e.Kind == flow.EndpointNode && e.Node != "":
		return "node " + e.Node + " (" + address + ")"
	case e.Kind == flow.EndpointService && e.Workload.Name != "":
		return "Service " + e.Namespace + "/" + e.Workload.Name + " (" + address + ")"
	case e.Kind == flow.EndpointUnknown || e.Kind == flow.EndpointOutside:
		return address
	}
	return e.Kind.String() + " " + address
}

func compareFlips(a, b Flip) int {
	return cmp.Or(
		cmp.Compare(a.Destination, b.Destination), cmp.Compare(a.Source, b.Source), cmp.Compare(a.Protocol, b.Protocol),
		cmp.Compare(a.Port, b.Port), cmp.Compare(a.Happened, b.Happened), cmp.Compare(a.Before, b.Before),
	)
}

// notes says what the history lacks.
func notes(h *history.History) []string {
	out := slices.Clone(h.Problems)
	if len(h.Edges) == 0 {
		out = append(out, "no traffic was recorded in this time: the answer says nothing")
	}
	if len(h.Revisions) == 1 && len(h.Revisions[0].Changes) == 0 && len(h.Policies) == 0 {
		out = append(out, "the timeline has no policies of this time: everything counts as allowed before")
	}
	return out
}
