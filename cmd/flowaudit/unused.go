package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/flowaudit/flowaudit/policy/unused"
)

// unusedCommand is the subcommand's options.
type unusedCommand struct {
	past
	namespaces []string
	idle       string
	output     string
}

func newUnused(c *client) *cobra.Command {
	o := &unusedCommand{past: past{client: c}}
	cmd := &cobra.Command{
		Use:   "unused",
		Short: "List rules, peers and ports of policies without traffic",
		Long: `Lists the rules of NetworkPolicies, and single peers and ports of them, that no
recorded traffic needed for some time, with what speaks against their removal: a
policy that was changed not long ago, a CronJob whose time has not come, a time
that was not watched.`,
		Example: `  flowaudit unused --for 90d
  flowaudit unused -n shop --for 30d -o json`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVarP(&o.idle, "for", "t", "30d", "how `long` a rule had no traffic")
	fs.StringSliceVarP(&o.namespaces, "namespace", "n", nil, "the policies of these `namespaces` only")
	o.register(fs, "")
	fs.Lookup("since").Usage += " (default: as --for)"
	choices(cmd, &o.output, "output", "o", "table", "`format`: table or json", "table", "json")
	return cmd
}

func (o *unusedCommand) run(ctx context.Context) error {
	if err := oneOf("output", o.output, "table", "json"); err != nil {
		return err
	}
	idle, err := parseDays("for", o.idle, o.env.now())
	if err != nil {
		return err
	}
	if o.since == "" {
		o.since = o.idle
	}
	since, until, err := o.bounds()
	if err != nil {
		return err
	}
	h, err := o.fetch(ctx, since, until)
	if err != nil {
		return err
	}
	r, err := unused.Find(h, unused.Options{For: idle, Namespaces: o.namespaces})
	if err != nil {
		return err
	}
	location := o.env.now().Location()
	if o.output == "json" {
		err = r.WriteJSON(o.env.stdout)
	} else {
		err = r.WriteText(o.env.stdout, location)
	}
	if err != nil {
		return err
	}
	writeCoverage(o.env.stderr, h.Coverage, location)
	return nil
}
