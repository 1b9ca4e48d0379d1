package policy

import "fmt"

// Problem is a field of a policy that could not be compiled. Decisions that
// it could influence are unknown.
type Problem struct {
	Namespace string `json:"namespace"`
	Policy    string `json:"policy"`
	Field     string `json:"field"` // spec.ingress[0].from[1].ipBlock.cidr
	Message   string `json:"message"`
}

// String says it in one line.
func (p Problem) String() string {
	return fmt.Sprintf("NetworkPolicy %s/%s: %s: %s", p.Namespace, p.Policy, p.Field, p.Message)
}
