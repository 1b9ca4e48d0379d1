package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
	"github.com/flowaudit/flowaudit/queries"
)

// observe is the subcommand's options.
type observe struct {
	*client
	flags        filterFlags
	since, until string
	first, last  uint64
	all, follow  bool
	output       string
	noHeaders    bool
	color        string
	utc          bool
	printFilter  bool
	covered      bool // the coverage of the stored flows was shown
}

const defaultLast = 20

func newObserve(c *client) *cobra.Command {
	o := &observe{client: c}
	cmd := &cobra.Command{
		Use:     "observe",
		Aliases: []string{"flows"},
		Short:   "Show flows: who talked to whom, who was refused",
		Long: `Shows flows, oldest first: the last 20, unless --since, --first, --last or --all say otherwise.

Values of one flag are alternatives, flags together are requirements. --not
negates the filter flag that comes after it. Every answer ends, on standard
error, with the coverage it stands on: what each node could not see, and when.`,
		Example: `  # who was refused in the last hour
  flowaudit observe --verdict denied --since 1h

  # follow what reaches the database, but not from the api
  flowaudit observe --to-pod shop/db --not --from-pod shop/api -f

  # everything of one address, for a program
  flowaudit observe --ip 10.0.0.7 --since 7d -o json

  # one field of each flow
  flowaudit observe -n shop -o jsonpath='{.source.pod}{" "}{.destination.pod}{"\n"}'`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unexpected argument %q: filters are flags, such as --pod %s", args[0], args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	o.flags.register(fs)
	fs.StringVar(&o.since, "since", "", "flows since a `time`: back from now (5m, 2h, 7d), RFC 3339, or a local date")
	fs.StringVar(&o.until, "until", "", "flows until a `time`")
	fs.Uint64Var(&o.last, "last", 0, "the newest `n` flows (default 20, without --since)")
	fs.Uint64Var(&o.first, "first", 0, "the oldest `n` flows")
	fs.BoolVar(&o.all, "all", false, "all flows that pass the filter")
	fs.BoolVarP(&o.follow, "follow", "f", false, "go on with new flows as they come")
	fs.StringVarP(&o.output, "output", "o", "compact", "`format`: compact, table, wide, json (one object a line), yaml, jsonpath=TEMPLATE")
	fs.BoolVar(&o.noHeaders, "no-headers", false, "no header line")
	fs.StringVar(&o.color, "color", "auto", "auto, always or never")
	fs.BoolVar(&o.utc, "utc", false, "times in UTC instead of local time")
	fs.BoolVar(&o.printFilter, "print-filter", false, "show the filter as JSON, and ask nothing")
	complete := func(name string, values ...string) {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}
	complete("verdict", "denied", "allowed", "unanswered", "unknown")
	complete("protocol", "tcp", "udp", "sctp", "icmp", "icmpv6")
	complete("traffic-direction", "ingress", "egress")
	complete("refused-at", "egress", "ingress", "between")
	complete("assessment", "allowed", "enforced", "unenforced", "unexplained", "unanswered", "unknown")
	complete("output", "compact", "table", "wide", "json", "yaml", "jsonpath=")
	complete("color", "auto", "always", "never")
	return cmd
}

// request turns the flags into the question.
func (o *observe) request() (*flowauditv1.ObserveRequest, error) {
	if err := o.flags.done(); err != nil {
		return nil, usageError{err}
	}
	now := o.env.now()
	for _, t := range []struct {
		flag, text string
		into       *time.Time
	}{{"since", o.since, &o.flags.filter.Since}, {"until", o.until, &o.flags.filter.Until}} {
		if t.text == "" {
			continue
		}
		var err error
		if *t.into, err = queries.ParseSince(t.text, now); err != nil {
			return nil, usageError{fmt.Errorf("--%s: %w", t.flag, err)}
		}
	}
	f := &o.flags.filter
	if !f.Since.IsZero() && !f.Until.IsZero() && f.Until.Before(f.Since) {
		return nil, usageError{fmt.Errorf("--until %s is before --since %s", o.until, o.since)}
	}
	limits := 0
	for _, set := range []bool{o.first > 0, o.last > 0, o.all} {
		if set {
			limits++
		}
	}
	switch {
	case limits > 1:
		return nil, usageError{errors.New("--first, --last and --all exclude each other")}
	case limits == 0 && f.Since.IsZero():
		o.last = defaultLast
	}
	return &flowauditv1.ObserveRequest{Filter: flowauditv1.FromFilter(*f), First: o.first, Last: o.last, Follow: o.follow}, nil
}

func (o *observe) run(ctx context.Context) error {
	req, err := o.request()
	if err != nil {
		return err
	}
	if o.printFilter {
		return o.showFilter()
	}
	location := o.env.now().Location()
	if o.utc {
		location = time.UTC
	}
	colors, err := o.colors()
	if err != nil {
		return err
	}
	p, err := newPrinter(o.output, o.env.stdout, printOptions{location: location, colors: colors, headers: !o.noHeaders})
	if err != nil {
		return usageError{err}
	}
	return o.ask(ctx, o.follow, func(ctx context.Context, q flowauditv1.QueryClient) error {
		stream, err := q.Observe(ctx, req, compressed())
		if err != nil {
			return err
		}
		for {
			answer, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if err := o.show(p, answer, location); err != nil {
				return err
			}
		}
	})
}

func (o *observe) colors() (bool, error) {
	switch o.color {
	case "always":
		return true, nil
	case "never":
		return false, nil
	case "auto":
		return o.env.terminal && o.env.getenv("NO_COLOR") == "", nil
	}
	return false, usageError{fmt.Errorf("--color %q: want auto, always or never", o.color)}
}

// show prints a part of the answer.
func (o *observe) show(p printer, answer *flowauditv1.ObserveResponse, location *time.Location) error {
	flows, _, _, err := answer.GetFlows().ToFlows()
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	for i := range flows {
		if err := p.print(&flows[i]); err != nil {
			return err
		}
	}
	coverage := answer.GetCoverage()
	if coverage == nil && !o.follow {
		return nil
	}
	if err := p.flush(); err != nil {
		return err
	}
	if n := answer.GetUnanswered(); n > 0 {
		fmt.Fprintf(o.env.stderr, "%d unanswered %s are not shown: no reply and no refusal was seen (--verdict denied,unanswered shows them)\n", n, plural(n, "flow"))
	}
	switch {
	case coverage == nil:
	case o.covered: // while following, only what is new
		writeGaps(o.env.stderr, flowauditv1.ToCoverage(coverage), location)
	default:
		writeCoverage(o.env.stderr, flowauditv1.ToCoverage(coverage), location)
		o.covered = true
	}
	return nil
}

// showFilter prints the filter as the collector gets it.
func (o *observe) showFilter() error {
	e := json.NewEncoder(o.env.stdout)
	e.SetIndent("", "  ")
	return e.Encode(o.flags.filter)
}

func plural(n uint64, word string) string {
	if n == 1 {
		return word
	}
	return word + "s"
}
