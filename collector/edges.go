package collector

import (
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flowaudit/flowaudit/collector/access"
	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

const (
	// answerEdges is how many edges one message of an answer holds.
	answerEdges = 2048
	// answerChanges is how many bytes of objects one message of changes holds, about.
	answerChanges = 1 << 20
)

// bounds reads a time range; an end of 0 is now.
func bounds(since, until int64, now time.Time) (from, to time.Time, err error) {
	from, to = time.UnixMilli(since), time.UnixMilli(until)
	if since == 0 {
		from = time.Time{}
	}
	if until == 0 {
		to = now
	}
	if to.Before(from) {
		return from, to, status.Error(codes.InvalidArgument, "until is before since")
	}
	return from, to, nil
}

// Edges implements the Query service.
func (q *query) Edges(req *flowauditv1.EdgesRequest, stream flowauditv1.Query_EdgesServer) error {
	now := time.Now()
	since, until, err := bounds(req.GetSince(), req.GetUntil(), now)
	if err != nil {
		return err
	}
	chunk := make([]*flow.Edge, 0, answerEdges)
	var sendErr error
	send := func() bool {
		if len(chunk) > 0 {
			sendErr = stream.Send(flowauditv1.FromEdges(chunk))
			chunk = chunk[:0]
		}
		return sendErr == nil
	}
	first := until
	err = q.store.Edges(stream.Context(), store.EdgesRequest{Sight: access.SightOf(stream.Context()), Since: since, Until: until}, func(e *flow.Edge) bool {
		if c := req.GetCluster(); c != "" && e.Cluster != c {
			return true
		}
		if e.First.Before(first) {
			first = e.First
		}
		chunk = append(chunk, e)
		return len(chunk) < answerEdges || send()
	})
	if err != nil {
		return storeError("read edges", err)
	}
	if !send() {
		return sendErr
	}
	if since.IsZero() {
		since = first
	}
	coverage, err := q.store.Coverage(stream.Context(), access.SightOf(stream.Context()), since, until)
	if err != nil {
		return storeError("read coverage", err)
	}
	return stream.Send(&flowauditv1.EdgesResponse{Coverage: flowauditv1.FromCoverage(coverage)})
}

// Timeline implements the Query service.
func (q *query) Timeline(req *flowauditv1.TimelineRequest, stream flowauditv1.Query_TimelineServer) error {
	since, until, err := bounds(req.GetSince(), req.GetUntil(), time.Now())
	if err != nil {
		return err
	}
	response, size := &flowauditv1.TimelineResponse{}, 0
	var sendErr error
	err = q.store.Timeline(stream.Context(), access.SightOf(stream.Context()), since, until, func(c flow.Change) bool {
		if cluster := req.GetCluster(); cluster != "" && c.Cluster != cluster {
			return true
		}
		response.Changes = append(response.Changes, flowauditv1.FromChange(c))
		if size += len(c.Object) + len(c.Name) + len(c.Namespace); size < answerChanges && len(response.Changes) < answerEdges {
			return true
		}
		sendErr = stream.Send(response)
		response, size = &flowauditv1.TimelineResponse{}, 0
		return sendErr == nil
	})
	switch {
	case err != nil:
		return storeError("read timeline", err)
	case sendErr != nil:
		return sendErr
	}
	return stream.Send(response)
}
