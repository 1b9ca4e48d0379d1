package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/pflag"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy/history"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
	"github.com/flowaudit/flowaudit/queries"
)

// exitRefused is the exit code where recorded traffic would be refused.
const exitRefused = 5

// past is the recorded time that a command computes with.
type past struct {
	*client
	since, until, cluster string
}

func (p *past) register(fs *pflag.FlagSet, since string) {
	fs.StringVar(&p.since, "since", since, "what was recorded since a `time`: back from now (30d, 12h), RFC 3339, or a local date")
	fs.StringVar(&p.until, "until", "", "what was recorded until a `time`")
	fs.StringVar(&p.cluster, "cluster", "", "the cluster, where the collector knows several")
}

// bounds reads the time.
func (p *past) bounds() (since, until time.Time, err error) {
	now := p.env.now()
	since, until = now, now
	for _, t := range []struct {
		flag, text string
		into       *time.Time
	}{{"since", p.since, &since}, {"until", p.until, &until}} {
		if t.text == "" {
			continue
		}
		if *t.into, err = queries.ParseSince(t.text, now); err != nil {
			return since, until, usageError{fmt.Errorf("--%s: %w", t.flag, err)}
		}
	}
	if until.Before(since) {
		return since, until, usageError{fmt.Errorf("--until %s is before --since %s", p.until, p.since)}
	}
	return since, until, nil
}

// fetch asks for all that was recorded in the time.
func (p *past) fetch(ctx context.Context, since, until time.Time) (h *history.History, err error) {
	progress := newProgress(p.env, "reading what was recorded")
	defer progress.clear()
	err = p.ask(ctx, false, func(ctx context.Context, q flowauditv1.QueryClient) error {
		in := history.Input{Since: since, Until: until}
		if in.Edges, in.Coverage, err = p.edges(ctx, q, since, until, progress); err != nil {
			return err
		}
		cluster, err := history.OneCluster(in.Edges, p.cluster)
		if err != nil {
			return usageError{fmt.Errorf("--cluster: %w", err)}
		}
		if in.Changes, err = changes(ctx, q, since, until, cluster); err != nil {
			return err
		}
		if h, err = history.New(in); err != nil {
			return fmt.Errorf("read what was recorded: %w", err)
		}
		return nil
	})
	return h, err
}

func (p *past) edges(ctx context.Context, q flowauditv1.QueryClient, since, until time.Time, progress *progress) ([]*flow.Edge, flow.Coverage, error) {
	var edges []*flow.Edge
	var coverage flow.Coverage
	stream, err := q.Edges(ctx, &flowauditv1.EdgesRequest{Since: since.UnixMilli(), Until: until.UnixMilli(), Cluster: p.cluster}, compressed())
	if err != nil {
		return nil, coverage, err
	}
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return edges, coverage, nil
		}
		if err != nil {
			return nil, coverage, err
		}
		more, err := part.ToEdges()
		if err != nil {
			return nil, coverage, fmt.Errorf("read answer: %w", err)
		}
		edges = append(edges, more...)
		if c := part.GetCoverage(); c != nil {
			coverage = flowauditv1.ToCoverage(c)
		}
		progress.show(int64(len(edges)), 0)
	}
}

// changes asks for the timeline.
func changes(ctx context.Context, q flowauditv1.QueryClient, since, until time.Time, cluster string) ([]flow.Change, error) {
	stream, err := q.Timeline(ctx, &flowauditv1.TimelineRequest{Since: since.UnixMilli(), Until: until.UnixMilli(), Cluster: cluster}, compressed())
	if err != nil {
		return nil, err
	}
	var out []flow.Change
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		for _, m := range part.GetChanges() {
			c, err := flowauditv1.ToChange(m)
			if err != nil {
				return nil, fmt.Errorf("read answer: %w", err)
			}
			out = append(out, c)
		}
	}
}

// parseDays reads a duration that may be in days.
func parseDays(flag, text string, now time.Time) (time.Duration, error) {
	t, err := queries.ParseSince(text, now)
	if err != nil || !t.Before(now) {
		return 0, usageError{fmt.Errorf("--%s %q: want a time such as 7d or 36h", flag, text)}
	}
	return now.Sub(t), nil
}
