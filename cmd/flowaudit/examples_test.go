package main

import (
	"encoding/csv"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/flowaudit/flowaudit/flow"
)

const examples = "../../examples/"

// Every example is what it says: its table of connections is decided as
// expected, its README explains by the policies that decide, and lint finds
// what the README says, and nothing else.
func TestExamples(t *testing.T) {
	for _, name := range []string{"three-tier", "db-policy", "or-and", "except", "deny-all", "dns"} {
		t.Run(name, func(t *testing.T) {
			dir := examples + name
			read := func(file string) string {
				t.Helper()
				text, err := os.ReadFile(filepath.Join(dir, file))
				if err != nil {
					t.Fatal(err)
				}
				return string(text)
			}
			got := invoke("", "policy", "eval", "--manifests", dir, "--connections", dir+"/connections.csv")
			if got != (answer{exitOK, read("expected.csv"), ""}) {
				t.Errorf("eval says\n%v\nwant\n%s", got, read("expected.csv"))
			}
			readme := read("README.md")
			rows := invoke("", "policy", "eval", "--manifests", dir, "--connections", dir+"/connections.csv", "-o", "json")
			checkTable(t, readme, read("expected.csv"), strings.Split(strings.TrimSpace(rows.stdout), "\n"))

			var found []string
			for _, line := range strings.Split(strings.TrimSpace(invoke("", "policy", "lint", "--manifests", dir, "-o", "json").stdout), "\n") {
				var f struct{ Code string }
				if line != "" {
					if err := json.Unmarshal([]byte(line), &f); err != nil {
						t.Fatal(err)
					}
				}
				if f.Code != "" && !slices.Contains(found, f.Code) {
					found = append(found, f.Code)
				}
			}
			_, said, _ := strings.Cut(readme, "\nLint: ")
			said, _, _ = strings.Cut(said, "```")
			codes := regexp.MustCompile(`FA\d+`).FindAllString(said, -1)
			slices.Sort(found)
			if !slices.Equal(found, codes) {
				t.Errorf("lint finds %v, the README says %v", found, codes)
			}
		})
	}
}

var quoted = regexp.MustCompile("`([a-z-]+)`")

// checkTable compares a README's table with the expected verdicts, and the
// policies that it names with those that had a say.
func checkTable(t *testing.T, readme, expected string, decisions []string) {
	t.Helper()
	want, err := csv.NewReader(strings.NewReader(expected)).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	var table [][]string
	for _, line := range strings.Split(readme, "\n") {
		if cells := strings.Split(strings.Trim(line, "| "), " | "); len(cells) == 6 && cells[0] != "from" {
			table = append(table, cells)
		}
	}
	if len(table) != len(want)-1 || len(table) != len(decisions) {
		t.Fatalf("the README has %d rows, expected.csv %d, and %d are decided", len(table), len(want)-1, len(decisions))
	}
	for i, cells := range table {
		if !slices.Equal(cells[:5], want[i+1]) {
			t.Errorf("the README says %v, expected.csv %v", cells[:5], want[i+1])
		}
		var d evaluated
		if err := json.Unmarshal([]byte(decisions[i]), &d); err != nil {
			t.Fatal(err)
		}
		var decide, say []string // whose say it is, and who has any
		for _, s := range []*evaluatedSide{d.Egress, d.Ingress} {
			by := s.AllowedBy
			if d.Verdict == "deny" && s.Verdict == "deny" {
				by = s.IsolatedBy
			} else if d.Verdict == "deny" {
				by = nil
			}
			decide, say = append(decide, names(by)...), append(say, names(slices.Concat(s.IsolatedBy, s.AllowedBy))...)
		}
		var told []string
		for _, m := range quoted.FindAllStringSubmatch(cells[5], -1) {
			if m[1] != "from" {
				told = append(told, m[1])
			}
		}
		for _, p := range decide {
			if !slices.Contains(told, p) {
				t.Errorf("%v: %s decides, and the README does not name it: %s", cells[:5], p, cells[5])
			}
		}
		for _, p := range told {
			if !slices.Contains(say, p) {
				t.Errorf("%v: %s has no say, but the README names it: %s", cells[:5], p, cells[5])
			}
		}
	}
}

func names(refs []flow.PolicyRef) []string {
	var out []string
	for _, r := range refs {
		out = append(out, r.Name)
	}
	return out
}

// What the documentation shows is what the program says.
func TestDocumentedOutput(t *testing.T) {
	t.Chdir("../..")
	shown := 0
	for _, page := range []string{"README.md", "docs/policy.md"} {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, block := range strings.Split(string(text), "```\n") {
			command, want, is := strings.Cut(block, "\n")
			args, ours := strings.CutPrefix(command, "$ flowaudit policy ")
			if !is || !ours {
				continue
			}
			shown++
			if got := invoke("", append([]string{"policy"}, strings.Fields(args)...)...); got.stdout != want || got.stderr != "" {
				t.Errorf("%s: %s says\n%s%s\nnot\n%s", page, command, got.stdout, got.stderr, want)
			}
		}
	}
	if shown < 3 {
		t.Errorf("%d commands with their output were found, want 3", shown)
	}
}
