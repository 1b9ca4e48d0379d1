// Package advice serves what recorded traffic says about policies: suggestions, replays of a change, and rules without traffic.
package advice

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	_ "time/tzdata" // schedules of CronJobs name zones that a small image lacks

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/kube"
	"github.com/flowaudit/flowaudit/policy/history"
	"github.com/flowaudit/flowaudit/policy/replay"
	"github.com/flowaudit/flowaudit/policy/suggest"
	"github.com/flowaudit/flowaudit/policy/unused"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// Store is what was recorded.
type Store interface {
	Edges(ctx context.Context, req store.EdgesRequest, yield func(*flow.Edge) bool) error
	Timeline(ctx context.Context, sight flow.Sight, since, until time.Time, yield func(flow.Change) bool) error
	Coverage(ctx context.Context, sight flow.Sight, since, until time.Time) (flow.Coverage, error)
}

// Server implements the Advice service.
type Server struct {
	flowauditv1.UnimplementedAdviceServer
	store Store
	sight func(context.Context) flow.Sight // of the caller
	turn  chan struct{}                    // holds one while a request is computed
}

// New makes a Server over what a store has recorded; sight is what the caller
// sees. Advice judges by the labels of both ends, so that it is for callers who
// see everything: others could find out labels by it.
func New(s Store, sight func(context.Context) flow.Sight) *Server {
	return &Server{store: s, sight: sight, turn: make(chan struct{}, 1)}
}

// answers is where an answer goes.
type answers = grpc.ServerStreamingServer[flowauditv1.AdviceResponse]

// report is a result that can be written.
type report interface{ WriteJSON(io.Writer) error }

// Suggest implements the Advice service.
func (s *Server) Suggest(req *flowauditv1.SuggestRequest, stream answers) error {
	options, err := suggestOptions(req)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	return s.answer(req.GetSpan(), stream, func(h *history.History, p *progress) (report, error) {
		options.Progress = p.show
		r, err := suggest.Run(h, options)
		if err != nil {
			return nil, err
		}
		return r, sendPolicies(r, req.GetExplain(), stream)
	})
}

func sendPolicies(r *suggest.Result, explain bool, stream answers) error {
	for i := range r.Policies {
		p := &r.Policies[i]
		text, err := p.YAML(explain)
		if err != nil {
			return err
		}
		err = stream.Send(&flowauditv1.AdviceResponse{Policy: &flowauditv1.SuggestedPolicy{Namespace: p.Object.Namespace, Name: p.Object.Name, Yaml: string(text)}})
		if err != nil {
			return err
		}
	}
	return nil
}

// Replay implements the Advice service.
func (s *Server) Replay(req *flowauditv1.ReplayRequest, stream answers) error {
	change, err := changeOf(req)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	return s.answer(req.GetSpan(), stream, func(h *history.History, p *progress) (report, error) {
		return replay.Run(h, change, replay.Options{Progress: func(done float64) { p.show("judging", done) }})
	})
}

// Unused implements the Advice service.
func (s *Server) Unused(req *flowauditv1.UnusedRequest, stream answers) error {
	since, until, err := bounds(req.GetSpan(), time.Now())
	if err != nil {
		return err
	}
	options := unused.Options{For: time.Duration(req.GetIdle()) * time.Millisecond, Namespaces: req.GetNamespaces()}
	if options.For == 0 {
		options.For = until.Sub(since)
	}
	if err := options.Validate(); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	return s.answer(req.GetSpan(), stream, func(h *history.History, _ *progress) (report, error) {
		return unused.Find(h, options)
	})
}

// answer reads the history, computes with it, and sends the report.
func (s *Server) answer(span *flowauditv1.Span, stream answers, compute func(*history.History, *progress) (report, error)) error {
	since, until, err := bounds(span, time.Now())
	if err != nil {
		return err
	}
	if !s.sight(stream.Context()).All() {
		return status.Error(codes.PermissionDenied, store.ErrSight.Error())
	}
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	default:
		return status.Error(codes.ResourceExhausted, "the collector computes for somebody else: try again in some seconds")
	}
	p := &progress{stream: stream}
	h, err := s.history(stream.Context(), since, until, span.GetCluster(), p)
	if err != nil {
		return failure("read what was recorded", err)
	}
	r, err := compute(h, p)
	if err != nil {
		return failure("compute", err)
	}
	value, err := valueOf(r)
	if err != nil {
		return failure("write report", err)
	}
	return stream.Send(&flowauditv1.AdviceResponse{Report: value, Coverage: flowauditv1.FromCoverage(h.Coverage)})
}

// history reads what was recorded in a time.
func (s *Server) history(ctx context.Context, since, until time.Time, cluster string, p *progress) (*history.History, error) {
	p.show("reading what was recorded", 0)
	in := history.Input{Since: since, Until: until}
	err := s.store.Edges(ctx, store.EdgesRequest{Sight: s.sight(ctx), Since: since, Until: until}, func(e *flow.Edge) bool {
		if cluster == "" || e.Cluster == cluster {
			in.Edges = append(in.Edges, e)
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	if cluster, err = history.OneCluster(in.Edges, cluster); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	err = s.store.Timeline(ctx, s.sight(ctx), since, until, func(c flow.Change) bool {
		if cluster == "" || c.Cluster == cluster {
			in.Changes = append(in.Changes, c)
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	if in.Coverage, err = s.store.Coverage(ctx, s.sight(ctx), since, until); err != nil {
		return nil, err
	}
	return history.New(in)
}

// defaultSpan is looked at where no beginning is given.
const defaultSpan = 30 * 24 * time.Hour

func bounds(span *flowauditv1.Span, now time.Time) (since, until time.Time, err error) {
	until = now
	if u := span.GetUntil(); u != 0 {
		until = time.UnixMilli(u)
	}
	since = until.Add(-defaultSpan)
	if t := span.GetSince(); t != 0 {
		since = time.UnixMilli(t)
	}
	if until.Before(since) {
		return since, until, status.Error(codes.InvalidArgument, "until is before since")
	}
	return since, until, nil
}

// failure keeps the code that an error has.
func failure(doing string, err error) error {
	if s, ok := status.FromError(err); ok {
		return s.Err()
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return status.FromContextError(err).Err()
	}
	return status.Errorf(codes.Internal, "%s: %v", doing, err)
}

func valueOf(r report) (*structpb.Value, error) {
	var text bytes.Buffer
	if err := r.WriteJSON(&text); err != nil {
		return nil, err
	}
	value := &structpb.Value{}
	return value, value.UnmarshalJSON(text.Bytes())
}

// progress tells how much is done, not too often.
type progress struct {
	stream answers
	last   time.Time
}

const progressInterval = 200 * time.Millisecond

func (p *progress) show(doing string, done float64) {
	if now := time.Now(); now.Sub(p.last) >= progressInterval {
		p.last = now
		_ = p.stream.Send(&flowauditv1.AdviceResponse{Doing: doing, Done: done}) // the report's Send says that nobody listens
	}
}

// load reads manifests that came with a request.
func load(text string) (*kube.Snapshot, error) {
	objects, err := kube.Load([]string{"-"}, kube.LoadOptions{Stdin: strings.NewReader(text)})
	if err != nil {
		return nil, err
	}
	var problems []error
	for _, p := range objects.Problems {
		problems = append(problems, fmt.Errorf("read manifests: %s", p.Error()))
	}
	return objects, errors.Join(problems...)
}
