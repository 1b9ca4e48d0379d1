package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/flowaudit/flowaudit/collector/alert"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
	"github.com/flowaudit/flowaudit/queries"
)

func newAlerts(c *client) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "alerts",
		Short: "Show, silence and acknowledge alerts, and try rules on the past",
		Long: `Shows the alerts that the collector's rules raise, keeps those that one knows of
from being told, and says what rules would have raised on recorded edges.`,
		Example: `  flowaudit alerts list
  flowaudit alerts show 3f9a
  flowaudit alerts silence source=~shop/.* alertname=first-denied --for 2h --comment "the shop moves"
  flowaudit alerts test --rules alerts.yaml --since 30d`,
	}
	cmd.AddCommand(newAlertsList(c), newAlertsShow(c), newAlertsSilence(c), newAlertsSilences(c), newAlertsAck(c), newAlertsTest(c), newAlertsRules(c))
	return cmd
}

// askAlerts connects and gives the alerts' service to f.
func (c *client) askAlerts(ctx context.Context, f func(context.Context, flowauditv1.AlertsClient) error) error {
	return c.connect(ctx, false, func(ctx context.Context, conn *grpc.ClientConn) error {
		return f(ctx, flowauditv1.NewAlertsClient(conn))
	})
}

func newAlertsList(c *client) *cobra.Command {
	var since, output string
	cmd := &cobra.Command{
		Use:   "list [LABEL=VALUE]...",
		Short: "List the alerts that fire",
		Long: `Lists the alerts that fire, the newest first; with --since also those that have
resolved. Matchers are as in Alertmanager: severity=critical, source=~shop/.*,
alertname!=port-scan.`,
		Example: "  flowaudit alerts list\n  flowaudit alerts list --since 7d severity=critical",
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &flowauditv1.ListAlertsRequest{Matchers: args}
			if since != "" {
				at, err := queries.ParseSince(since, c.env.now())
				if err != nil {
					return usageError{fmt.Errorf("--since: %w", err)}
				}
				req.Since = at.UnixMilli()
			}
			if err := oneOf("output", output, "table", "json"); err != nil {
				return err
			}
			return c.askAlerts(cmd.Context(), func(ctx context.Context, a flowauditv1.AlertsClient) error {
				got, err := a.ListAlerts(ctx, req)
				if err != nil {
					return err
				}
				if output == "json" {
					return c.writeMessage(got)
				}
				c.writeAlerts(got)
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&since, "since", "", "also what fired since a `time`: back from now (7d, 12h), RFC 3339, or a local date")
	choices(cmd, &output, "output", "o", "table", "`format`: table or json", "table", "json")
	return cmd
}

func (c *client) writeAlerts(got *flowauditv1.ListAlertsResponse) {
	now := c.env.now()
	if len(got.GetAlerts()) == 0 {
		fmt.Fprintln(c.env.stdout, "no alerts")
	} else {
		t := tabwriter.NewWriter(c.env.stdout, 0, 8, 2, ' ', 0)
		fmt.Fprintln(t, "ID\tSEVERITY\tSTATE\tFIRED\tCOUNT\tRULE\tSUMMARY")
		for _, a := range got.GetAlerts() {
			fmt.Fprintf(t, "%.8s\t%s\t%s\t%s ago\t%d\t%s\t%s\n", a.GetId(), a.GetSeverity(), alertState(a), short(max(0, now.Sub(time.UnixMilli(a.GetStarted())))),
				a.GetCount(), a.GetRule(), a.GetSummary())
		}
		_ = t.Flush() // standard output: nobody could be told
	}
	for _, p := range got.GetProblems() {
		fmt.Fprintln(c.env.stderr, p)
	}
}

func alertState(a *flowauditv1.Alert) string {
	switch {
	case a.GetState() == flowauditv1.AlertState_ALERT_STATE_RESOLVED:
		return "resolved"
	case a.GetAcknowledged() != nil:
		return "acknowledged"
	case a.GetSilencedBy() != "":
		return "silenced"
	}
	return "firing"
}

func newAlertsShow(c *client) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "show ID", Short: "Show all that is known of an alert", Args: cobra.ExactArgs(1),
		Long:    "Shows an alert: who, to whom, since when, how often, why the policies decide as\nthey do, which rule came closest to allowing it, and what to ask next.",
		Example: "  flowaudit alerts show 3f9a",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := oneOf("output", output, "text", "json"); err != nil {
				return err
			}
			return c.askAlerts(cmd.Context(), func(ctx context.Context, a flowauditv1.AlertsClient) error {
				got, err := a.ListAlerts(ctx, &flowauditv1.ListAlertsRequest{Id: args[0]})
				switch {
				case err != nil:
					return err
				case len(got.GetAlerts()) == 0:
					return usageError{fmt.Errorf("there is no alert %s: flowaudit alerts list shows their IDs", args[0])}
				case len(got.GetAlerts()) > 1:
					return usageError{fmt.Errorf("%d alerts begin with %s: give more of the ID", len(got.GetAlerts()), args[0])}
				case output == "json":
					return c.writeMessage(got.GetAlerts()[0])
				}
				c.writeAlert(c.env.stdout, got.GetAlerts()[0])
				return nil
			})
		},
	}
	choices(cmd, &output, "output", "o", "text", "`format`: text or json", "text", "json")
	return cmd
}

