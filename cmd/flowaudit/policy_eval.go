package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy"
)

// policyEval is the subcommand's options.
type policyEval struct {
	*source
	connections string
	output      string
}

func newPolicyEval(c *client) *cobra.Command {
	o := &policyEval{}
	cmd := &cobra.Command{
		Use:   "eval",
		Short: "Say for each connection of a table whether policies allow it",
		Long: `Reads connections as CSV and writes them with a verdict, in the same order.

The header names the columns src, dst, protocol and port; others are ignored.
src and dst are namespace/pod, or an address. The answer has the columns src,
dst, protocol, port and verdict: allow, deny or unknown.

Exit codes: 0 all are decided; 2 some are unknown, each with a line on standard
error; 1 the objects or the connections cannot be read.`,
		Example: `  flowaudit policy eval --manifests cluster/ --connections connections.csv

  # by the cluster as it is now, with the rules that decide
  flowaudit policy eval --connections connections.csv -o json

  # the same, of what kubectl may read
  kubectl get ns,nodes,pods,svc,netpol -A -o yaml |
    flowaudit policy eval --manifests - --connections connections.csv`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	o.source = newOnlineSource(cmd, c)
	cmd.Flags().StringVarP(&o.connections, "connections", "c", "", "CSV `file` with the connections; - is standard input")
	choices(cmd, &o.output, "output", "o", "csv", "`format`: csv, or json (one object a line, with the rules)", "csv", "json")
	return cmd
}

func (o *policyEval) run(ctx context.Context) error {
	if err := oneOf("output", o.output, "csv", "json"); err != nil {
		return err
	}
	if o.connections == "" {
		return usageError{errors.New("which connections? --connections names a CSV file")}
	}
	if o.connections == "-" && len(o.manifests) == 1 && o.manifests[0] == "-" {
		return usageError{errors.New("--manifests and --connections cannot both be standard input")}
	}
	// A short run with memory to spare: collecting it seldom is a fifth faster.
	defer debug.SetGCPercent(debug.SetGCPercent(300))
	j, err := o.load(ctx)
	if err != nil {
		return err
	}
	in, size, err := openInput(o.env, o.connections)
	if err != nil {
		return fmt.Errorf("read connections: %w", err)
	}
	defer in.Close()
	rows, err := readConnections(in, o.connections)
	if err != nil {
		return fmt.Errorf("read connections: %w", err)
	}
	progress := newProgress(o.env, "deciding")
	defer progress.clear()
	undecided, err := o.decideAll(ctx, j, rows, func(done int64) { progress.show(done, size) }, progress.clear)
	if err != nil {
		return err
	}
	if undecided {
		return exitCode(exitUndecided)
	}
	return nil
}

// batchRows is how many rows go to a processor together.
const batchRows = 4096

// batch is rows on their way from the file to the answer.
type batch struct {
	rows   []connectionRow
	offset int64 // of the file, after them
	out    []byte
	doubts []byte // lines for standard error
	err    error
	done   chan struct{}
}

// decideAll reads rows, decides them on all processors, and writes the answers
// in the rows' order.
func (o *policyEval) decideAll(ctx context.Context, j *judged, rows *connectionRows, progress func(int64), clear func()) (undecided bool, err error) {
	workers := runtime.GOMAXPROCS(0)
	work, order := make(chan *batch), make(chan *batch, 2*workers)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(work)
		defer close(order)
		return rows.batches(ctx, work, order)
	})
	for range workers {
		e := &evaluation{judged: j, name: o.connections, ends: make(map[string]*namedEnd), protocols: make(map[string]flow.Protocol)}
		appendRow := e.appendCSV
		if o.output == "json" {
			appendRow = e.appendJSON
		}
		g.Go(func() error {
			for b := range work {
				e.batch(b, appendRow)
				close(b.done)
			}
			return nil
		})
	}
	g.Go(func() error {
		if o.output == "csv" {
			if _, err := io.WriteString(o.env.stdout, "src,dst,protocol,port,verdict\n"); err != nil {
				return err
			}
		}
		for b := range order {
			select {
			case <-b.done:
			case <-ctx.Done():
				return ctx.Err()
			}
			if b.err != nil {
				return b.err
			}
			if _, err := o.env.stdout.Write(b.out); err != nil {
				return err
			}
			if len(b.doubts) > 0 {
				undecided = true
				clear()
				_, _ = o.env.stderr.Write(b.doubts) // who does not look is told by the exit code
			}
			progress(b.offset)
		}
		return nil
	})
	return undecided, g.Wait()
}

// namedEnd is what a text of src or dst means, looked up once.
type namedEnd struct {
	end
	err error
}

// evaluation decides one row after the other.
type evaluation struct {
	*judged
	name      string // of the table
	ends      map[string]*namedEnd
	protocols map[string]flow.Protocol

	row      *connectionRow
	verdict  flow.Verdict
	decision policy.Decision // of the row, if it could be asked about
}

