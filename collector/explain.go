package collector

import (
	"fmt"
	"strings"
	"time"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy"
)

// Explain says why the policies of a flow's time decide as they do, and which
// rule came closest to allowing it.
func (j *judge) Explain(f *flow.Flow) (explanation, nearest string) {
	at, _ := f.Named()
	state := j.history.at(at)
	c := j.connection(f, at, state, make(map[end]policy.End))
	e := state.Explain(&c)
	denied := flow.VerdictDenied.String()
	var said, close []string
	for _, s := range []struct {
		name string
		side *policy.SideExplanation
	}{{"egress", &e.Egress}, {"ingress", &e.Ingress}} {
		if e.Verdict == denied && s.side.Verdict != denied {
			continue // the other side decides
		}
		said = append(said, fmt.Sprintf("%s %s: %s", s.name, s.side.Verdict, s.side.Text))
		if n := s.side.Nearest; n != nil {
			close = append(close, nearestText(n))
		}
	}
	return strings.Join(said, "; "), strings.Join(close, "; ")
}

func nearestText(n *policy.NearMiss) string {
	var fails []string
	for _, f := range n.Fails {
		fails = append(fails, fmt.Sprintf("%s (%s)", f.Text, f.Field))
	}
	return fmt.Sprintf("%s/%s %s: %s", n.Rule.Namespace, n.Rule.Name, n.Rule.Rule, strings.Join(fails, ", "))
}

// DeniedAt reports whether the policies of another time deny a flow's ends too.
func (j *judge) DeniedAt(f *flow.Flow, at time.Time) bool {
	began, _ := f.Named()
	state := j.history.at(at)
	c := j.connection(f, began, state, make(map[end]policy.End))
	return state.Decide(&c).Verdict == flow.VerdictDenied
}
