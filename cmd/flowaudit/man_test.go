package main

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/flowaudit/flowaudit/cmd/manual"
)

// TestManualPages: one a command, and no more.
func TestManualPages(t *testing.T) {
	var pages []string
	var each func(c *cobra.Command, path []string)
	each = func(c *cobra.Command, path []string) {
		name := strings.Join(append([]string{"flowaudit"}, path...), "-")
		pages = append(pages, filepath.Join("../../docs/man", name+".1"))
		help := flowaudit(t, nil, nil, append(slices.Clone(path), "--help")...)
		if help.code != 0 {
			t.Errorf("%s --help: %s", name, help.stderr)
		}
		manual.Golden(t, "../../docs/man", name, 1, c.Short, help.stdout, *update)
		for _, sub := range c.Commands() {
			if sub.Name() != "completion" && sub.Name() != "help" {
				each(sub, append(slices.Clone(path), sub.Name()))
			}
		}
	}
	each(newRoot(environment{name: "flowaudit", getenv: func(string) string { return "" }}), nil)
	all, err := filepath.Glob("../../docs/man/*.1")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range all {
		if !slices.Contains(pages, page) {
			t.Errorf("%s is of no command", page)
		}
	}
}

// TestShellCompletion: each shell's script is one to that shell, and offers
// commands, flags and what they may be.
func TestShellCompletion(t *testing.T) {
	for shell, check := range map[string][]string{"bash": {"bash", "-n"}, "zsh": {"zsh", "-n"}, "fish": {"fish", "-n"}, "powershell": nil} {
		r := flowaudit(t, nil, nil, "completion", shell)
		if r.code != 0 || !strings.Contains(r.stdout, "flowaudit") {
			t.Errorf("%s: exit code %d, %s", shell, r.code, r.stderr)
		}
		if check == nil {
			continue
		}
		program, err := exec.LookPath(check[0])
		if err != nil {
			t.Logf("%s is not here to ask", check[0])
			continue
		}
		cmd := exec.Command(program, check[1:]...)
		cmd.Stdin = strings.NewReader(r.stdout)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s does not read its script: %v\n%s", shell, err, out)
		}
	}
	for _, test := range []struct{ args, want string }{
		{"obs", "observe\t"},
		{"observe --verd", "--verdict\t"},
		{"observe --verdict den", "denied"},
		{"observe -o ", "json"},
		{"policy ex", "explain\t"},
		{"doctor --only ", "cluster"},
	} {
		r := flowaudit(t, nil, nil, append([]string{"__complete"}, strings.Split(test.args, " ")...)...)
		if r.code != 0 || !strings.Contains("\n"+r.stdout, "\n"+test.want) {
			t.Errorf("%s: exit code %d, %q, want %q", test.args, r.code, r.stdout, test.want)
		}
	}
}
