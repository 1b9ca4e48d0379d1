package alert

import (
	_ "embed" // the default rules

	"go.yaml.in/yaml/v3"
)

//go:embed defaults.yaml
var defaultText []byte

// Defaults is the file of the default rules, for people.
func Defaults() []byte { return append([]byte(nil), defaultText...) }

// defaultRules are new each time. TestDefaultRules reads the file strictly.
func defaultRules() []*Rule {
	var f struct {
		Rules []*Rule `yaml:"rules"`
	}
	_ = yaml.Unmarshal(defaultText, &f) // embedded, and read by the tests
	for _, r := range f.Rules {
		r.Runbook = r.Name + ".md"
	}
	return f.Rules
}
