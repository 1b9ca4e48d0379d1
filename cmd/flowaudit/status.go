package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// silentAfter is when an agent that does not report counts as gone.
const silentAfter = time.Minute

func newStatus(c *client) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the collector, its agents, and what they cannot see",
		Long: `Shows the collector, its store and its agents, with their rates, their losses
of the last hour and what they cannot see.

Exits with 0 if all is well, and with 1 if an agent has been silent for a
minute, lost something in the last hour, or the collector has problems.`,
		Example: "  flowaudit status\n  flowaudit status -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "table" && output != "json" {
				return usageError{fmt.Errorf("--output %q: want table or json", output)}
			}
			return c.ask(cmd.Context(), false, func(ctx context.Context, q flowauditv1.QueryClient) error {
				s, err := q.Status(ctx, &flowauditv1.StatusRequest{})
				if err != nil {
					return err
				}
				return c.showStatus(s, output)
			})
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "`format`: table or json")
	return cmd
}

func (c *client) showStatus(s *flowauditv1.StatusResponse, output string) error {
	now := c.env.now()
	if output == "json" {
		if err := c.writeMessage(s); err != nil {
			return err
		}
	} else {
		writeStatus(c.env.stdout, s, now)
	}
	if degraded(s, now) {
		return exitCode(exitError)
	}
	return nil
}

// writeMessage writes JSON, formatted anew: protojson varies its white space
// from build to build.
func (c *client) writeMessage(m proto.Message) error {
	b, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return fmt.Errorf("format answer: %w", err)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", "  "); err != nil {
		return fmt.Errorf("format answer: %w", err)
	}
	out.WriteByte('\n')
	_, err = c.env.stdout.Write(out.Bytes())
	return err
}

func degraded(s *flowauditv1.StatusResponse, now time.Time) bool {
	for _, a := range s.GetAgents() {
		if now.Sub(time.UnixMilli(a.GetLastSeen())) > silentAfter || len(a.GetGaps()) > 0 {
			return true
		}
	}
	return len(s.GetProblems()) > 0 || s.GetCluster().GetAway()
}

func writeStatus(w io.Writer, s *flowauditv1.StatusResponse, now time.Time) {
	fmt.Fprintf(w, "Collector  %s, up %s\n", s.GetVersion(), short(now.Sub(time.UnixMilli(s.GetStarted()))))
	fmt.Fprintf(w, "Store      %s, %d flows, %s", s.GetStore(), s.GetFlows(), bytesText(s.GetBytes()))
	if s.GetOldest() > 0 {
		fmt.Fprintf(w, ", since %s", time.UnixMilli(s.GetOldest()).In(now.Location()).Format(time.DateTime))
	}
	fmt.Fprintf(w, "\nSince then %d flows committed, %d rejected as invalid, %d with an end that has no name, %d with an ambiguous one\n",
		s.GetCommitted(), s.GetRejected(), s.GetUnnamed(), s.GetAmbiguous())
	writeCluster(w, s, now)
	for _, p := range s.GetProblems() {
		fmt.Fprintf(w, "Problem    %s\n", p)
	}
	if names := s.GetCluster().GetPolicyKinds(); len(names) > 0 {
		fmt.Fprintf(w, "Note       other policies are in use, flows are not held against them: %s\n", strings.Join(names, ", "))
	}
	if len(s.GetAgents()) == 0 {
		fmt.Fprintln(w, "\nNo agent has reported yet: start flowaudit-agent with --collector set to this collector.")
		return
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tSCOPE\tSEEN\tFLOWS/S\tEVENTS/S\tCONNECTIONS\tSOURCES\tLOST\tVERSION")
	for _, a := range s.GetAgents() {
		lost := "nothing"
		if n := len(a.GetGaps()); n > 0 {
			lost = fmt.Sprintf("%d %s", n, plural(uint64(n), "gap"))
		}
		scope := strings.ToLower(strings.TrimPrefix(a.GetScope().String(), "SCOPE_"))
		seen := now.Sub(time.UnixMilli(a.GetLastSeen()))
		ago := short(max(0, seen)) + " ago"
		if seen > silentAfter {
			ago += " (silent)"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%.1f\t%.1f\t%d\t%s\t%s\t%s\n", a.GetNode(), scope, ago, a.GetFlowsPerSecond(), a.GetObservationsPerSecond(),
			a.GetConnections(), orDash(strings.Join(a.GetSources(), ",")), lost, a.GetVersion())
	}
	_ = t.Flush() // standard output: nobody could be told
	for _, a := range s.GetAgents() {
		for _, g := range a.GetGaps() {
			fmt.Fprintln(w, "  "+gapText(flowauditv1.ToGap(g), now))
		}
		if d := skewText(a.GetSkew()); d != "" {
			fmt.Fprintf(w, "  %s: the API server's clock is %s this node's\n", a.GetNode(), d)
		}
		for _, n := range a.GetNotes() {
			fmt.Fprintf(w, "  %s: source %s\n", a.GetNode(), n)
		}
		for _, l := range a.GetLimits() {
			fmt.Fprintf(w, "  %s: %s\n", a.GetNode(), l)
		}
		if n := a.GetContradicted(); n > 0 {
			fmt.Fprintf(w, "  %s: %d %s of the plugin's log are contradicted by conntrack: the packets passed\n", a.GetNode(), n, plural(n, "record"))
		}
	}
}

// writeCluster says what names are taken from.
func writeCluster(w io.Writer, s *flowauditv1.StatusResponse, now time.Time) {
	c := s.GetCluster()
	fmt.Fprintf(w, "Cluster    %d pods, %d network policies", s.GetPods(), s.GetPolicies())
	if c.GetSource() != "" {
		fmt.Fprintf(w, ", from %s", c.GetSource())
	}
	if d := skewText(c.GetSkew()); d != "" {
		fmt.Fprintf(w, ", its clock is %s the collector's", d)
	}
	fmt.Fprintln(w)
	if !c.GetAway() {
		return
	}
	heard := "not heard yet"
	if c.GetHeard() > 0 {
		heard = "heard " + short(max(0, now.Sub(time.UnixMilli(c.GetHeard())))) + " ago"
	}
	fmt.Fprintf(w, "Problem    the API server is away (%s): names are those that were known before\n", heard)
}

// skewText says how far a clock is from another; nothing where it hardly matters.
func skewText(milliseconds int64) string {
	d := time.Duration(milliseconds) * time.Millisecond
	switch {
	case d.Abs() < time.Second:
		return ""
	case d > 0:
		return d.String() + " ahead of"
	}
	return d.Abs().String() + " behind"
}
