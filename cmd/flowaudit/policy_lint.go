package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/flowaudit/flowaudit/kube"
	"github.com/flowaudit/flowaudit/policy/lint"
)

// policyLint is the subcommand's options.
type policyLint struct {
	*source
	output string
	failOn string
	ignore []string
}

func newPolicyLint(c *client) *cobra.Command {
	o := &policyLint{}
	cmd := &cobra.Command{
		Use:   "lint",
		Short: "Find what policies say wrongly, or other than was likely meant",
		Long: `Looks for mistakes in policies: what the API server would refuse, what has no
effect, and what says other than was likely meant. Each finding has a code, such
as FA201, whose page is docs/lint/FA201.md.

Exit codes: 0 nothing is as severe as --fail-on; 3 the worst is a warning (or an
info, with --fail-on info); 4 an error; 1 the objects cannot be read.`,
		Example: `  flowaudit policy lint --context prod
  flowaudit policy lint --manifests cluster/
  flowaudit policy lint --manifests policies/ --ignore FA801,FA802 --fail-on error

  # for a code host that shows findings beside the lines
  flowaudit policy lint --manifests policies/ -o sarif > lint.sarif`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	o.source = newOnlineSource(cmd, c)
	choices(cmd, &o.output, "output", "o", "text", "`format`: text, json or sarif", "text", "json", "sarif")
	choices(cmd, &o.failOn, "fail-on", "", "warning", "the least `severity` that fails: info, warning, error or none", "info", "warning", "error", "none")
	cmd.Flags().StringSliceVar(&o.ignore, "ignore", nil, "`codes` of rules to leave out")
	_ = cmd.RegisterFlagCompletionFunc("ignore", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		var codes []string
		for _, r := range lint.Rules() {
			codes = append(codes, r.Code+"\t"+r.Title)
		}
		return codes, cobra.ShellCompDirectiveNoFileComp
	})
	return cmd
}

// placed is a finding with its place. Line is 0 if no file has the object.
type placed struct {
	lint.Finding
	File string `json:"file,omitempty"`
	Line int    `json:"line,omitempty"`
}

func (o *policyLint) run(ctx context.Context) error {
	if err := oneOf("output", o.output, "text", "json", "sarif"); err != nil {
		return err
	}
	failOn := lint.Error + 1
	if o.failOn != "none" {
		var err error
		if failOn, err = lint.ParseSeverity(o.failOn); err != nil {
			return usageError{fmt.Errorf("--fail-on: %w, or none", err)}
		}
	}
	for _, code := range o.ignore {
		if !slices.ContainsFunc(lint.Rules(), func(r lint.Rule) bool { return r.Code == code }) {
			return usageError{fmt.Errorf("--ignore %q: no rule has this code; docs/lint lists them", code)}
		}
	}
	objects, err := o.objects(ctx)
	if err != nil {
		return err
	}
	o.tellLimits(objects)
	found := slices.DeleteFunc(lintObjects(objects), func(f placed) bool { return slices.Contains(o.ignore, f.Code) })
	w := bufio.NewWriter(o.env.stdout)
	write := map[string]func(io.Writer, []placed) error{"text": lintText, "json": lintJSON, "sarif": lintSARIF}[o.output]
	if err := write(w, found); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return severityExit(found, failOn)
}

func severityExit(found []placed, failOn lint.Severity) error {
	worst := lint.Severity(0)
	for _, f := range found {
		worst = max(worst, f.Severity)
	}
	switch {
	case worst < failOn:
		return nil
	case worst == lint.Error:
		return exitCode(exitFoundErr)
	}
	return exitCode(exitFound)
}

// lintObjects checks objects, and counts documents that cannot be read as
// findings. They come by file and line.
func lintObjects(o *kube.Snapshot) []placed {
	var out []placed
	for _, p := range o.Problems {
		kind, name, _ := strings.Cut(p.Object, " ")
		ns, short, ok := strings.Cut(name, "/")
		if !ok {
			ns, short = "", name
		}
		out = append(out, placed{
			Finding: lint.Finding{
				Code: lint.Unreadable, Severity: lint.Error, Kind: kind, Namespace: ns, Name: short, Field: p.Field,
				Message: p.Text, Fix: "correct the document: nothing else of it was checked",
			},
			File: p.File, Line: p.Line,
		})
	}
	for _, f := range lint.Check(&lint.Objects{
		Namespaces: o.Namespaces, Nodes: o.Nodes, Pods: o.Pods, Services: o.Services, DaemonSets: o.DaemonSets, Policies: o.Policies,
	}) {
		file, line := o.Position(f.Kind, f.Namespace, f.Name, f.Field)
		out = append(out, placed{f, file, line})
	}
	slices.SortStableFunc(out, func(a, b placed) int { return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line)) })
	return out
}

// object names what a finding is in.
func (f *placed) object() string {
	return strings.TrimSpace(f.Kind + " " + strings.TrimPrefix(f.Namespace+"/"+f.Name, "/"))
}

func lintText(w io.Writer, found []placed) error {
	count := make(map[lint.Severity]int)
	for _, f := range found {
		count[f.Severity]++
		at := ""
		if f.File != "" {
			at = fmt.Sprintf("%s:%d: ", f.File, f.Line)
		}
		what := f.object()
		if f.Field != "" {
			what = strings.TrimPrefix(what+" "+f.Field, " ")
		}
		if what != "" {
			what += ": "
		}
		fmt.Fprintf(w, "%s%s %s: %s%s\n    fix: %s\n", at, f.Severity, f.Code, what, f.Message, f.Fix)
	}
	if len(found) == 0 {
		_, err := fmt.Fprintln(w, "nothing found")
		return err
	}
	var counts []string
	for s := lint.Error; s >= lint.Info; s-- {
		if n := count[s]; n > 0 {
			counts = append(counts, fmt.Sprintf("%d %s", n, plural(uint64(n), s.String())))
		}
	}
	_, err := fmt.Fprintln(w, strings.Join(counts, ", "))
	return err
}

func lintJSON(w io.Writer, found []placed) error {
	e := json.NewEncoder(w)
	for _, f := range found {
		if err := e.Encode(f); err != nil {
			return err
		}
	}
	return nil
}
