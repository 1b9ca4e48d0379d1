package collector

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flowaudit/flowaudit/collector/access"
	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
	"github.com/flowaudit/flowaudit/queries"
)

// query is the service that people and programs ask.
type query struct {
	flowauditv1.UnimplementedQueryServer
	store  store.Store
	hub    *hub
	status func(context.Context) (*flowauditv1.StatusResponse, error)
	objects
}

// answerFlows is how many flows one message of an answer holds.
const answerFlows = 512

// maxLimit is more flows than a store holds, and far from what overflows.
const maxLimit = 1 << 40

// Observe implements the Query service.
func (q *query) Observe(req *flowauditv1.ObserveRequest, stream flowauditv1.Query_ObserveServer) error {
	filter, err := flowauditv1.ToFilter(req.GetFilter())
	if err != nil {
		return invalidArgument(err)
	}
	if req.GetFirst() > 0 && req.GetLast() > 0 {
		return status.Error(codes.InvalidArgument, "first and last exclude each other")
	}
	// Followed from before the stored part is read, so that nothing falls between.
	var live *follower
	if req.GetFollow() {
		live = q.hub.follow(access.SightOf(stream.Context()), filter)
		defer q.hub.leave(live)
	}
	began := time.Now()
	seen, err := q.stored(req, filter, stream)
	if err != nil {
		return err
	}
	if err := q.ending(filter, began, stream); err != nil {
		return err
	}
	if live == nil {
		return nil
	}
	return q.followLive(live, seen, stream)
}

// stored sends the flows that are stored, and remembers them for one who follows.
func (q *query) stored(req *flowauditv1.ObserveRequest, filter flow.Filter, stream flowauditv1.Query_ObserveServer) (*told, error) {
	seen := newTold()
	now := time.Now()
	chunk := make([]flow.Flow, 0, answerFlows)
	var sendErr error
	send := func() bool {
		if len(chunk) == 0 {
			return true
		}
		sendErr = stream.Send(&flowauditv1.ObserveResponse{Flows: flowauditv1.FromFlows(chunk)})
		chunk = chunk[:0]
		return sendErr == nil
	}
	request := store.FlowsRequest{
		Sight: access.SightOf(stream.Context()), Filter: filter, First: int(min(req.GetFirst(), maxLimit)), Last: int(min(req.GetLast(), maxLimit)),
	}
	err := q.store.Flows(stream.Context(), request, func(f flow.Flow) bool {
		if req.GetFollow() {
			seen.addStored(&f, now)
		}
		chunk = append(chunk, f)
		return len(chunk) < answerFlows || send()
	})
	if err != nil {
		return nil, storeError("read flows", err)
	}
	send()
	return seen, sendErr
}

// ending says what the stored part stands on, and how many unanswered flows a
// question for denied ones leaves out.
func (q *query) ending(filter flow.Filter, now time.Time, stream flowauditv1.Query_ObserveServer) error {
	until := filter.Until
	if until.IsZero() || until.After(now) {
		until = now
	}
	coverage, err := q.coverage(stream.Context(), filter.Since, until)
	if err != nil {
		return err
	}
	response := &flowauditv1.ObserveResponse{Coverage: coverage}
	if v := filter.Match.Verdicts; len(v) == 1 && v[0] == flow.VerdictDenied {
		filter.Match.Verdicts = []flow.Verdict{flow.VerdictUnanswered}
		if response.Unanswered, _, err = q.store.Count(stream.Context(), access.SightOf(stream.Context()), filter); err != nil {
			return storeError("count unanswered flows", err)
		}
	}
	return stream.Send(response)
}

// coverage says what an answer about a time stands on; without a beginning it
// is the store's whole time.
func (q *query) coverage(ctx context.Context, since, until time.Time) (*flowauditv1.Coverage, error) {
	if since.IsZero() {
		stats, err := q.store.Stats(ctx)
		if err != nil {
			return nil, storeError("read coverage", err)
		}
		since = stats.Oldest
		if since.IsZero() || since.After(until) {
			since = until
		}
	}
	coverage, err := q.store.Coverage(ctx, access.SightOf(ctx), since, until)
	if err != nil {
		return nil, storeError("read coverage", err)
	}
	return flowauditv1.FromCoverage(coverage), nil
}

// renewInterval is how often it is asked anew what who follows may see.
const renewInterval = 10 * time.Second

func (q *query) followLive(live *follower, seen *told, stream flowauditv1.Query_ObserveServer) error {
	renew := time.NewTicker(renewInterval)
	defer renew.Stop()
	for {
		select {
		case <-renew.C:
			sight, err := access.Renew(stream.Context())
			if err != nil {
				return err
			}
			q.hub.see(live, sight)
		case n := <-live.news:
			response := &flowauditv1.ObserveResponse{}
			if flows := seen.news(n.flows); len(flows) > 0 {
				response.Flows = flowauditv1.FromFlows(flows)
			}
			if gaps := append(n.gaps, q.hub.missed(live)...); len(gaps) > 0 {
				response.Coverage = flowauditv1.FromCoverage(coverageOf(gaps))
			}
			if response.Flows == nil && response.Coverage == nil {
				continue
			}
			if err := stream.Send(response); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		}
	}
}

// coverageOf puts gaps that have just become known into the form of an answer.
func coverageOf(gaps []flow.Gap) flow.Coverage {
	c := flow.Coverage{Since: gaps[0].Start, Until: gaps[0].End}
	at := make(map[string]int)
	for _, g := range gaps {
		i, ok := at[g.Node]
		if !ok {
			i = len(c.Nodes)
			at[g.Node] = i
			c.Nodes = append(c.Nodes, flow.NodeCoverage{Node: g.Node})
		}
		c.Nodes[i].Gaps = append(c.Nodes[i].Gaps, g)
		if g.Start.Before(c.Since) {
			c.Since = g.Start
		}
		if g.End.After(c.Until) {
			c.Until = g.End
		}
	}
	return c
}

// List implements the Query service.
func (q *query) List(context.Context, *flowauditv1.ListRequest) (*flowauditv1.ListResponse, error) {
	out := &flowauditv1.ListResponse{}
	for _, known := range queries.All() {
		question := &flowauditv1.Question{Name: known.Name, Text: known.Text, Note: known.Note}
		for _, a := range known.Args {
			question.Arguments = append(question.Arguments, &flowauditv1.Argument{
				Name: a.Name, Type: string(a.Type), Default: a.Default, Required: a.Required, Text: a.Text, Max: a.Max,
			})
		}
		out.Questions = append(out.Questions, question)
	}
	return out, nil
}

// Status implements the Query service.
func (q *query) Status(ctx context.Context, _ *flowauditv1.StatusRequest) (*flowauditv1.StatusResponse, error) {
	return q.status(ctx)
}

func storeError(doing string, err error) error {
	switch {
	case errors.Is(err, store.ErrArgument):
		return invalidArgument(err)
	case errors.Is(err, store.ErrSight):
		return status.Error(codes.PermissionDenied, store.ErrSight.Error())
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	}
	return status.Errorf(codes.Internal, "%s: %v", doing, err)
}
