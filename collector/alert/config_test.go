package alert

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/flowaudit/flowaudit/flow"
)

func TestDefaultRules(t *testing.T) {
	var f struct {
		Rules []*Rule `yaml:"rules"`
	}
	d := yaml.NewDecoder(bytes.NewReader(Defaults()))
	d.KnownFields(true)
	if err := d.Decode(&f); err != nil {
		t.Fatal(err)
	}
	c := Parse(nil)
	if len(c.Problems) > 0 || len(c.Rules) != len(f.Rules) {
		t.Errorf("%d of %d rules, problems %v", len(c.Rules), len(f.Rules), c.Problems)
	}
	for _, r := range c.Rules {
		if _, err := os.Stat("../../docs/runbooks/" + r.Runbook); err != nil {
			t.Errorf("rule %s has no page: %v", r.Name, err)
		}
		for _, u := range r.Unless {
			if !strings.Contains(string(Defaults()), "name: "+u+"\n") {
				t.Errorf("rule %s yields to %s, which is none", r.Name, u)
			}
		}
	}
}

func TestAFileChangesTheDefaults(t *testing.T) {
	c := Parse([]byte(`
learning: 7d
rules:
- {name: port-scan, severity: info, count: {over: 100}}
- {name: denial-rate, enabled: false}
- name: db
  severity: critical
  match: {verdict: [denied], to: {namespace: ["shop*"], workload: [db]}, port: ["3306", 5000-5999]}
  group: [edge]
`))
	if len(c.Problems) > 0 {
		t.Fatal(c.Problems)
	}
	rules := make(map[string]*Rule)
	for _, r := range c.Rules {
		rules[r.Name] = r
	}
	if r := rules["port-scan"]; r.Severity != "info" || r.Count.Over != 100 || r.Count.Of != "ports" || r.Match.Verdict == nil {
		t.Errorf("%+v %+v", r, r.Count)
	}
	if rules["denial-rate"] != nil {
		t.Error("a rule that is off is evaluated")
	}
	if got := time.Duration(rules["new-edge-outside"].Learning); got != 7*24*time.Hour {
		t.Errorf("learning takes %s, want a week", got)
	}
	if r := rules["db"]; fmt.Sprint(r.Group) != "[source destination port]" || time.Duration(r.KeepFiring) != 15*time.Minute {
		t.Errorf("%+v", r)
	}
	if again := Parse(nil); again.Rules[2].Count.Over != 20 {
		t.Error("a file changed the defaults for everybody")
	}
}

// What cannot be used is named with its line, and the rest is used.
func TestBadRulesAreNamed(t *testing.T) {
	for text, want := range map[string]string{
		"rules: [{name: a, group: [edge], match: {verdict: [refused]}}]":                         "line 1: rule a: match: parse verdict",
		"rules:\n- {name: a, group: [edge]}\n- {name: a, group: [edge]}":                         "line 3: rule a: there is a rule of this name at line 2",
		"rules:\n- name: a\n  group: [edge]\n  math: {}":                                         `line 4: rule a: there is no field "math": want one of name`,
		"rules:\n- name: a\n  group: [edge]\n  match: {from: {namespaces: [x]}}":                 `line 4: rule a: there is no field "namespaces": want one of kind, namespace`,
		"rules: [{name: a, group: [edge], for: 3 weeks}]":                                        `line 1: rule a: "3 weeks" is no duration`,
		"rules: [{name: a, group: [pod]}]":                                                       `rule a: group: "pod" is not one of source`,
		"rules: [{name: a}]":                                                                     "rule a: group: say what tells alerts apart",
		"rules: [{group: [edge]}]":                                                               "line 1: rule: has no name",
		"rules: [{name: a, group: [edge], summary: '{{.Foo}}'}]":                                 "rule a: template: summary",
		"rules: [{name: a, group: [edge], summary: '{{.From'}]":                                  "rule a: template: summary",
		"rules: [{name: a, group: [source], count: {of: pods, over: 0}}]":                        `rule a: count.of: "pods" is not one of`,
		"rules: [{name: a, group: [source], count: {of: ports, over: 3, clear: 9, within: 1m}}]": "count.clear: 9 is not between",
		"rules: [{name: a, group: [change]}]":                                                    "change and after_change belong together",
		"rules: [{name: a, coverage: {gaps: [sleep]}}]":                                          `coverage.gaps: "sleep" is not one of`,
		"rules: [{name: a, coverage: {silent: 1m}, new: edge}]":                                  "a rule about coverage is by node",
		"rules: [{name: a, group: [edge], match: {from: {cidr: [10.0.0.0/33]}}}]":                "from.cidr",
		"rules: [{name: a, group: [edge], match: {from: {workload: ['[']}}}]":                    "is no pattern",
		"rules: [{name: a, group: [edge], match: {port: ['99999']}}]":                            "is no port",
		"rules: [{name: a, group: [edge], unless: [b]}]":                                         `unless: there is no rule "b"`,
		"rules: [{name: a, group: [edge], severity: page}]":                                      `severity: "page" is not one of`,
		"link_template: '{{.Nothing}}'":                                                          "link_template: template",
		"rules: [":                                                                               "line 1: did not find expected node content",
		"rules: {}":                                                                              "cannot unmarshal",
		"rule: []":                                                                               `line 1: there is no field "rule"`,
	} {
		c := Parse([]byte(text))
		if len(c.Problems) == 0 || !strings.Contains(c.Problems[0].String(), want) {
			t.Errorf("%s: %v, want %q", text, c.Problems, want)
		}
		if len(c.Rules) < len(Parse(nil).Rules) {
			t.Errorf("%s: %d rules are left", text, len(c.Rules))
		}
	}
}

