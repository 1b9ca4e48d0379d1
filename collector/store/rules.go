package store

import (
	"encoding/json"
	"fmt"

	"github.com/flowaudit/flowaudit/flow"
)

// Rule is what questions ask of a policy: one for each direction that it
// isolates, and one for each of its rules.
type Rule struct {
	Side    string // ingress or egress
	Name    string // such as ingress[0]; empty for the isolation itself
	AllPods bool   // the policy selects every pod of its namespace
}

// policyObject is what Rules reads of a NetworkPolicy.
type policyObject struct {
	Spec struct {
		PodSelector struct {
			MatchLabels      map[string]string `json:"matchLabels"`
			MatchExpressions []json.RawMessage `json:"matchExpressions"`
		} `json:"podSelector"`
		PolicyTypes []string          `json:"policyTypes"`
		Ingress     []json.RawMessage `json:"ingress"`
		Egress      []json.RawMessage `json:"egress"`
	} `json:"spec"`
}

// Rules lists the rules of a policy as a change tells it; none if it was
// deleted, is no policy or cannot be read.
func Rules(c *flow.Change) []Rule {
	var p policyObject
	if c.Kind != flow.ChangePolicy || c.Deleted || json.Unmarshal(c.Object, &p) != nil {
		return nil
	}
	types := p.Spec.PolicyTypes
	if len(types) == 0 { // the API server fills it in; a manifest may not say
		if types = []string{"Ingress"}; len(p.Spec.Egress) > 0 {
			types = append(types, "Egress")
		}
	}
	all := len(p.Spec.PodSelector.MatchLabels) == 0 && len(p.Spec.PodSelector.MatchExpressions) == 0
	var out []Rule
	for _, t := range types {
		side, rules := "ingress", len(p.Spec.Ingress)
		if t == "Egress" {
			side, rules = "egress", len(p.Spec.Egress)
		}
		out = append(out, Rule{Side: side, AllPods: all})
		for i := range rules {
			out = append(out, Rule{Side: side, Name: fmt.Sprintf("%s[%d]", side, i), AllPods: all})
		}
	}
	return out
}
