package flowaudit_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// alertRule is an alert of deploy/prometheus/rules.yaml.
type alertRule struct {
	Alert, Expr string
	Labels      map[string]string
	Annotations map[string]string
}

func alertRules(t *testing.T) (rules []alertRule) {
	t.Helper()
	text, err := os.ReadFile("deploy/prometheus/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Groups []struct{ Rules []alertRule } }
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	for _, g := range file.Groups {
		rules = append(rules, g.Rules...)
	}
	return rules
}

// TestEveryAlertHasItsRunbook: and every runbook its alert.
func TestEveryAlertHasItsRunbook(t *testing.T) {
	pages, err := filepath.Glob("docs/runbooks/prometheus-*.md")
	if err != nil {
		t.Fatal(err)
	}
	index, err := os.ReadFile("docs/runbooks/README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range alertRules(t) {
		page := "docs/runbooks/" + filepath.Base(r.Annotations["runbook_url"])
		text, err := os.ReadFile(page)
		if err != nil {
			t.Errorf("%s links to %q: %v", r.Alert, r.Annotations["runbook_url"], err)
			continue
		}
		if r.Annotations["runbook_url"] != "https://github.com/flowaudit/flowaudit/blob/main/"+page {
			t.Errorf("%s links to %s", r.Alert, r.Annotations["runbook_url"])
		}
		if !strings.HasPrefix(string(text), "# "+r.Alert+"\n") {
			t.Errorf("%s is not headed %s", page, r.Alert)
		}
		if !strings.Contains(string(index), "["+r.Alert+"]("+filepath.Base(page)+")") {
			t.Errorf("docs/runbooks/README.md does not list %s", r.Alert)
		}
		if r.Labels["severity"] == "" || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
			t.Errorf("%s lacks a severity, summary or description", r.Alert)
		}
		pages = slices.DeleteFunc(pages, func(p string) bool { return p == page })
	}
	if len(pages) > 0 {
		t.Errorf("no alert links to %v", pages)
	}
}

// TestAlertsAskForMetricsThatExist: as docs/metrics.md lists them, which is
// held against the programs.
func TestAlertsAskForMetricsThatExist(t *testing.T) {
	text, err := os.ReadFile("docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range alertRules(t) {
		found := false
		for _, word := range strings.FieldsFunc(r.Expr, func(c rune) bool { return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz_", c) }) {
			if !strings.HasPrefix(word, "flowaudit_") {
				continue
			}
			found = true
			if name := strings.TrimSuffix(word, "_bucket"); !strings.Contains(string(text), "| `"+name+"` |") {
				t.Errorf("%s asks for %s, which is not in docs/metrics.md", r.Alert, name)
			}
		}
		if !found {
			t.Errorf("%s asks for no metric of flowaudit", r.Alert)
		}
	}
}

// TestAlertRules: promtool checks them and runs their unit tests, of which
// every alert has one that fires.
func TestAlertRules(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("promtool is missing: make test installs it, with the Debian package prometheus")
		}
		t.Skip("promtool is missing: apt-get install prometheus")
	}
	for _, args := range [][]string{{"check", "rules", "rules.yaml"}, {"test", "rules", "rules_test.yaml"}} {
		cmd := exec.Command(promtool, args...)
		cmd.Dir = "deploy/prometheus"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	text, err := os.ReadFile("deploy/prometheus/rules_test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Tests []struct {
			Cases []struct {
				Alert  string `json:"alertname"`
				Expect []any  `json:"exp_alerts"`
			} `json:"alert_rule_test"`
		}
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	fires := make(map[string]bool)
	for _, test := range file.Tests {
		for _, c := range test.Cases {
			fires[c.Alert] = fires[c.Alert] || len(c.Expect) > 0
		}
	}
	for _, r := range alertRules(t) {
		if !fires[r.Alert] {
			t.Errorf("no test makes %s fire", r.Alert)
		}
	}
}
