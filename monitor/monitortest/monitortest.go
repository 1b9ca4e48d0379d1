// Package monitortest holds a registry against its documentation, and against Prometheus' own linter.
package monitortest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
)

// Document compares a section of a page with the metrics of flowaudit that a
// registry has, or writes it anew if update says so. Each metric must have a
// sample, which shows its type and labels.
func Document(t *testing.T, r *prometheus.Registry, page, section string, update bool) {
	t.Helper()
	families := gather(t, r)
	complete(t, r, families)
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	begin, end := fmt.Sprintf("<!-- %s: made by make generate -->\n", section), fmt.Sprintf("<!-- end of %s -->\n", section)
	before, rest, ok := bytes.Cut(text, []byte(begin))
	old, after, closed := bytes.Cut(rest, []byte(end))
	if !ok || !closed {
		t.Fatalf("%s has no section between %q and %q", page, begin, end)
	}
	made := table(families)
	if made == string(old) {
		return
	}
	if !update {
		t.Errorf("%s is not what the registry says: run make generate\n--- page\n%s--- registry\n%s", page, old, made)
		return
	}
	if err := os.WriteFile(page, slices.Concat(before, []byte(begin), []byte(made), []byte(end), after), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Shows compares samples, each on a line as a scrape has it.
func Shows(t *testing.T, g prometheus.Gatherer, want string) {
	t.Helper()
	got := scrape(t, g)
	for line := range strings.Lines(want) {
		if line = strings.TrimSpace(line); !strings.Contains(got, "\n"+line+"\n") {
			name, _, _ := strings.Cut(line, " ")
			name, _, _ = strings.Cut(name, "{")
			t.Errorf("want %s, got\n%s", line, strings.Join(regexp.MustCompile(`(?m)^`+name+`[{ ].*$`).FindAllString(got, -1), "\n"))
		}
	}
}

// scrape gives what Prometheus would get.
func scrape(t *testing.T, g prometheus.Gatherer) string {
	t.Helper()
	var text strings.Builder
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&text, f); err != nil {
			t.Fatal(err)
		}
	}
	return text.String()
}

// Lint runs promtool check metrics on what a scrape would get.
func Lint(t *testing.T, g prometheus.Gatherer) {
	t.Helper()
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("promtool is missing: make test installs it, with the Debian package prometheus")
		}
		t.Skip("promtool is missing: apt-get install prometheus")
	}
	cmd := exec.Command(promtool, "check", "metrics")
	cmd.Stdin = strings.NewReader(scrape(t, g))
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}

func gather(t *testing.T, r *prometheus.Registry) []*dto.MetricFamily {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(families, func(f *dto.MetricFamily) bool { return !strings.HasPrefix(f.GetName(), "flowaudit_") })
}

// complete fails where a metric that is described has no sample.
func complete(t *testing.T, r *prometheus.Registry, families []*dto.MetricFamily) {
	t.Helper()
	descriptions := make(chan *prometheus.Desc)
	go func() {
		defer close(descriptions)
		r.Describe(descriptions)
	}()
	name := regexp.MustCompile(`fqName: "(flowaudit_[^"]*)"`)
	for d := range descriptions {
		found := name.FindStringSubmatch(d.String())
		if found != nil && !slices.ContainsFunc(families, func(f *dto.MetricFamily) bool { return f.GetName() == found[1] }) {
			t.Errorf("%s has no sample, so that nobody sees it documented", found[1])
		}
	}
}

// table lists metrics in Markdown.
func table(families []*dto.MetricFamily) string {
	var b strings.Builder
	b.WriteString("\n| metric | type | labels | what it says |\n|---|---|---|---|\n")
	for _, f := range families {
		var labels []string
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if name := "`" + l.GetName() + "`"; !slices.Contains(labels, name) {
					labels = append(labels, name)
				}
			}
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.GetName(), strings.ToLower(f.GetType().String()), strings.Join(labels, ", "), f.GetHelp())
	}
	b.WriteString("\n")
	return b.String()
}
