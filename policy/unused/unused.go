// Package unused finds rules of policies that no recorded traffic needed.
package unused

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy"
	"github.com/flowaudit/flowaudit/policy/history"
	"github.com/flowaudit/flowaudit/policy/replay"
)

// Options of Find.
type Options struct {
	// For is how long a rule had no traffic to be listed.
	For time.Duration
	// Namespaces whose policies are looked at; empty means all.
	Namespaces []string
}

// Validate reports what cannot be.
func (o *Options) Validate() error {
	if o.For <= 0 {
		return errors.New("the time without traffic is not positive: give a duration such as 720h")
	}
	return nil
}

// Report lists what was not used.
type Report struct {
	Since time.Time     `json:"since"`
	Until time.Time     `json:"until"`
	For   time.Duration `json:"-"`
	Days  float64       `json:"days"` // For, in days
	Rules []Rule        `json:"rules"`
	// Policies and Parts are how many were looked at.
	Policies int `json:"policies"`
	Parts    int `json:"parts"`
	// Blind is how much of the time was not watched, from 0 to 1.
	Blind float64  `json:"blind"`
	Notes []string `json:"notes,omitempty"`
}

// Rule is a rule, or a peer or port of one, that was not used.
type Rule struct {
	Kind      string `json:"kind"` // rule, peer or port
	Namespace string `json:"namespace"`
	Policy    string `json:"policy"`
	Direction string `json:"direction"` // ingress or egress
	Field     string `json:"field"`     // spec.ingress[0].from[1]
	Text      string `json:"text"`      // what it says
	// LastUsed is zero if no traffic of the time needed it.
	LastUsed time.Time `json:"last_used,omitzero"`
	Edited   time.Time `json:"edited,omitzero"`
	// Attempts counts connections that it allowed and nobody answered.
	Attempts uint64   `json:"attempts,omitempty"`
	Caveats  []string `json:"caveats,omitempty"`
}

// Find looks at every rule of the policies at the end of a history. What came
// before a policy was last changed does not count.
func Find(h *history.History, o Options) (*Report, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	f := &finder{h: h, o: o, slots: make(map[flow.PolicyRef][]*part)}
	var exploded []*networkingv1.NetworkPolicy
	r := &Report{Since: h.Since, Until: h.Until, For: o.For, Days: o.For.Hours() / 24, Blind: h.Blind(), Notes: slices.Clone(h.Problems)}
	for _, p := range h.Policies {
		if len(o.Namespaces) > 0 && !slices.Contains(o.Namespaces, p.Namespace) {
			continue
		}
		r.Policies++
		exploded = append(exploded, f.explode(p))
	}
	if err := f.use(exploded); err != nil {
		return nil, err
	}
	r.Parts = len(f.parts)
	r.Rules = f.unused()
	r.Notes = append(r.Notes, f.notes(r.Blind)...)
	return r, nil
}

type finder struct {
	h     *history.History
	o     Options
	parts []*part
	// slots are the parts that a rule of the exploded policies stands for.
	slots map[flow.PolicyRef][]*part
}

// part is a rule, a peer or a port, and what used it.
type part struct {
	Rule
	policy *history.Policy
	peers  []networkingv1.NetworkPolicyPeer // of the rule, or the one peer
	parent *part                            // the rule of a peer or port
}

// use finds what traffic needed which part.
func (f *finder) use(policies []*networkingv1.NetworkPolicy) error {
	engine, err := policy.New(policy.Options{Classes: f.h.Classes(), Policies: policies})
	if err != nil {
		return fmt.Errorf("make policy engine: %w", err)
	}
	now := engine.Snapshot()
	for _, e := range f.h.Edges {
		if e.Verdict != flow.VerdictAllowed && e.Verdict != flow.VerdictUnanswered {
			continue
		}
		c := f.h.Connection(e)
		d := now.Decide(&c)
		for _, s := range []*policy.Side{&d.Egress, &d.Ingress} {
			for _, ref := range s.Allowed {
				for _, p := range f.slots[key(ref)] {
					p.use(e)
				}
			}
		}
	}
	return nil
}

// key leaves out what does not tell rules apart.
func key(r flow.PolicyRef) flow.PolicyRef {
	return flow.PolicyRef{Namespace: r.Namespace, Name: r.Name, Rule: r.Rule}
}

func (p *part) use(e *history.Edge) {
	if e.Last.Before(p.policy.Changed) {
		return
	}
	if e.Verdict == flow.VerdictUnanswered {
		p.Attempts += e.Connections
	} else if e.Last.After(p.LastUsed) {
		p.LastUsed = e.Last
	}
}

// unused lists the parts without traffic; those of a rule that is listed
// itself are left out.
func (f *finder) unused() []Rule {
	before := f.h.Until.Add(-f.o.For)
	selection := history.NewSelection(f.h.Identities)
	var out []Rule
	listed := make(map[*part]bool)
	for _, p := range f.parts {
		if !p.LastUsed.Before(before) || listed[p.parent] {
			continue
		}
		listed[p] = true
		p.Edited = p.policy.Changed
		p.Caveats = f.caveats(p, selection)
		out = append(out, p.Rule)
	}
	return out
}

// caveats are reasons for which a part may be needed all the same.
func (f *finder) caveats(p *part, selection *history.Selection) []string {
	var out []string
	if age := f.h.Until.Sub(p.policy.Changed); age < f.o.For {
		text := "the policy was changed " + ago(age)
		if p.policy.Author != "" {
			text += " by " + p.policy.Author
		}
		out = append(out, text+"; what came before does not count")
	}
	if len(selection.Subjects(p.policy.NetworkPolicy)) == 0 {
		out = append(out, "the policy selects no pod that was seen")
	}
	if p.Kind == "port" || len(p.peers) == 0 {
		return out
	}
	var periodic []string
	selected, blocks := 0, 0
	for i := range p.peers {
		if p.peers[i].IPBlock != nil {
			blocks++
		}
		for _, id := range selection.Peers(p.policy.Namespace, &p.peers[i]) {
			selected++
			for _, w := range id.Workloads {
				if w.Periodic() && !slices.Contains(periodic, w.String()) {
					periodic = append(periodic, w.String())
				}
			}
		}
	}
	if selected == 0 && blocks == 0 {
		out = append(out, "its peer selects no pod that was seen")
	}
	if len(periodic) > 0 {
		slices.Sort(periodic)
		out = append(out, "runs now and then: "+strings.Join(periodic, ", ")+"; its time may not have come")
	}
	return out
}

func ago(d time.Duration) string {
	if d < 48*time.Hour {
		return fmt.Sprintf("%d hours ago", int(d.Hours()))
	}
	return fmt.Sprintf("%d days ago", int(d.Hours())/24)
}

func (f *finder) notes(blind float64) []string {
	var out []string
	if span := f.h.Until.Sub(f.h.Since); span < f.o.For {
		out = append(out, fmt.Sprintf("the history is only %s long: raise --since, or wait", days(span)))
	}
	if len(f.h.Edges) == 0 {
		out = append(out, "no traffic was recorded in this time: that nothing was used says nothing")
	} else if first := f.h.Edges[0].First; f.h.Until.Sub(first) < f.o.For {
		out = append(out, fmt.Sprintf("the first traffic is of %s, %s before the end", first.UTC().Format("2006-01-02 15:04"), days(f.h.Until.Sub(first))))
	}
	if blind > 0 {
		out = append(out, replay.Percent(blind)+" of the time was not watched: traffic may have been missed")
	}
	return out
}

func days(d time.Duration) string { return fmt.Sprintf("%.1f days", d.Hours()/24) }
