package main

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/structpb"

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
  flowaudit query flows-of-address --arg address=10.0.0.7 -o csv`,
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
	cmd.Flags().StringVarP(&o.output, "output", "o", "table", "`format`: table, json (one object a line) or csv")
	return cmd
}

func (o *questionQuery) run(ctx context.Context, names []string) error {
	if o.output != "table" && o.output != "json" && o.output != "csv" {
		return usageError{fmt.Errorf("--output %q: want table, json or csv", o.output)}
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
		return o.show(stream)
	})
}

func writeQuestions(w io.Writer, all []*flowauditv1.Question) {
	for _, q := range all {
		fmt.Fprintf(w, "%s\n    %s\n", q.GetName(), q.GetText())
		for _, a := range q.GetArguments() {
			text := "required"
			if !a.GetRequired() {
				text = "default " + a.GetDefault()
			}
			fmt.Fprintf(w, "    --arg %s=…  %s, %s\n", a.GetName(), a.GetType(), text)
		}
	}
}

func (o *questionQuery) show(stream flowauditv1.Query_RunClient) error {
	var columns []string
	var coverage *flowauditv1.Coverage
	var write func([]*structpb.Value) error
	finish := func() error { return nil }
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if c := part.GetCoverage(); c != nil {
			coverage = c
		}
		if write == nil {
			columns = part.GetColumns()
			write, finish = o.writer(columns)
		}
		for _, r := range part.GetRows() {
			if err := write(r.GetValues()); err != nil {
				return err
			}
		}
	}
	if err := finish(); err != nil {
		return err
	}
	if coverage != nil {
		writeCoverage(o.env.stderr, flowauditv1.ToCoverage(coverage), o.env.now().Location())
	}
	return nil
}

// writer returns what writes a row, and what ends the table.
func (o *questionQuery) writer(columns []string) (row func([]*structpb.Value) error, finish func() error) {
	nothing := func() error { return nil }
	switch o.output {
	case "json":
		e := json.NewEncoder(o.env.stdout)
		return func(values []*structpb.Value) error {
			object := make(map[string]any, len(columns))
			for i, name := range columns {
				if i < len(values) {
					object[name] = values[i].AsInterface()
				}
			}
			return e.Encode(object)
		}, nothing
	case "csv":
		w := csv.NewWriter(o.env.stdout)
		_ = w.Write(columns) // an error is told by Flush's Error
		return func(values []*structpb.Value) error { return w.Write(texts(values, "")) }, func() error { w.Flush(); return w.Error() }
	}
	t := tabwriter.NewWriter(o.env.stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, strings.ToUpper(strings.Join(columns, "\t")))
	return func(values []*structpb.Value) error {
		_, err := fmt.Fprintln(t, strings.Join(texts(values, "-"), "\t"))
		return err
	}, t.Flush
}

// texts shows values as people write them, whole numbers without a fraction;
// null stands for what is absent.
func texts(values []*structpb.Value, null string) []string {
	out := make([]string, len(values))
	for i, v := range values {
		switch x := v.AsInterface().(type) {
		case nil:
			out[i] = null
		case float64:
			out[i] = strconv.FormatFloat(x, 'f', -1, 64)
		default:
			out[i] = fmt.Sprint(x)
		}
	}
	return out
}
