package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// questionQuery is the subcommand's options.
type questionQuery struct {
	*client
	list   bool
	args   []string
	output string
}

func newQuery(c *client) *cobra.Command {
	o := &questionQuery{client: c}
	cmd := &cobra.Command{
		Use:   "query NAME",
		Short: "Ask a named question over all stored flows",
		Long: `Asks a named question over all stored flows; --list names the questions.

The answer ends, on standard error, with the coverage it stands on.`,
		Example: `  flowaudit query --list
  flowaudit query denied-by-source --arg since=7d --arg limit=5
  flowaudit query flows-of-address --arg address=10.0.0.7 -o csv
  flowaudit query bytes-by-edge --arg since=7d -o parquet > edges.parquet`,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case o.list && len(args) == 0 || !o.list && len(args) == 1:
				return nil
			case len(args) == 0:
				return usageError{errors.New("which question? flowaudit query --list names them")}
			}
			return usageError{fmt.Errorf("unexpected argument %q: arguments of a question are --arg NAME=VALUE", args[len(args)-1])}
		},
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), args) },
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			var names []string
			if len(args) == 0 {
				_ = o.ask(cmd.Context(), false, func(ctx context.Context, q flowauditv1.QueryClient) error {
					all, err := q.List(ctx, &flowauditv1.ListRequest{})
					for _, n := range all.GetQuestions() {
						names = append(names, n.GetName()+"\t"+n.GetText())
					}
					return err
				})
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
	}
	cmd.Flags().BoolVar(&o.list, "list", false, "list the questions and their arguments")
	cmd.Flags().StringArrayVar(&o.args, "arg", nil, "an argument of the question, `NAME=VALUE`; may be repeated")
	outputFlag(cmd, &o.output)
	return cmd
}

func (o *questionQuery) run(ctx context.Context, names []string) error {
	if err := checkOutput(o.output); err != nil {
		return err
	}
	given := make(map[string]string)
	for _, a := range o.args {
		name, value, ok := strings.Cut(a, "=")
		if !ok {
			return usageError{fmt.Errorf("--arg %q: want NAME=VALUE", a)}
		}
		given[name] = value
	}
	return o.ask(ctx, false, func(ctx context.Context, q flowauditv1.QueryClient) error {
		if o.list {
			all, err := q.List(ctx, &flowauditv1.ListRequest{})
			if err == nil {
				writeQuestions(o.env.stdout, all.GetQuestions())
			}
			return err
		}
		stream, err := q.Run(ctx, &flowauditv1.RunRequest{Name: names[0], Arguments: given}, compressed())
		if err != nil {
			return err
		}
		return showAnswer(o.env, o.output, stream)
	})
}

func writeQuestions(w io.Writer, all []*flowauditv1.Question) {
	for _, q := range all {
		fmt.Fprintf(w, "%s\n    %s\n", q.GetName(), strings.TrimSpace(q.GetText()+" "+q.GetNote()))
		for _, a := range q.GetArguments() {
			text := "required"
			if !a.GetRequired() {
				text = "default " + a.GetDefault()
			}
			if a.GetMax() > 0 {
				text += fmt.Sprintf(", %d at most", a.GetMax())
			}
			if a.GetText() != "" {
				text += ": " + a.GetText()
			}
			fmt.Fprintf(w, "    --arg %s=…  %s, %s\n", a.GetName(), a.GetType(), text)
		}
	}
}