// batch decides rows, and writes the answers into the batch.
func (e *evaluation) batch(b *batch, appendRow func([]byte, string) ([]byte, error)) {
	b.out = make([]byte, 0, 64*len(b.rows)) // as long as rows mostly are
	for i := range b.rows {
		e.row = &b.rows[i]
		why := e.decide()
		if b.out, b.err = appendRow(b.out, why); b.err != nil {
			return
		}
		if e.verdict == flow.VerdictUnknown {
			b.doubts = fmt.Appendf(b.doubts, "%s:%d: %s\n", e.name, e.row.line, why)
		}
	}
}

// decide judges the row at hand. It says why, if the verdict is unknown.
func (e *evaluation) decide() (why string) {
	e.verdict, e.decision = flow.VerdictUnknown, policy.Decision{}
	if e.row.short != "" {
		return "the row has no " + e.row.short
	}
	src, dst := e.end(e.row.fields[0]), e.end(e.row.fields[1])
	protocol, err := e.protocol(e.row.fields[2])
	port, portErr := parsePort(strings.TrimSpace(e.row.fields[3]))
	if src.err != nil || dst.err != nil || err != nil || portErr != nil {
		return cmp.Or(src.err, dst.err, err, portErr).Error()
	}
	c := connection(src.end, dst.end, protocol, port)
	e.decision = e.policies.Decide(&c)
	if e.verdict = e.decision.Verdict; e.verdict == flow.VerdictUnknown {
		return e.doubt(&c)
	}
	return ""
}

// doubt says why a connection cannot be decided.
func (e *evaluation) doubt(c *policy.Connection) string {
	x := e.policies.Explain(c)
	var texts []string
	for _, s := range []struct {
		name string
		*policy.SideExplanation
	}{{"egress", &x.Egress}, {"ingress", &x.Ingress}} {
		if s.Verdict == flow.VerdictUnknown.String() {
			texts = append(texts, s.name+": "+s.Text)
		}
	}
	return "cannot be decided: " + strings.Join(texts, "; ")
}

func (e *evaluation) end(text string) *namedEnd {
	if known := e.ends[text]; known != nil {
		return known
	}
	text = strings.Clone(text)
	n := &namedEnd{}
	n.end, n.err = e.find(strings.TrimSpace(text))
	e.ends[text] = n
	return n
}

func (e *evaluation) protocol(text string) (flow.Protocol, error) {
	if p, known := e.protocols[text]; known {
		return p, nil
	}
	p, err := flow.ParseProtocol(strings.TrimSpace(text))
	if err == nil {
		e.protocols[strings.Clone(text)] = p
	}
	return p, err
}

func (e *evaluation) appendCSV(b []byte, _ string) ([]byte, error) {
	for _, f := range e.row.fields {
		b = append(appendField(b, f), ',')
	}
	return append(append(b, verdictWord(e.verdict)...), '\n'), nil
}

// appendField quotes a field where it must be (RFC 4180).
func appendField(b []byte, field string) []byte {
	if !strings.ContainsAny(field, ",\"\r\n") {
		return append(b, field...)
	}
	b = append(b, '"')
	b = append(b, strings.ReplaceAll(field, `"`, `""`)...)
	return append(b, '"')
}

// evaluated is a row of -o json.
type evaluated struct {
	Src      string         `json:"src"`
	Dst      string         `json:"dst"`
	Protocol string         `json:"protocol"`
	Port     any            `json:"port,omitempty"`
	Verdict  string         `json:"verdict"`
	Why      string         `json:"why,omitempty"` // it is unknown
	Egress   *evaluatedSide `json:"egress,omitempty"`
	Ingress  *evaluatedSide `json:"ingress,omitempty"`
}

// evaluatedSide is what the policies of one end say.
type evaluatedSide struct {
	Verdict    string           `json:"verdict"`
	Reason     string           `json:"reason"`
	IsolatedBy []flow.PolicyRef `json:"isolated_by,omitempty"`
	AllowedBy  []flow.PolicyRef `json:"allowed_by,omitempty"`
}

func (e *evaluation) appendJSON(b []byte, why string) ([]byte, error) {
	f := &e.row.fields
	row := evaluated{Src: f[0], Dst: f[1], Protocol: f[2], Verdict: verdictWord(e.verdict), Why: why}
	if n, err := strconv.Atoi(f[3]); err == nil {
		row.Port = n
	} else if f[3] != "" {
		row.Port = f[3]
	}
	if e.decision.Egress.Reason != policy.ReasonNone {
		row.Egress, row.Ingress = sideOf(&e.decision.Egress), sideOf(&e.decision.Ingress)
	}
	line, err := json.Marshal(row)
	if err != nil {
		return b, fmt.Errorf("format row: %w", err)
	}
	return append(append(b, line...), '\n'), nil
}

func sideOf(s *policy.Side) *evaluatedSide {
	return &evaluatedSide{Verdict: verdictWord(s.Verdict), Reason: s.Reason.String(), IsolatedBy: s.By, AllowedBy: s.Allowed}
}
