package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// sqlQuery is the subcommand's options.
type sqlQuery struct {
	*client
	output string
	rows   int64
	stdin  io.Reader
}

func newSQL(c *client) *cobra.Command {
	o := &sqlQuery{client: c, stdin: os.Stdin}
	cmd := &cobra.Command{
		Use:   "sql SELECT",
		Short: "Ask in SQL, read-only",
		Long: `Asks one SELECT in the dialect of the collector's store, DuckDB or ClickHouse; "-" reads it
from standard input.

It reads the views flows, edges, gaps, coverage, changes, identities and rules. It cannot
change anything, nor read or write files, and is limited in time, rows and memory.
docs/sql.md lists the columns.`,
		Example: `  flowaudit sql "SELECT verdict, sum(connections) AS n FROM edges GROUP BY verdict"
  flowaudit sql "SELECT * FROM flows WHERE verdict = 'denied' ORDER BY start_ms DESC LIMIT 10" -o json
  flowaudit sql - < question.sql`,
		Args: func(_ *cobra.Command, args []string) error {
			switch len(args) {
			case 0:
				return usageError{errors.New(`which SELECT? such as flowaudit sql "SELECT count(*) FROM flows"`)}
			case 1:
				return nil
			}
			return usageError{fmt.Errorf("unexpected argument %q: put the whole SELECT into quotes", args[1])}
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), args[0]) },
	}
	outputFlag(cmd, &o.output)
	cmd.Flags().Int64Var(&o.rows, "max-rows", 10_000, "an answer of more `rows` is an error")
	return cmd
}

// maxSQL is more than anybody types.
const maxSQL = 1 << 20

func (o *sqlQuery) run(ctx context.Context, text string) error {
	if err := checkOutput(o.output); err != nil {
		return err
	}
	if o.rows < 1 {
		return usageError{fmt.Errorf("--max-rows %d: want a number from 1", o.rows)}
	}
	if text == "-" {
		read, err := io.ReadAll(io.LimitReader(o.stdin, maxSQL))
		if err != nil {
			return fmt.Errorf("read SQL from standard input: %w", err)
		}
		text = string(read)
	}
	return o.ask(ctx, false, func(ctx context.Context, q flowauditv1.QueryClient) error {
		stream, err := q.Select(ctx, &flowauditv1.SelectRequest{Query: strings.TrimSpace(text), MaxRows: uint64(o.rows)}, compressed())
		if err != nil {
			return err
		}
		return showAnswer(o.env, o.output, stream)
	})
}