func (c *client) writeAlert(w io.Writer, a *flowauditv1.Alert) {
	location := c.env.now().Location()
	at := func(ms int64) string { return time.UnixMilli(ms).In(location).Format(time.DateTime) }
	fmt.Fprintf(w, "%s\n\n", a.GetSummary())
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(t, "%s\t%s\n", name, value)
		}
	}
	row("ID", a.GetId())
	row("Rule", fmt.Sprintf("%s (%s)", a.GetRule(), a.GetSeverity()))
	state := alertState(a) + ", fired " + at(a.GetStarted())
	if a.GetEnded() > 0 {
		state += ", resolved " + at(a.GetEnded())
	}
	if a.GetTimes() > 1 {
		state += fmt.Sprintf(", for the %d. time", a.GetTimes())
	}
	row("State", state)
	if k := a.GetAcknowledged(); k != nil {
		row("Known to", strings.TrimSuffix(fmt.Sprintf("%s until %s: %s", k.GetBy(), at(k.GetUntil()), k.GetComment()), ": "))
	}
	row("Silenced by", a.GetSilencedBy())
	row("Cluster", a.GetCluster())
	row("From", alertEndText(a.GetFrom()))
	row("To", alertEndText(a.GetTo()))
	row("Node", a.GetNode())
	row("Port", alertPorts(a))
	if a.GetTo() == nil && len(a.GetPeers()) > 0 {
		row("Peers", strings.Join(a.GetPeers(), ", "))
	}
	row("Seen", fmt.Sprintf("%d %s from %s until %s", a.GetCount(), plural(a.GetCount(), "connection"), at(a.GetSince()), at(a.GetLast())))
	row("Policies", alertPolicies(a))
	if ch := a.GetChange(); ch != nil {
		said := alert.Change{Time: time.UnixMilli(ch.GetTime()), Kind: ch.GetKind(), Namespace: ch.GetNamespace(), Name: ch.GetName(), Author: ch.GetAuthor(), Deleted: ch.GetDeleted()}
		row("After", said.String())
	}
	row("Why", a.GetExplanation())
	row("Nearest", a.GetNearestMiss())
	row("Detail", a.GetDetail())
	row("Ask more", a.GetCommand())
	row("Link", a.GetLink())
	row("Runbook", a.GetRunbook())
	row("Not told", strings.Join(a.GetUndelivered(), ", "))
	_ = t.Flush() // standard output: nobody could be told
}

func alertEndText(e *flowauditv1.AlertEnd) string {
	if e == nil {
		return ""
	}
	text := e.GetName()
	if e.GetPod() != "" {
		text += " (pod " + e.GetPod() + ")"
	}
	if e.GetAddress() != "" && e.GetAddress() != e.GetName() {
		text += " " + e.GetAddress()
	}
	return text
}

func alertPorts(a *flowauditv1.Alert) string {
	if a.GetPort() != 0 {
		return fmt.Sprintf("%s/%d", a.GetProtocol(), a.GetPort())
	}
	var out []string
	for _, p := range a.GetPorts() {
		out = append(out, fmt.Sprint(p))
	}
	return strings.Join(out, ", ")
}

