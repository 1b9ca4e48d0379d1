package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flowaudit/flowaudit/collector/store/storetest"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
	"github.com/flowaudit/flowaudit/queries"
)

const (
	askedTimes = 7
	// meanwhile is how many flows come in a second while questions are asked.
	meanwhile = 100_000
)

// ask times questions while flows come. Each looks back at all that is stored.
func (c *collector) ask(ctx context.Context) (all []result, err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	status, err := c.query.Status(ctx, &flowauditv1.StatusRequest{})
	if err != nil {
		return nil, err
	}
	since := time.UnixMilli(status.GetOldest()).Format(time.RFC3339)
	group, ctx := errgroup.WithContext(ctx)
	var came int
	began := time.Now()
	asking := make(chan struct{})
	group.Go(func() (err error) {
		came, err = c.keepComing(ctx, asking)
		return err
	})
	group.Go(func() (err error) {
		defer close(asking)
		all, err = c.askAll(ctx, since)
		return err
	})
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return append([]result{{"ingest while these are asked", "duckdb", []string{fmt.Sprintf("%.0f flows/s", float64(came)/time.Since(began).Seconds())}}}, all...), nil
}

// keepComing sends flows at a rate until asking is closed, and waits for their
// acknowledgements.
func (c *collector) keepComing(ctx context.Context, asking <-chan struct{}) (sent int, err error) {
	agent, began := c.agents[0], time.Now()
	for sequence := agent.seq; ; {
		select {
		case <-time.After(time.Until(began.Add(time.Duration(sent) * time.Second / meanwhile))):
		case <-asking:
			return sent, agent.acknowledged(int(agent.seq - sequence))
		case <-ctx.Done():
			return sent, ctx.Err()
		}
		flows, err := agent.prepare(1)
		if err != nil {
			return sent, err
		}
		if err := agent.stream.SendMsg(agent.batches[0]); err != nil {
			return sent, err
		}
		sent += flows
	}
}

func (c *collector) askAll(ctx context.Context, since string) (all []result, err error) {
	for _, q := range []struct {
		what  string
		match *flowauditv1.Selector
	}{
		{"denied flows of one namespace", &flowauditv1.Selector{
			Either: &flowauditv1.Ends{Namespaces: []string{"team-7"}}, Verdicts: []flowauditv1.Verdict{flowauditv1.Verdict_VERDICT_DENIED},
		}},
		{"all flows of one address", &flowauditv1.Selector{Either: &flowauditv1.Ends{Prefixes: []string{storetest.Addr(4321).String() + "/32"}}}},
	} {
		r, err := timed(q.what, func() (int, error) { return c.observe(ctx, q.match) })
		if err != nil {
			return all, fmt.Errorf("%s: %w", q.what, err)
		}
		all = append(all, r)
	}
	for _, q := range queries.All() {
		arguments := questionArguments(&q, since)
		r, err := timed("query "+q.Name, func() (int, error) { return c.run(ctx, q.Name, arguments) })
		if err != nil {
			return all, fmt.Errorf("%s: %w", q.Name, err)
		}
		all = append(all, r)
	}
	return all, nil
}

// questionArguments are those that have no default, and how far to look back.
func questionArguments(q *queries.Question, since string) map[string]string {
	given := map[string]string{"address": storetest.Addr(4321).String(), "namespace": "team-1", "workload": "app-1"}
	out := make(map[string]string)
	for _, a := range q.Args {
		switch {
		case a.Name == "since":
			out[a.Name] = since
		case a.Required:
			out[a.Name] = given[a.Name]
		}
	}
	return out
}

// run asks a named question, and counts the rows of its answer.
func (c *collector) run(ctx context.Context, name string, arguments map[string]string) (rows int, err error) {
	answer, err := c.query.Run(ctx, &flowauditv1.RunRequest{Name: name, Arguments: arguments})
	if err != nil {
		return 0, err
	}
	for {
		part, err := answer.Recv()
		if errors.Is(err, io.EOF) {
			return rows, nil
		}
		if err != nil {
			return rows, err
		}
		rows += len(part.GetRows())
	}
}

// observe counts the flows that pass a selector.
func (c *collector) observe(ctx context.Context, match *flowauditv1.Selector) (flows int, err error) {
	answer, err := c.query.Observe(ctx, &flowauditv1.ObserveRequest{Filter: &flowauditv1.Filter{Match: match}})
	if err != nil {
		return 0, err
	}
	for {
		part, err := answer.Recv()
		if errors.Is(err, io.EOF) {
			return flows, nil
		}
		if err != nil {
			return flows, err
		}
		flows += len(part.GetFlows().GetSrc())
	}
}

// timed asks several times; the first one finds nothing prepared.
func timed(what string, ask func() (int, error)) (result, error) {
	var times []time.Duration
	n := 0
	for range askedTimes {
		began := time.Now()
		var err error
		if n, err = ask(); err != nil {
			return result{}, err
		}
		times = append(times, time.Since(began))
	}
	first := times[0]
	slices.Sort(times)
	return result{what, "duckdb", []string{
		fmt.Sprintf("%d ms (median of %d; first %d, longest %d)", times[len(times)/2].Milliseconds(), askedTimes, first.Milliseconds(), times[len(times)-1].Milliseconds()),
		fmt.Sprintf("%d rows", n),
	}}, nil
}
