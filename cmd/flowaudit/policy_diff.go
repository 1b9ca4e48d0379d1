package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/kube"
)

// policyDiff is the subcommand's options.
type policyDiff struct {
	*source
	before, after []string
	whole         bool
	exitCode      bool
	output        string
}

func newPolicyDiff(c *client) *cobra.Command {
	o := &policyDiff{}
	cmd := &cobra.Command{
		Use:   "diff",
		Short: "Show which connections a change allows or denies",
		Long: `Compares two states of a cluster: which ports between workloads become allowed,
and which become denied, with the policies that decide.

Without --before, or without --after, that state is the cluster as it is, and the
files of the other one are applied to it: they add objects, and replace those of
the same name. With --whole they are all policies there are. With --at the state
before is that of an earlier time.

With both, the files are all there is; what both have in common, such as pods and
namespaces, can be given by --manifests.

Exit codes: 0; with --exit-code 5 if anything changes; 1 the objects cannot be
read.`,
		Example: `  # what a change of policies would do to the cluster
  flowaudit policy diff --after policies-new/

  # what has changed since yesterday
  flowaudit policy diff --at 24h

  # the same of files
  flowaudit policy diff --manifests objects/ --before policies/ --after policies-new/

  flowaudit policy diff --before yesterday.yaml --after today.yaml -o json`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	o.source = newOnlineSource(cmd, c)
	fs := cmd.Flags()
	fs.StringArrayVar(&o.before, "before", nil, "`files` or directories with the objects before; may be repeated")
	fs.StringArrayVar(&o.after, "after", nil, "`files` or directories with the objects after; may be repeated")
	fs.BoolVar(&o.whole, "whole", false, "the files are all policies there are, where they are applied to the cluster")
	fs.BoolVar(&o.exitCode, "exit-code", false, "exit with 5 if anything changes")
	choices(cmd, &o.output, "output", "o", "text", "`format`: text, csv or json (one object a line)", "text", "csv", "json")
	return cmd
}

// change is a range of ports of a pair whose outcome is another than before.
type change struct {
	From      string           `json:"from"`
	To        string           `json:"to"`
	Protocol  string           `json:"protocol"`
	FirstPort uint16           `json:"first_port"`
	LastPort  uint16           `json:"last_port"`
	Before    string           `json:"before"`
	After     string           `json:"after"`
	Because   []flow.PolicyRef `json:"because,omitempty"`
	// Gone says that it is the state before whose policies decided.
	Gone bool `json:"gone,omitempty"`

	ports
	files []string
}

func (o *policyDiff) run(ctx context.Context) error {
	if err := oneOf("output", o.output, "text", "csv", "json"); err != nil {
		return err
	}
	before, after, err := o.states(ctx)
	if err != nil {
		return err
	}
	d := differ{before: before, after: after}
	d.match()
	w := bufio.NewWriterSize(o.env.stdout, 1<<16)
	write, finish := o.writer(w)
	progress := newProgress(o.env, "pairs")
	defer progress.clear()
	changed := len(d.removed)+len(d.added) > 0
	err = eachPair(ctx, d.old, d.old, func(from, to *workload, done int64) error {
		progress.show(done, int64(len(d.old))*int64(len(d.old)))
		for _, c := range d.changes(from, to) {
			changed = true
			if err := write(&c); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := errors.Join(finish(&d), w.Flush()); err != nil {
		return err
	}
	if changed && o.exitCode {
		return exitCode(exitChanged)
	}
	return nil
}

// states reads the two states.
func (o *policyDiff) states(ctx context.Context) (before, after *judged, err error) {
	one, other := func() (*kube.Snapshot, error) { return o.files(nil, append(o.manifests, o.before...)...) },
		func() (*kube.Snapshot, error) { return o.files(nil, append(o.manifests, o.after...)...) }
	both := len(o.before) > 0 && len(o.after) > 0
	switch {
	case !both && len(o.manifests) > 0, len(o.before)+len(o.after) == 0 && o.at == "":
		return nil, nil, usageError{errors.New("what changes? --before and --after name files and directories; without --manifests, one of them suffices: the other is the cluster")}
	case !both || o.named():
		then, now, err := o.cluster(ctx)
		if err != nil {
			return nil, nil, err
		}
		one, other = func() (*kube.Snapshot, error) { return o.apply(then, o.before) }, func() (*kube.Snapshot, error) { return o.apply(now, o.after) }
	case o.whole:
		return nil, nil, usageError{errors.New("--whole is about files that are applied to the cluster: without one, files are all there is")}
	}
	if before, err = o.state(one); err != nil {
		return nil, nil, fmt.Errorf("before: %w", err)
	}
	if after, err = o.state(other); err != nil {
		return nil, nil, fmt.Errorf("after: %w", err)
	}
	return before, after, nil
}

func (o *policyDiff) state(read func() (*kube.Snapshot, error)) (*judged, error) {
	objects, err := read()
	if err != nil {
		return nil, err
	}
	return o.compile(objects)
}

// cluster reads the cluster as it is, and as it was if that is asked for.
func (o *policyDiff) cluster(ctx context.Context) (then, now *kube.Snapshot, err error) {
	from, err := o.origin()
	switch {
	case err != nil:
		return nil, nil, err
	case from == fromServer:
		now, err = o.apiServer(ctx)
		return now, now, err
	}
	if now, err = o.collector(ctx, ""); err != nil || o.at == "" {
		return now, now, err
	}
	then, err = o.collector(ctx, o.at)
	return then, now, err
}

// apply gives the cluster with files applied to it.
func (o *policyDiff) apply(cluster *kube.Snapshot, files []string) (*kube.Snapshot, error) {
	if len(files) == 0 {
		return cluster, nil
	}
	if o.whole {
		cluster = cluster.WithoutPolicies()
	}
	return o.files(cluster, files...)
}

// differ compares two states.
type differ struct {
	before, after  *judged
	old            []workload // of before, that both have
	now            map[string]*workload
	removed, added []string
}

// match finds the workloads that both states have.
func (d *differ) match() {
	d.now = make(map[string]*workload)
	after := d.after.workloads()
	for i := range after {
		d.now[after[i].name] = &after[i]
	}
	had := make(map[string]bool)
	for _, w := range d.before.workloads() {
		had[w.name] = true
		if d.now[w.name] == nil {
			d.removed = append(d.removed, w.name)
			continue
		}
		d.old = append(d.old, w)
	}
	for _, w := range after {
		if !had[w.name] {
			d.added = append(d.added, w.name)
		}
	}
}

// changes lists what changes between two workloads.
func (d *differ) changes(from, to *workload) []change {
	newFrom, newTo := d.now[from.name], d.now[to.name]
	type both struct {
		ports
		before outcome
	}
	parts := sweep(d.before.reach(from, to), d.after.reach(newFrom, newTo), func(p ports, a, b outcome) both {
		p.outcome = b
		return both{p, a}
	})
	var out []change
	for _, p := range parts {
		if p.before == p.outcome {
			continue
		}
		if n := len(out); n > 0 && out[n-1].protocol == p.protocol && out[n-1].last+1 == p.first && out[n-1].outcome == p.outcome && out[n-1].Before == p.before.String() {
			out[n-1].last, out[n-1].LastPort = p.last, p.last
			continue
		}
		c := change{
			From: from.name, To: to.name, Protocol: p.protocol.String(), FirstPort: p.first, LastPort: p.last,
			Before: p.before.String(), After: p.outcome.String(), ports: p.ports,
		}
		d.explain(&c, from, to, newFrom, newTo)
		out = append(out, c)
	}
	return out
}

// explain finds the policies behind a change: those that decide so now, or
// those that stood against it before.
func (d *differ) explain(c *change, from, to, newFrom, newTo *workload) {
	var want flow.Verdict
	switch {
	case c.After == "allow" || c.After == "some" && c.Before == "deny":
		want = flow.VerdictAllowed
	case c.After == "deny" || c.After == "some" && c.Before == "allow":
		want = flow.VerdictDenied
	default:
		return
	}
	j := d.after
	c.Because = j.deciding(newFrom, newTo, &c.ports, want)
	if len(c.Because) == 0 && want == flow.VerdictAllowed {
		j = d.before
		c.Because = j.deciding(from, to, &c.ports, flow.VerdictDenied)
		c.Gone = len(c.Because) > 0
	}
	for _, r := range c.Because {
		if at := j.where(r); at != "" {
			c.files = append(c.files, at)
		}
	}
}

// deciding names the policies by which pods of two workloads have a verdict:
// of the first two of which that holds.
func (j *judged) deciding(from, to *workload, p *ports, want flow.Verdict) []flow.PolicyRef {
	for i := range from.ends {
		for k := range to.ends {
			c := meeting(from, to, i, k)
			c.Protocol, c.Port = p.protocol, p.first
			if d := j.policies.Decide(&c); d.Verdict == want {
				return d.Policies()
			}
		}
	}
	return nil
}

// writer returns what writes a change, and what ends the output.
func (o *policyDiff) writer(w io.Writer) (write func(*change) error, finish func(*differ) error) {
	switch o.output {
	case "csv":
		_, err := fmt.Fprintln(w, "from,to,protocol,first_port,last_port,before,after")
		return func(c *change) error {
			if err == nil {
				_, err = fmt.Fprintf(w, "%s,%s,%s,%d,%d,%s,%s\n", c.From, c.To, c.Protocol, c.FirstPort, c.LastPort, c.Before, c.After)
			}
			return err
		}, func(d *differ) error { o.tellWorkloads(o.env.stderr, d); return err }
	case "json":
		e := json.NewEncoder(w)
		return func(c *change) error { return e.Encode(c) }, func(d *differ) error { o.tellWorkloads(o.env.stderr, d); return nil }
	}
	groups := []string{"becomes allowed", "becomes denied", "becomes partly allowed, or unknown"}
	lines := make(map[string][]*changeLine)
	return func(c *change) error {
			group := groups[2]
			switch c.After {
			case "allow":
				group = groups[0]
			case "deny":
				group = groups[1]
			}
			if n := len(lines[group]); n > 0 && lines[group][n-1].takes(c) {
				return nil
			}
			lines[group] = append(lines[group], &changeLine{*c, []ports{c.ports}})
			return nil
		}, func(d *differ) error {
			for _, g := range groups {
				if len(lines[g]) == 0 {
					continue
				}
				fmt.Fprintln(w, g)
				t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
				for _, l := range lines[g] {
					fmt.Fprintln(t, "  "+l.text())
				}
				if err := t.Flush(); err != nil {
					return err
				}
			}
			if len(lines) == 0 {
				fmt.Fprintln(w, "nothing becomes allowed or denied")
			}
			o.tellWorkloads(w, d)
			return nil
		}
}

// changeLine is a line for people: changes that differ in their ports only.
type changeLine struct {
	change
	all []ports
}

// takes adds a change to the line, if it is like the others.
func (l *changeLine) takes(c *change) bool {
	if c.From != l.From || c.To != l.To || c.Before != l.Before || c.After != l.After || c.Gone != l.Gone || !slices.Equal(c.Because, l.Because) {
		return false
	}
	l.all = append(l.all, c.ports)
	return true
}

func (l *changeLine) text() string {
	text := fmt.Sprintf("%s -> %s\t%s", l.From, l.To, portsText(l.all))
	if l.After != "allow" && l.After != "deny" || l.Before != "allow" && l.Before != "deny" {
		text += fmt.Sprintf(" (%s, was %s)", l.After, l.Before)
	}
	var names []string
	for _, r := range l.Because {
		name := r.Namespace + "/" + r.Name
		if r.Rule != "" {
			name += " " + r.Rule
		}
		names = append(names, name)
	}
	switch {
	case len(names) == 0:
		text += "\t-"
	case l.Gone:
		text += "\tno more denied by " + some(names)
	default:
		text += "\tby " + some(names)
	}
	if len(l.files) > 0 {
		text += " (" + some(l.files) + ")"
	}
	return text
}

func (o *policyDiff) tellWorkloads(w io.Writer, d *differ) {
	for _, l := range []struct {
		what  string
		names []string
	}{{"only before", d.removed}, {"only after", d.added}} {
		if len(l.names) > 0 {
			fmt.Fprintf(w, "%s: %s\n", l.what, strings.Join(l.names, ", "))
		}
	}
}