func TestSelectors(t *testing.T) {
	w := newWorld(t, "")
	base := func() flow.Flow { return w.denied("shop/web", "shop/db", 3306) }
	for text, want := range map[string]bool{
		"{}":                                   true,
		"{refused: true}":                      true,
		"{refused: false}":                     false,
		"{verdict: [denied]}":                  true,
		"{verdict: [allowed]}":                 false,
		"{assessment: [enforced, unenforced]}": true,
		"{from: {kind: [pod], workload: [shop/w*]}}":       true,
		"{from: {workload: [ops/web]}}":                    false,
		"{to: {namespace: ['sh?p'], cidr: [10.1.0.0/16]}}": true,
		"{to: {cidr: [10.2.0.0/16]}}":                      false,
		"{port: ['3306']}":                                 true,
		"{port: [3300-3310]}":                              true,
		"{port: ['3307']}":                                 false,
		"{protocol: [udp]}":                                false,
		"{direction: [egress]}":                            true,
		"{node: [n*], cluster: [c]}":                       true,
		"{to: {kind: [outside]}}":                          false,
		"{to: {service: [shop/db]}}":                       false,
	} {
		var s Selector
		if err := yaml.Unmarshal([]byte(text), &s); err != nil {
			t.Fatal(err)
		}
		m, err := compileSelector(&s)
		if err != nil {
			t.Fatal(text, err)
		}
		f := base()
		if got := m.could(f.Verdict, f.Assessment, kindOf(f.Destination)) && m.matches(&f); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}

func TestMatchers(t *testing.T) {
	for text, want := range map[string]string{
		"alertname=port-scan": "alertname=port-scan", `source=~"shop/.*"`: "source=~shop/.*", "a!=b": "a!=b", "a!~b": "a!~b",
		"port-scan": "", "=x": "", "a=~(": "", "a!b": "",
	} {
		m, err := ParseMatcher(text)
		if (err != nil) != (want == "") || err == nil && m.String() != want {
			t.Errorf("%s: %s, %v", text, &m, err)
		}
	}
	for _, s := range []Silence{{}, {Matchers: []Matcher{{"a", "=", "b"}}}, {Matchers: []Matcher{{"a", "==", "b"}}, Ends: time.Now()}} {
		if s.Validate() == nil {
			t.Errorf("%+v is valid", s)
		}
	}
}

func TestLinksLeadToGrafana(t *testing.T) {
	w := newWorld(t, "grafana: https://g.example/")
	w.observe(w.denied("shop/web", "shop/db", 3306))
	w.pass(10 * time.Second)
	if got := w.notified[0].Link; got != "https://g.example/d/flowaudit?from=1793613600000&to=now&var-namespace=shop&var-workload=web" {
		t.Errorf("link %s", got)
	}
	w = newWorld(t, "runbook_url: https://docs.example/runbooks\nlink_template: 'https://l/{{.ID}}'")
	w.observe(w.denied("shop/web", "shop/db", 3306))
	w.pass(10 * time.Second)
	if a := w.notified[0]; a.Link != "https://l/"+a.ID || a.Runbook != "https://docs.example/runbooks/first-denied.md" {
		t.Errorf("%s %s", a.Link, a.Runbook)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Defaults())
	f.Add([]byte("rules: [{name: a, group: [edge], for: 1m}]\nnotifiers: [{type: webhook, url: http://x}]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c := Parse(text)
		e := NewEngine(c, &world{})
		e.Tick(time.Unix(0, 0))
	})
}
