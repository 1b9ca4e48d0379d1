package main

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"

	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// answerWriter writes the rows of an answer, and then its end.
type answerWriter struct {
	row    func([]*structpb.Value) error
	finish func() error
}

func outputFlag(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", "table", "`format`: table, json (one object a line), csv or parquet")
}

func checkOutput(output string) error {
	if !slices.Contains([]string{"table", "json", "csv", "parquet"}, output) {
		return usageError{fmt.Errorf("--output %q: want table, json, csv or parquet", output)}
	}
	return nil
}

// showAnswer writes an answer as it comes, and what it stands on to standard error.
func showAnswer(env environment, output string, stream grpc.ServerStreamingClient[flowauditv1.RunResponse]) error {
	if output == "parquet" && env.terminal {
		return usageError{errors.New("parquet is not for a terminal: send it to a file, as in > answer.parquet")}
	}
	var write *answerWriter
	var coverage *flowauditv1.Coverage
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
			if write, err = newAnswerWriter(env.stdout, output, part.GetColumns(), part.GetTypes()); err != nil {
				return err
			}
		}
		for _, r := range part.GetRows() {
			if err := write.row(r.GetValues()); err != nil {
				return err
			}
		}
	}
	if write != nil {
		if err := write.finish(); err != nil {
			return err
		}
	}
	if coverage != nil {
		writeCoverage(env.stderr, flowauditv1.ToCoverage(coverage), env.now().Location())
	}
	return nil
}

func newAnswerWriter(out io.Writer, output string, columns, types []string) (*answerWriter, error) {
	switch output {
	case "json":
		e := json.NewEncoder(out)
		return &answerWriter{func(values []*structpb.Value) error {
			object := make(map[string]any, len(columns))
			for i, name := range columns {
				if i < len(values) {
					object[name] = values[i].AsInterface()
				}
			}
			return e.Encode(object)
		}, func() error { return nil }}, nil
	case "csv":
		w := csv.NewWriter(out)
		_ = w.Write(columns) // an error is told by Flush's Error
		return &answerWriter{
			func(values []*structpb.Value) error { return w.Write(texts(values, "")) },
			func() error { w.Flush(); return w.Error() },
		}, nil
	case "parquet":
		return newParquetWriter(out, columns, types)
	}
	t := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, strings.ToUpper(strings.Join(columns, "\t")))
	return &answerWriter{func(values []*structpb.Value) error {
		_, err := fmt.Fprintln(t, strings.Join(texts(values, "-"), "\t"))
		return err
	}, t.Flush}, nil
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
