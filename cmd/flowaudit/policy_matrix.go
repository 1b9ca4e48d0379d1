package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

// policyMatrix is the subcommand's options.
type policyMatrix struct {
	*source
	from, to []string
	all      bool
	output   string
}

func newPolicyMatrix(c *client) *cobra.Command {
	o := &policyMatrix{}
	cmd := &cobra.Command{
		Use:   "matrix",
		Short: "Show who may reach whom, by workload and port",
		Long: `Shows for every pair of workloads on which ports policies let one connect to the
other. "outside" stands for the addresses outside of the cluster. "some" are
ports that are open to some pods of the workload, or some addresses outside, and
closed to others. A workload's own line is about its pods among each other.`,
		Example: `  flowaudit policy matrix --context prod
  flowaudit policy matrix --manifests cluster/
  flowaudit policy matrix --manifests cluster/ --to shop/db --all
  flowaudit policy matrix --manifests cluster/ -o dot | dot -Tsvg > matrix.svg`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	o.source = newOnlineSource(cmd, c)
	fs := cmd.Flags()
	fs.StringSliceVar(&o.from, "from", nil, "only from these: `names` of namespaces, or namespace/workload, or outside")
	fs.StringSliceVar(&o.to, "to", nil, "only to these: `names` of namespaces, or namespace/workload, or outside")
	fs.BoolVar(&o.all, "all", false, "also pairs and ports that are denied")
	choices(cmd, &o.output, "output", "o", "text", "`format`: text, csv, json (one object a line) or dot", "text", "csv", "json", "dot")
	return cmd
}

// pair is what a workload may reach of another.
type pair struct {
	from, to *workload
	ports    []ports
}

// of lists the ports of one outcome.
func (p *pair) of(o outcome) []ports {
	var out []ports
	for _, r := range p.ports {
		if r.outcome == o {
			out = append(out, r)
		}
	}
	return out
}

func (o *policyMatrix) run(ctx context.Context) error {
	if err := oneOf("output", o.output, "text", "csv", "json", "dot"); err != nil {
		return err
	}
	j, err := o.load(ctx)
	if err != nil {
		return err
	}
	all := j.workloads()
	for flag, names := range map[string][]string{"from": o.from, "to": o.to} {
		if err := checkNames(flag, names, all); err != nil {
			return err
		}
	}
	w := bufio.NewWriterSize(o.env.stdout, 1<<16)
	write, finish := o.writer(w, all)
	progress := newProgress(o.env, "pairs")
	defer progress.clear()
	err = eachPair(ctx, all, all, func(from, to *workload, done int64) error {
		progress.show(done, int64(len(all))*int64(len(all)))
		if !among(from, o.from) || !among(to, o.to) {
			return nil
		}
		return write(&pair{from, to, j.reach(from, to)})
	})
	if err != nil {
		return err
	}
	if err := finish(); err != nil {
		return err
	}
	return w.Flush()
}

// eachPair calls f for each workload with each other, and with itself where it
// has pods that could meet.
func eachPair(ctx context.Context, from, to []workload, f func(from, to *workload, done int64) error) error {
	done := int64(0)
	for i := range from {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		for k := range to {
			done++
			if a, b := &from[i], &to[k]; a.name == b.name && (a.bare || a.name == outsideName) {
				continue
			}
			if err := f(&from[i], &to[k], done); err != nil {
				return err
			}
		}
	}
	return nil
}

// writer returns what writes a pair, and what ends the output.
func (o *policyMatrix) writer(w io.Writer, all []workload) (write func(*pair) error, finish func() error) {
	switch o.output {
	case "csv":
		_, err := fmt.Fprintln(w, "from,to,protocol,first_port,last_port,verdict")
		return func(p *pair) error {
			for _, r := range o.shown(p) {
				if err == nil {
					_, err = fmt.Fprintf(w, "%s,%s,%s,%d,%d,%s\n", p.from.name, p.to.name, r.protocol, r.first, r.last, r.outcome)
				}
			}
			return err
		}, func() error { return err }
	case "json":
		e := json.NewEncoder(w)
		return func(p *pair) error {
			for _, r := range o.shown(p) {
				if err := e.Encode(matrixRow{p.from.name, p.to.name, r.protocol.String(), r.first, r.last, r.outcome.String()}); err != nil {
					return err
				}
			}
			return nil
		}, func() error { return nil }
	case "dot":
		return dotWriter(w, all)
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	_, err := fmt.Fprintln(t, "FROM\tTO\tPORTS")
	return func(p *pair) error {
		if text := o.pairText(p); text != "" && err == nil {
			_, err = fmt.Fprintf(t, "%s\t%s\t%s\n", p.from.name, p.to.name, text)
		}
		return err
	}, t.Flush
}

// matrixRow is a row of -o json.
type matrixRow struct {
	From      string `json:"from"`
	To        string `json:"to"`
	Protocol  string `json:"protocol"`
	FirstPort uint16 `json:"first_port"`
	LastPort  uint16 `json:"last_port"`
	Verdict   string `json:"verdict"`
}

// shown are the ranges that are wanted.
func (o *policyMatrix) shown(p *pair) []ports {
	if o.all {
		return p.ports
	}
	var out []ports
	for _, r := range p.ports {
		if r.outcome != outcomeDeny {
			out = append(out, r)
		}
	}
	return out
}

func (o *policyMatrix) pairText(p *pair) string {
	var texts []string
	if open := p.of(outcomeAllow); len(open) > 0 {
		texts = append(texts, portsText(open))
	}
	for _, other := range []outcome{outcomeSome, outcomeUnknown} {
		if list := p.of(other); len(list) > 0 {
			texts = append(texts, other.String()+": "+portsText(list))
		}
	}
	if len(texts) == 0 && o.all {
		return "none"
	}
	return strings.Join(texts, "; ")
}

// dotWriter draws the pairs for Graphviz, namespaces as boxes.
func dotWriter(w io.Writer, all []workload) (write func(*pair) error, finish func() error) {
	fmt.Fprint(w, "digraph policies {\n  rankdir=LR;\n  node [shape=box];\n")
	namespace := ""
	for i, l := range all {
		indent := "  "
		if l.namespace != "" {
			indent = "    "
			if l.namespace != namespace {
				fmt.Fprintf(w, "  subgraph %q {\n    label=%q;\n", "cluster_"+l.namespace, l.namespace)
			}
			namespace = l.namespace
		}
		fmt.Fprintf(w, "%s%q [label=%q];\n", indent, l.name, strings.TrimPrefix(l.name, l.namespace+"/"))
		if l.namespace != "" && (i+1 == len(all) || all[i+1].namespace != l.namespace) {
			fmt.Fprintln(w, "  }")
		}
	}
	return func(p *pair) error {
			for _, o := range []outcome{outcomeAllow, outcomeSome, outcomeUnknown} {
				list := p.of(o)
				if len(list) == 0 {
					continue
				}
				style := ""
				if o != outcomeAllow {
					style = ", style=dashed"
				}
				if _, err := fmt.Fprintf(w, "  %q -> %q [label=%q%s];\n", p.from.name, p.to.name, portsText(list), style); err != nil {
					return err
				}
			}
			return nil
		}, func() error {
			_, err := fmt.Fprintln(w, "}")
			return err
		}
}
