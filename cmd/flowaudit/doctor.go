package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/flowaudit/flowaudit/agent"
	"github.com/flowaudit/flowaudit/flow"
)

// doctor is the subcommand's options.
type doctor struct {
	*client
	since, only, output string
	probe               probing
}

// check is one thing that was looked at.
type check struct {
	State string `json:"state"` // ok, note or problem
	About string `json:"about"`
	Text  string `json:"text"`
	Fix   string `json:"fix,omitempty"` // a command
}

// States of a check.
const (
	stateOK      = "ok"
	stateNote    = "note"
	stateProblem = "problem"
)

// diagnosis is what doctor says.
type diagnosis struct {
	Node     []check     `json:"node,omitempty"`
	Cluster  []check     `json:"cluster,omitempty"`
	Policies []*evidence `json:"policies,omitempty"`
	Probe    *probed     `json:"probe,omitempty"`
	Problems int         `json:"problems"`

	coverage *flow.Coverage
}

func newDoctor(c *client) *cobra.Command {
	o := &doctor{client: c}
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find what keeps flowaudit from seeing, and policies that are not enforced",
		Long: `Looks at the node it runs on, as root: which network plugin is there and how it
enforces, which sources can be read and who holds a taken NFLOG group, which
settings of the kernel lose data, and what the kernel lacks.

Asks the collector about the cluster: agents that are silent or lose something,
and of each NetworkPolicy and node what traffic showed. enforced: what the policy
denies was refused. unenforced: it passed. unexplained: what policies allow was
refused. inferred: what it denies got no answer, and nobody saw why. nothing seen:
no traffic tried it, so that it is not known.

It sends nothing and changes nothing: a fix is a command for you to run. Only
--probe sends traffic. On a cluster, by your kubeconfig, it makes a namespace with
a server on each node and two clients, one of the same node and one of the next;
when they talk, it denies that by a NetworkPolicy on the server's side, and then on
the client's, and waits for the refusal. It removes everything, also on Ctrl-C.
With --from and --to it dials from one pod of this node to another, as root: that
takes no image and no API server, and makes nothing.

Exits with 0 if there is no problem, and with 1 if there is one.`,
		Example: `  sudo flowaudit doctor
  flowaudit doctor --only cluster --since 7d
  flowaudit doctor --only probe --probe
  sudo flowaudit doctor --only probe --probe --from 10.1.0.7 --to 10.1.0.9 --port 3306 --expect denied
  flowaudit doctor --only cluster -o json | jq '.policies[] | select(.state == "unenforced")'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.probe.validate(cmd.Flags()); err != nil {
				return usageError{err}
			}
			return o.run(cmd.Context(), cmd.Flags().Changed("server") || c.env.getenv("FLOWAUDIT_SERVER") != "")
		},
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVar(&o.since, "since", "24h", "traffic since a `time`: back from now (30d, 12h), RFC 3339, or a local date")
	choices(cmd, &o.only, "only", "", "", "one `part` only: node, cluster or probe", "node", "cluster", "probe")
	choices(cmd, &o.output, "output", "o", "text", "`format`: text or json", "text", "json")
	o.probe.register(fs)
	return cmd
}

// inspectNode looks at this node.
func inspectNode() (agent.Node, error) {
	if os.Geteuid() != 0 {
		return agent.Node{}, errors.New("a node is looked at by root: sudo flowaudit doctor, or --only cluster")
	}
	return agent.Inspect(), nil
}

// run makes the diagnosis. A collector that somebody named must answer.
func (o *doctor) run(ctx context.Context, named bool) error {
	if o.only != "" {
		if err := oneOf("only", o.only, "node", "cluster", "probe"); err != nil {
			return err
		}
	}
	if err := oneOf("output", o.output, "text", "json"); err != nil {
		return err
	}
	if o.only == "probe" && !o.probe.on {
		return usageError{errors.New("--only probe sends traffic: say --probe as well")}
	}
	var d diagnosis
	looked := o.probe.on
	if o.only == "" || o.only == "node" {
		node, err := o.env.inspect()
		switch {
		case err == nil:
			d.Node, looked = checkNode(&node), true
		case o.only == "node":
			return err
		default:
			d.Node = []check{{State: stateNote, About: "node", Text: "not looked at: " + err.Error()}}
		}
	}
	if o.only == "" || o.only == "cluster" {
		if err := o.askCluster(ctx, &d, named || !looked || o.only == "cluster"); err != nil {
			return err
		}
	}
	if o.probe.on && (o.only == "" || o.only == "probe") {
		var err error
		if d.Probe, err = o.probe.run(ctx, &o.env); err != nil {
			return err
		}
	}
	return o.show(&d)
}

func (o *doctor) show(d *diagnosis) error {
	for _, c := range append(d.Node[:len(d.Node):len(d.Node)], d.Cluster...) {
		if c.State == stateProblem {
			d.Problems++
		}
	}
	for _, e := range d.Policies {
		if e.problem() {
			d.Problems++
		}
	}
	d.Problems += d.Probe.problems()
	location := o.env.now().Location()
	if o.output == "json" {
		e := json.NewEncoder(o.env.stdout)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		if err := e.Encode(d); err != nil {
			return err
		}
	} else if err := d.write(o.env.stdout, location); err != nil {
		return err
	}
	if d.coverage != nil {
		writeCoverage(o.env.stderr, *d.coverage, location)
	}
	if d.Problems > 0 {
		return exitCode(exitError)
	}
	return nil
}

func (d *diagnosis) write(w io.Writer, location *time.Location) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, part := range []struct {
		title  string
		checks []check
	}{{"NODE", d.Node}, {"CLUSTER", d.Cluster}} {
		if len(part.checks) == 0 {
			continue
		}
		fmt.Fprintln(t, part.title)
		for _, c := range part.checks {
			fmt.Fprintf(t, "  %s\t%s\t%s\n", c.State, c.About, c.Text)
			if c.Fix != "" {
				fmt.Fprintf(t, "\t\tfix: %s\n", c.Fix)
			}
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if err := errors.Join(writeEvidence(w, d.Policies, location), d.Probe.write(w)); err != nil {
		return err
	}
	if d.Problems == 0 {
		_, err := fmt.Fprintln(w, "no problem found")
		return err
	}
	_, err := fmt.Fprintf(w, "%d %s\n", d.Problems, plural(uint64(d.Problems), "problem"))
	return err
}
