package collector

import (
	"cmp"
	"context"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flowaudit/flowaudit/collector/access"
	"github.com/flowaudit/flowaudit/collector/alert"
	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// defaultPast is how far back rules are tried.
const defaultPast = 30 * 24 * time.Hour

// maxTested bounds the alerts that are told.
const maxTested = 10_000

// TestRules implements the Alerts service.
func (s *alertServer) TestRules(ctx context.Context, req *flowauditv1.TestRulesRequest) (*flowauditv1.TestRulesResponse, error) {
	since, until, err := bounds(req.GetSince(), req.GetUntil(), time.Now())
	if err != nil {
		return nil, err
	}
	if req.GetSince() == 0 {
		since = until.Add(-defaultPast)
	}
	s.alerting.mu.Lock()
	config := s.alerting.config
	s.alerting.mu.Unlock()
	if req.GetRules() != "" {
		config = alert.Parse([]byte(req.GetRules()))
	}
	coverage, err := s.alerting.store.Coverage(ctx, access.SightOf(ctx), since, until)
	if err != nil {
		return nil, storeError("read coverage", err)
	}
	r, err := newRehearsal(ctx, s.alerting.store, s.judge, config, since, until, coverage)
	if err != nil {
		return nil, err
	}
	if err := r.gather(ctx, s.alerting.store, req.GetCluster()); err != nil {
		return nil, err
	}
	out := &flowauditv1.TestRulesResponse{Coverage: flowauditv1.FromCoverage(coverage), Edges: r.edges, EdgeHours: r.hours}
	for _, p := range config.Problems {
		out.Problems = append(out.Problems, p.String())
	}
	fired := r.trial.Run(r.changes, r.gaps, until)
	count := make(map[string]uint32)
	for i := range fired {
		count[fired[i].Rule]++
		if len(out.Alerts) < maxTested {
			out.Alerts = append(out.Alerts, alertMessage(&fired[i]))
		}
	}
	for _, rule := range config.Rules {
		t := &flowauditv1.RuleTested{Rule: rule.Name, Severity: rule.Severity, Fired: count[rule.Name]}
		if rule.Coverage != nil && rule.Coverage.Silent > 0 {
			t.Note = "silent nodes are not looked for in the past, only what nodes told of it"
		}
		out.Rules = append(out.Rules, t)
	}
	return out, nil
}

// rehearsal is a trial of rules on what a store keeps.
type rehearsal struct {
	trial        *alert.Trial
	judge        *judge // by the policies of that time
	since, until time.Time
	changes      []flow.Change
	gaps         []flow.Gap
	flows        map[flow.EdgeKey]*flow.Flow // of edges whose hours are looked at
	edges, hours uint64
}

func newRehearsal(ctx context.Context, s store.Store, j *judge, c *alert.Config, since, until time.Time, coverage flow.Coverage) (*rehearsal, error) {
	r := &rehearsal{since: since, until: until, flows: make(map[flow.EdgeKey]*flow.Flow)}
	then, err := newHistory()
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	var told []flow.Change
	err = s.Timeline(ctx, access.SightOf(ctx), since, until, func(c flow.Change) bool {
		if c.Kind == flow.ChangePolicy || c.Kind == flow.ChangeNamespace {
			told = append(told, c)
		}
		return true
	})
	if err != nil {
		return nil, storeError("read timeline", err)
	}
	_ = then.apply(told) // what cannot be read was named when it came
	r.judge = &judge{history: then, classes: policy.NewClasses(), index: j.index}
	r.judge.others.Store(j.others.Load())
	r.changes = slices.DeleteFunc(told, func(c flow.Change) bool { return !c.Time.After(since) })
	err = s.Gaps(ctx, since, until, func(g flow.Gap) bool {
		r.gaps = append(r.gaps, g)
		return true
	})
	if err != nil {
		return nil, storeError("read gaps", err)
	}
	slices.SortStableFunc(r.gaps, func(a, b flow.Gap) int { return a.Start.Compare(b.Start) })
	r.trial = alert.NewTrial(c, r.judge, since, watchedShare(coverage))
	return r, nil
}

// watchedShare is how much of a time was watched by the node in the middle.
func watchedShare(c flow.Coverage) float64 {
	if len(c.Nodes) == 0 || !c.Until.After(c.Since) {
		return 1 // edges without coverage: they were watched somehow
	}
	nodes := slices.SortedFunc(slices.Values(c.Nodes), func(a, b flow.NodeCoverage) int { return cmp.Compare(a.Covered, b.Covered) })
	middle := nodes[(len(nodes)-1)/2].Covered
	return max(1e-9, min(1, float64(middle)/float64(c.Until.Sub(c.Since))))
}

// gather gives the trial what was recorded: of most edges only that they
// began, and hours of those that rules count.
func (r *rehearsal) gather(ctx context.Context, s store.Store, cluster string) error {
	other := func(e *flow.Edge) bool { return cluster != "" && e.Cluster != cluster }
	if !r.since.IsZero() {
		err := s.Edges(ctx, store.EdgesRequest{Sight: access.SightOf(ctx), Until: r.since.Add(-flow.EdgeHour)}, func(e *flow.Edge) bool {
			if !other(e) {
				r.trial.Learn(e)
			}
			return true
		})
		if err != nil {
			return storeError("read edges from before", err)
		}
	}
	request := store.EdgesRequest{Sight: access.SightOf(ctx), Since: r.since, Until: r.until}
	seen := make(map[flow.EdgeKey]bool)
	err := s.EdgeHours(ctx, request, func(e *flow.Edge) bool {
		if other(e) {
			return false
		}
		f := edgeFlow(e)
		beginning, hours := r.trial.Wants(f)
		known := seen[e.EdgeKey]
		if seen[e.EdgeKey] = true; !known {
			r.edges++
		}
		if !beginning {
			return false
		}
		if !hours {
			if !known { // a later month's sum begins later
				r.trial.Add(alert.Past{Flow: f, First: e.First, Last: e.First, Connections: e.Connections})
			}
			return false
		}
		if r.flows[e.EdgeKey] == nil {
			c := r.judge.connection(f, e.First, r.judge.history.at(e.First), make(map[end]policy.End))
			d := r.judge.history.at(e.First).Decide(&c)
			f.Policies = d.Policies()
			r.flows[e.EdgeKey] = f
		}
		return true
	}, func(e *flow.Edge) bool {
		r.hours++
		r.trial.Add(alert.Past{Flow: r.flows[e.EdgeKey], First: e.First, Last: e.Last, Connections: e.Connections})
		return true
	})
	if err != nil {
		return storeError("read edges", err)
	}
	return nil
}

// edgeFlow is a flow as far as an edge tells of it.
func edgeFlow(e *flow.Edge) *flow.Flow {
	f := &flow.Flow{
		Key:     flow.Key{Protocol: e.Protocol, Port: e.Port, Verdict: e.Verdict, Direction: e.Direction, Src: e.Source.Prefix.Addr(), Dst: e.Destination.Prefix.Addr()},
		Cluster: e.Cluster, Start: e.First, End: e.Last, TranslatedSrc: e.Seen,
		Expected: e.Expected, Assessment: e.Assessment, Caveat: e.Caveat, Connections: e.Connections,
	}
	f.Source, f.Destination = endpointOf(&e.Source, e.SourceLabels), endpointOf(&e.Destination, e.DestinationLabels)
	return f
}

func endpointOf(e *flow.EdgeEnd, labels map[string]string) *flow.Endpoint {
	return &flow.Endpoint{Kind: e.Kind, Namespace: e.Namespace, Workload: e.Workload, Node: e.Node, Identity: e.Identity, Labels: labels}
}
