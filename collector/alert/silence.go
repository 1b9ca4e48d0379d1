package alert

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Silence keeps alerts that match from being told. They fire all the same.
type Silence struct {
	ID       string    `json:"id"`
	Matchers []Matcher `json:"matchers"` // all of them must hold
	Starts   time.Time `json:"starts"`
	Ends     time.Time `json:"ends"`
	By       string    `json:"by"`
	Comment  string    `json:"comment,omitempty"`
}

// Matcher compares a label of an alert, as in Alertmanager.
type Matcher struct {
	Label string `json:"label"`
	Op    string `json:"op"` // =, !=, =~ or !~
	Value string `json:"value"`
}

// ParseMatcher reads such as severity=info or source=~"shop/.*".
func ParseMatcher(text string) (Matcher, error) {
	i := strings.IndexAny(text, "=!")
	if i < 1 {
		return Matcher{}, fmt.Errorf("parse matcher %q: want such as alertname=port-scan or source=~shop/.*", text)
	}
	m := Matcher{Label: strings.TrimSpace(text[:i])}
	for _, op := range []string{"=~", "!~", "!=", "="} {
		if rest, ok := strings.CutPrefix(text[i:], op); ok {
			m.Op, m.Value = op, strings.Trim(strings.TrimSpace(rest), `"`)
			return m, m.validate()
		}
	}
	return m, fmt.Errorf("parse matcher %q: want =, !=, =~ or !~ after the label", text)
}

func (m *Matcher) validate() error {
	if !slices.Contains([]string{"=", "!=", "=~", "!~"}, m.Op) || m.Label == "" {
		return fmt.Errorf("matcher %s: want a label and =, !=, =~ or !~", m)
	}
	if _, err := regexp.Compile(m.pattern()); err != nil {
		return fmt.Errorf("matcher %s: %w", m, err)
	}
	return nil
}

// String is the matcher as it is typed.
func (m *Matcher) String() string { return m.Label + m.Op + m.Value }

func (m *Matcher) pattern() string {
	if strings.HasSuffix(m.Op, "~") {
		return "^(?:" + m.Value + ")$"
	}
	return "^" + regexp.QuoteMeta(m.Value) + "$"
}

func (m *Matcher) matches(labels map[string]string) bool {
	re, err := regexp.Compile(m.pattern())
	if err != nil {
		return false // Validate has refused it
	}
	return re.MatchString(labels[m.Label]) != strings.HasPrefix(m.Op, "!")
}

// Validate names what cannot work.
func (s *Silence) Validate() error {
	if len(s.Matchers) == 0 {
		return fmt.Errorf("a silence without matchers would silence everything: say alertname=~.+ if that is meant")
	}
	if !s.Ends.After(s.Starts) {
		return fmt.Errorf("the silence would end (%s) before it begins (%s)", s.Ends.Format(time.RFC3339), s.Starts.Format(time.RFC3339))
	}
	for i := range s.Matchers {
		if err := s.Matchers[i].validate(); err != nil {
			return err
		}
	}
	return nil
}

// Matches reports whether the silence is about an alert, at a time.
func (s *Silence) Matches(a *Alert, now time.Time) bool {
	if now.Before(s.Starts) || !now.Before(s.Ends) {
		return false
	}
	return MatchAll(s.Matchers, a.Labels)
}

// MatchAll reports whether labels meet all matchers.
func MatchAll(matchers []Matcher, labels map[string]string) bool {
	for i := range matchers {
		if !matchers[i].matches(labels) {
			return false
		}
	}
	return true
}

// Silence says which silences there are.
func (e *Engine) Silence(all []Silence) { e.silences = slices.Clone(all) }

// Acknowledge says which alerts, by ID, somebody knows of.
func (e *Engine) Acknowledge(all map[string]Acknowledgment) { e.acks = all }

func (e *Engine) silencedBy(a *Alert, now time.Time) string {
	for i := range e.silences {
		if e.silences[i].Matches(a, now) {
			return e.silences[i].ID
		}
	}
	return ""
}
