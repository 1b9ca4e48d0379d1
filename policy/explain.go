package policy

import "github.com/flowaudit/flowaudit/flow"

// Explanation is a decision in words.
type Explanation struct {
	Source      string          `json:"source"`      // shop/web
	Destination string          `json:"destination"` // shop/db
	Protocol    string          `json:"protocol"`
	Port        uint16          `json:"port,omitempty"`
	Verdict     string          `json:"verdict"`
	Egress      SideExplanation `json:"egress"`
	Ingress     SideExplanation `json:"ingress"`
	Revision    uint64          `json:"revision"`
}

// String is the explanation for people, several lines.
func (e *Explanation) String() string { return "" }

// SideExplanation is one side of a decision in words.
type SideExplanation struct {
	Verdict string           `json:"verdict"`
	Reason  string           `json:"reason"`
	Text    string           `json:"text"` // the reason as a sentence
	By      []flow.PolicyRef `json:"isolated_by,omitempty"`
	Allowed []flow.PolicyRef `json:"allowed_by,omitempty"`
	// Problems are the invalid fields of the policies above, where the verdict is unknown.
	Problems []Problem `json:"problems,omitempty"`
	// Nearest is the rule that came closest, of a denial; nil if no policy that
	// isolates the pod has a rule for this direction.
	Nearest *NearMiss `json:"nearest,omitempty"`
	// Patch is the smallest change that would allow it, of a denial.
	Patch *Patch `json:"patch,omitempty"`
}

// NearMiss is a rule that does not allow a connection, and all that fails.
type NearMiss struct {
	Rule  flow.PolicyRef `json:"rule"`
	Fails []Failure      `json:"fails"`
}

// Failure is one thing of a rule that the connection does not fulfil.
type Failure struct {
	Field string `json:"field"` // spec.ingress[0].ports[0].port
	Text  string `json:"text"`  // port 8080, rule allows 80
}

// Patch changes one policy so that it allows a connection.
type Patch struct {
	Policy flow.PolicyRef `json:"policy"`
	// Operations are a JSON patch (RFC 6902), for kubectl patch --type=json.
	Operations []Operation `json:"operations"`
	// YAML is what the operation adds, for people who edit the policy.
	YAML string `json:"yaml"`
}

// Operation is one operation of a JSON patch.
type Operation struct {
	Op    string `json:"op"` // always add
	Path  string `json:"path"`
	Value any    `json:"value"`
}