func alertPolicies(a *flowauditv1.Alert) string {
	var out []string
	for _, p := range a.GetPolicies() {
		if name := strings.TrimPrefix(p.GetNamespace()+"/"+p.GetName(), "/"); !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return strings.Join(out, ", ")
}

// whoami names the user in what is kept.
func whoami(by string) string {
	if by != "" {
		return by
	}
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return "somebody"
}

func newAlertsSilence(c *client) *cobra.Command {
	var length, by, comment, end string
	cmd := &cobra.Command{
		Use:   "silence LABEL=VALUE...",
		Short: "Keep alerts from being told for a while",
		Long: `Keeps alerts whose labels all match from being told. They fire all the same, and
what still fires when the silence ends is told then. --end ID ends a silence.`,
		Example: "  flowaudit alerts silence alertname=new-edge-outside source=ci/runner --for 8h\n  flowaudit alerts silence --end 1b2c3d4e",
		RunE: func(cmd *cobra.Command, args []string) error {
			now := c.env.now()
			d, err := parseDays("for", length, now)
			if err != nil {
				return err
			}
			s := &flowauditv1.Silence{Id: end, Matchers: args, Ends: now.Add(d).UnixMilli(), By: whoami(by), Comment: comment}
			switch {
			case end != "" && len(args) > 0:
				return usageError{errors.New("--end takes no matchers")}
			case end != "":
				s.Ends = now.UnixMilli()
			case len(args) == 0:
				return usageError{errors.New("which alerts? give labels, such as alertname=port-scan")}
			}
			return c.askAlerts(cmd.Context(), func(ctx context.Context, a flowauditv1.AlertsClient) error {
				got, err := a.Silence(ctx, &flowauditv1.SilenceRequest{Silence: s})
				if err != nil {
					return err
				}
				if end != "" {
					fmt.Fprintf(c.env.stdout, "silence %s is over\n", end)
					return nil
				}
				fmt.Fprintf(c.env.stdout, "silence %s until %s, of %d %s that fire\n", got.GetSilence().GetId(),
					time.UnixMilli(got.GetSilence().GetEnds()).In(now.Location()).Format(time.DateTime), got.GetMatching(), plural(uint64(got.GetMatching()), "alert"))
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&length, "for", "2h", "how `long`, such as 2h or 7d")
	cmd.Flags().StringVar(&by, "by", "", "`who` says so (default: the user)")
	cmd.Flags().StringVar(&comment, "comment", "", "`why`")
	cmd.Flags().StringVar(&end, "end", "", "`ID` of a silence to end")
	return cmd
}

func newAlertsSilences(c *client) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "silences", Short: "List the silences that hold or will", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := oneOf("output", output, "table", "json"); err != nil {
				return err
			}
			return c.askAlerts(cmd.Context(), func(ctx context.Context, a flowauditv1.AlertsClient) error {
				got, err := a.ListSilences(ctx, &flowauditv1.ListSilencesRequest{})
				if err != nil {
					return err
				}
				if output == "json" {
					return c.writeMessage(got)
				}
				if len(got.GetSilences()) == 0 {
					fmt.Fprintln(c.env.stdout, "no silences")
					return nil
				}
				t := tabwriter.NewWriter(c.env.stdout, 0, 8, 2, ' ', 0)
				fmt.Fprintln(t, "ID\tUNTIL\tBY\tMATCHERS\tCOMMENT")
				for _, s := range got.GetSilences() {
					fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", s.GetId(), time.UnixMilli(s.GetEnds()).In(c.env.now().Location()).Format(time.DateTime), s.GetBy(), strings.Join(s.GetMatchers(), " "), orDash(s.GetComment()))
				}
				return t.Flush()
			})
		},
	}
	choices(cmd, &output, "output", "o", "table", "`format`: table or json", "table", "json")
	return cmd
}

func newAlertsAck(c *client) *cobra.Command {
	var length, by, comment string
	var undo bool
	cmd := &cobra.Command{
		Use: "ack ID", Short: "Say that somebody knows of an alert", Args: cobra.ExactArgs(1),
		Long:    "Says that somebody knows of an alert. For a while it is not told again, also when\nit resolves and fires anew.",
		Example: "  flowaudit alerts ack 3f9a --comment \"known, see OPS-12\" --for 3d",
		RunE: func(cmd *cobra.Command, args []string) error {
			now := c.env.now()
			d, err := parseDays("for", length, now)
			if err != nil {
				return err
			}
			req := &flowauditv1.AcknowledgeRequest{Id: args[0], By: whoami(by), Comment: comment, Until: now.Add(d).UnixMilli()}
			if undo {
				req.Until = now.Add(-time.Second).UnixMilli()
			}
			return c.askAlerts(cmd.Context(), func(ctx context.Context, a flowauditv1.AlertsClient) error {
				got, err := a.Acknowledge(ctx, req)
				if err != nil {
					return err
				}
				fmt.Fprintf(c.env.stdout, "%s: %s\n", alertState(got.GetAlert()), got.GetAlert().GetSummary())
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&length, "for", "1d", "how `long` it is not told again, such as 12h or 3d")
	cmd.Flags().StringVar(&by, "by", "", "`who` says so (default: the user)")
	cmd.Flags().StringVar(&comment, "comment", "", "`what` is known")
	cmd.Flags().BoolVar(&undo, "undo", false, "take it back")
	return cmd
}

func newAlertsTest(c *client) *cobra.Command {
	var p past
	var rules, output string
	p.client = c
	cmd := &cobra.Command{
		Use: "test", Short: "Say what rules would have raised on recorded edges", Args: cobra.NoArgs,
		Long: `Runs rules over what the store keeps of the past, hour by hour, and says what
would have fired. Without --rules it runs the collector's own. Times are those
of an hour's first and last connection, so that a count within minutes is
counted within its hour.

Exits with 1 if a rule cannot be used.`,
		Example: "  flowaudit alerts test\n  flowaudit alerts test --rules alerts.yaml --since 7d",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := oneOf("output", output, "table", "json"); err != nil {
				return err
			}
			since, until, err := p.bounds()
			if err != nil {
				return err
			}
			req := &flowauditv1.TestRulesRequest{Since: since.UnixMilli(), Until: until.UnixMilli(), Cluster: p.cluster}
			if rules != "" {
				text, err := c.readText(rules)
				if err != nil {
					return usageError{fmt.Errorf("--rules: %w", err)}
				}
				req.Rules = string(text)
			}
			return c.askAlerts(cmd.Context(), func(ctx context.Context, a flowauditv1.AlertsClient) error {
				got, err := a.TestRules(ctx, req)
				if err != nil {
					return err
				}
				return c.writeTested(got, output)
			})
		},
	}
	p.register(cmd.Flags(), "30d")
	cmd.Flags().StringVar(&rules, "rules", "", "YAML `file` of rules, or - (default: the collector's)")
	choices(cmd, &output, "output", "o", "table", "`format`: table or json", "table", "json")
	return cmd
}

func (c *client) readText(file string) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(c.env.stdin)
	}
	return os.ReadFile(file)
}

func (c *client) writeTested(got *flowauditv1.TestRulesResponse, output string) error {
	location := c.env.now().Location()
	if output == "json" {
		if err := c.writeMessage(got); err != nil {
			return err
		}
	} else {
		t := tabwriter.NewWriter(c.env.stdout, 0, 8, 2, ' ', 0)
		if len(got.GetAlerts()) > 0 {
			fmt.Fprintln(t, "FIRED\tLASTED\tSEVERITY\tRULE\tCOUNT\tSUMMARY")
		}
		for _, a := range got.GetAlerts() {
			lasted := "-"
			if a.GetEnded() > 0 {
				lasted = short(time.Duration(a.GetEnded()-a.GetStarted()) * time.Millisecond)
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\n", time.UnixMilli(a.GetStarted()).In(location).Format("2006-01-02 15:04"), lasted, a.GetSeverity(), a.GetRule(), a.GetCount(), a.GetSummary())
		}
		if err := t.Flush(); err != nil {
			return err
		}
		for _, r := range got.GetRules() {
			line := fmt.Sprintf("%s (%s): %d %s", r.GetRule(), r.GetSeverity(), r.GetFired(), plural(uint64(r.GetFired()), "alert"))
			if r.GetNote() != "" {
				line += "; " + r.GetNote()
			}
			fmt.Fprintln(c.env.stderr, line)
		}
		fmt.Fprintf(c.env.stderr, "%d edges, %d of their hours one by one\n", got.GetEdges(), got.GetEdgeHours())
	}
	writeCoverage(c.env.stderr, flowauditv1.ToCoverage(got.GetCoverage()), location)
	for _, p := range got.GetProblems() {
		fmt.Fprintln(c.env.stderr, p)
	}
	if len(got.GetProblems()) > 0 {
		return exitCode(exitError)
	}
	return nil
}

func newAlertsRules(c *client) *cobra.Command {
	return &cobra.Command{
		Use: "rules", Short: "Print the default rules, to begin a file with", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := c.env.stdout.Write(alert.Defaults())
			return err
		},
	}
}
