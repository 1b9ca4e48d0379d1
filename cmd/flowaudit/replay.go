package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy/history"
	"github.com/flowaudit/flowaudit/policy/replay"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// replayCommand is the subcommand's options.
type replayCommand struct {
	past
	*source
	deletes, namespaces []string
	whole, watch        bool
	output              string
}

func newReplay(c *client) *cobra.Command {
	o := &replayCommand{past: past{client: c}}
	cmd := &cobra.Command{
		Use:   "replay",
		Short: "Judge recorded traffic by a change of policies that is not applied",
		Long: `Judges all that was recorded by a change of policies, with the labels and the other
policies of each moment: which traffic would be refused, and which would newly be
allowed, by workload, with the rule that decides.

The files are policies to apply beside those that are there. With --whole they are
all policies there are, or with -n all of those namespaces: others are deleted.
With --watch it goes on with live traffic instead, until it is interrupted.

Exit codes: 0 nothing that was allowed would be refused; 5 something would be, or
a policy of the change is not valid; 1 no answer.`,
		Example: `  # a pull request against last month
  flowaudit replay --manifests PR/ --since 30d -o markdown

  # what if a policy were deleted
  flowaudit replay --delete shop/allow-all --since 7d

  # the manifests are all policies that namespace shop is to have
  flowaudit replay --manifests policies/ --whole -n shop

  # live traffic, before it is applied
  flowaudit replay --manifests PR/ --watch`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	o.source = newSource(cmd, c.env)
	fs.StringArrayVar(&o.deletes, "delete", nil, "a `policy` to delete, namespace/name; may be repeated")
	fs.BoolVar(&o.whole, "whole", false, "the manifests are all policies there are, or of the namespaces of -n")
	fs.StringSliceVarP(&o.namespaces, "namespace", "n", nil, "`namespaces` of which the manifests are all policies, with --whole")
	o.register(fs, "30d")
	fs.BoolVar(&o.watch, "watch", false, "judge live traffic, until it is interrupted")
	choices(cmd, &o.output, "output", "o", "text", "`format`: text, json or markdown", "text", "json", "markdown")
	return cmd
}

// change reads what is to be judged.
func (o *replayCommand) change() (*replay.Change, error) {
	c := &replay.Change{Whole: o.whole && len(o.namespaces) == 0}
	if o.whole {
		c.Namespaces = o.namespaces
	} else if len(o.namespaces) > 0 {
		return nil, usageError{errors.New("-n goes with --whole: it says of which namespaces the manifests are all policies")}
	}
	if len(o.manifests) > 0 {
		objects, err := o.files(nil, o.manifests...)
		if err != nil {
			return nil, err
		}
		if err := o.usable(objects); err != nil {
			return nil, err
		}
		c.Apply = objects.Policies
		if len(c.Apply) == 0 && !o.whole {
			return nil, usageError{errors.New("the manifests have no NetworkPolicy")}
		}
	}
	for _, p := range c.Apply {
		if p.Namespace == "" {
			p.Namespace = "default"
		}
	}
	for _, text := range o.deletes {
		namespace, name, ok := strings.Cut(text, "/")
		if !ok {
			return nil, usageError{fmt.Errorf("--delete %q: want namespace/name", text)}
		}
		c.Delete = append(c.Delete, replay.Name{Namespace: namespace, Name: name})
	}
	if err := c.Validate(); err != nil {
		return nil, usageError{fmt.Errorf("%w (--manifests, --delete, --whole)", err)}
	}
	return c, nil
}

func (o *replayCommand) run(ctx context.Context) error {
	if err := oneOf("output", o.output, "text", "json", "markdown"); err != nil {
		return err
	}
	c, err := o.change()
	if err != nil {
		return err
	}
	if o.watch {
		return o.follow(ctx, c)
	}
	since, until, err := o.bounds()
	if err != nil {
		return err
	}
	h, err := o.fetch(ctx, since, until)
	if err != nil {
		return err
	}
	progress := newProgress(o.past.env, "judging")
	r, err := replay.Run(h, c, replay.Options{Progress: func(done float64) { progress.show(int64(done*100), 100) }})
	progress.clear()
	if err != nil {
		return err
	}
	location := o.past.env.now().Location()
	switch o.output {
	case "json":
		err = r.WriteJSON(o.past.env.stdout)
	case "markdown":
		err = r.WriteMarkdown(o.past.env.stdout, location)
	default:
		err = r.WriteText(o.past.env.stdout, location)
	}
	if err != nil {
		return err
	}
	writeCoverage(o.past.env.stderr, h.Coverage, location)
	if !r.Passed() {
		return exitCode(exitRefused)
	}
	return nil
}

// stateAge is how old the cluster's state may be while live traffic is judged.
const stateAge = time.Minute

// follow judges live traffic.
func (o *replayCommand) follow(ctx context.Context, c *replay.Change) error {
	if o.output == "markdown" {
		return usageError{errors.New("--watch writes text or json")}
	}
	return o.ask(ctx, true, func(ctx context.Context, q flowauditv1.QueryClient) error {
		h, err := o.state(ctx, q)
		if err != nil {
			return err
		}
		w, err := replay.NewWatch(*c, h)
		if err != nil {
			return err
		}
		for _, p := range w.Problems() {
			fmt.Fprintln(o.past.env.stderr, "invalid:", p)
		}
		now := o.past.env.now()
		stream, err := q.Observe(ctx, &flowauditv1.ObserveRequest{Filter: flowauditv1.FromFilter(flow.Filter{Since: now}), Follow: true}, compressed())
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
			if o.past.env.now().Sub(now) > stateAge {
				now = o.past.env.now()
				if h, err = o.state(ctx, q); err != nil {
					return err
				}
				if err := w.Update(h); err != nil {
					return err
				}
			}
			if err := o.judge(w, answer); err != nil {
				return err
			}
		}
	})
}

// state asks for the cluster as it is now.
func (o *replayCommand) state(ctx context.Context, q flowauditv1.QueryClient) (*history.History, error) {
	now := o.past.env.now()
	known, err := changes(ctx, q, now, now, o.cluster)
	if err != nil {
		return nil, err
	}
	return history.New(history.Input{Since: now, Until: now, Changes: known})
}

func (o *replayCommand) judge(w *replay.Watch, answer *flowauditv1.ObserveResponse) error {
	flows, _, _, err := answer.GetFlows().ToFlows()
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	for i := range flows {
		flip, err := w.Judge(&flows[i])
		if err != nil {
			return err
		}
		if flip == nil {
			continue
		}
		if o.output == "json" {
			err = json.NewEncoder(o.past.env.stdout).Encode(flip)
		} else {
			_, err = fmt.Fprintln(o.past.env.stdout, flip.Line(o.past.env.now().Location()))
		}
		if err != nil {
			return err
		}
	}
	return nil
}
