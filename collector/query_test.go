package collector

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
	"github.com/flowaudit/flowaudit/queries"
)

// answer is everything that Observe gives.
type answer struct {
	flows      []flow.Flow
	coverage   []flow.Coverage
	unanswered uint64
	messages   int
}

func observe(t *testing.T, c *running, req *flowauditv1.ObserveRequest) (a answer, err error) {
	t.Helper()
	stream, err := c.query().Observe(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return a, nil
		}
		if err != nil {
			return a, err
		}
		if len(a.coverage) > 0 {
			t.Errorf("after the coverage comes %v", m)
		}
		flows, invalid, _, err := m.GetFlows().ToFlows()
		if err != nil || invalid > 0 {
			t.Fatal(invalid, err)
		}
		a.messages++
		a.flows = append(a.flows, flows...)
		a.unanswered += m.GetUnanswered()
		if m.GetCoverage() != nil {
			a.coverage = append(a.coverage, flowauditv1.ToCoverage(m.GetCoverage()))
		}
	}
}

func TestObserveEndsWithTheCoverageOfItsTime(t *testing.T) {
	node := flow.NodeCoverage{Node: "node-1", Covered: time.Minute, Limits: []string{"no bytes"}}
	for _, test := range []struct {
		name         string
		since, until time.Duration // after the only flow's start; 0 is not given
		empty        bool
		wantSince    time.Duration
		wantUntil    time.Duration
	}{
		{"everything: from the oldest flow till now", 0, 0, false, 0, time.Hour},
		{"since", time.Minute, 0, false, time.Minute, time.Hour},
		{"until", 0, 2 * time.Minute, false, 0, 2 * time.Minute},
		{"a range", time.Minute, 2 * time.Minute, false, time.Minute, 2 * time.Minute},
		{"until is yet to come", 0, 3 * time.Hour, false, 0, time.Hour},
		{"until before the oldest flow", 0, -time.Hour, false, -time.Hour, -time.Hour},
		{"no flow at all", 0, 0, true, time.Hour, time.Hour},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &memory{coverage: flow.Coverage{Nodes: []flow.NodeCoverage{node}}}
				c := serve(t, s)
				defer c.close(t)
				began := time.Now()
				if !test.empty {
					c.keep(t, batchOf(1, denied(1)...))
				}
				time.Sleep(time.Hour) // the bubble's
				var filter flow.Filter
				if test.since != 0 {
					filter.Since = began.Add(test.since)
				}
				if test.until != 0 {
					filter.Until = began.Add(test.until)
				}
				a, err := observe(t, c, &flowauditv1.ObserveRequest{Filter: flowauditv1.FromFilter(filter)})
				if err != nil || len(a.coverage) != 1 {
					t.Fatalf("coverage %v, %v", a.coverage, err)
				}
				got := a.coverage[0]
				if got.Since.Sub(began) != test.wantSince || got.Until.Sub(began) != test.wantUntil {
					t.Errorf("coverage from %s to %s, want %s to %s", got.Since.Sub(began), got.Until.Sub(began), test.wantSince, test.wantUntil)
				}
				if len(got.Nodes) != 1 || got.Nodes[0].Node != "node-1" || got.Nodes[0].Covered != time.Minute || len(got.Nodes[0].Limits) != 1 {
					t.Errorf("nodes %+v", got.Nodes)
				}
			})
		})
	}
}

// TestUnansweredFlowsAreCounted: where denied ones only are asked for, they
// could be what is looked for.
func TestUnansweredFlowsAreCounted(t *testing.T) {
	only := func(v ...flow.Verdict) flow.Selector { return flow.Selector{Verdicts: v} }
	toPort := only(flow.VerdictDenied)
	toPort.Ports = []uint16{2}
	for _, test := range []struct {
		name  string
		match flow.Selector
		want  uint64
	}{
		{"denied", only(flow.VerdictDenied), 2},
		{"denied, and another requirement", toPort, 1},
		{"denied and unanswered", only(flow.VerdictDenied, flow.VerdictUnanswered), 0},
		{"allowed", only(flow.VerdictAllowed), 0},
		{"everything", flow.Selector{}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := serve(t, &memory{})
				defer c.close(t)
				c.keep(t, batchOf(1, flowTo(1, flow.VerdictDenied), flowTo(1, flow.VerdictUnanswered), flowTo(2, flow.VerdictUnanswered), flowTo(2, flow.VerdictAllowed)))
				a, err := observe(t, c, &flowauditv1.ObserveRequest{Filter: flowauditv1.FromFilter(flow.Filter{Match: test.match})})
				if err != nil || a.unanswered != test.want {
					t.Errorf("%d unanswered, %v; want %d", a.unanswered, err, test.want)
				}
			})
		})
	}
}

func TestObserveAsksTheStore(t *testing.T) {
	for _, test := range []struct {
		name        string
		first, last uint64
		want        store.FlowsRequest
	}{
		{"all", 0, 0, store.FlowsRequest{}},
		{"first", 3, 0, store.FlowsRequest{First: 3}},
		{"last", 0, 3, store.FlowsRequest{Last: 3}},
		{"more than there can be", math.MaxUint64, 0, store.FlowsRequest{First: maxLimit}},
		{"as many of the newest", 0, math.MaxUint64, store.FlowsRequest{Last: maxLimit}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &memory{}
				c := serve(t, s)
				defer c.close(t)
				if _, err := observe(t, c, &flowauditv1.ObserveRequest{First: test.first, Last: test.last}); err != nil {
					t.Fatal(err)
				}
				if got := s.requests[0]; got.First != test.want.First || got.Last != test.want.Last {
					t.Errorf("asked for first %d, last %d", got.First, got.Last)
				}
			})
		})
	}
}

func TestALongAnswerComesInParts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := serve(t, &memory{})
		defer c.close(t)
		flows := denied(2*answerFlows + 1)
		c.keep(t, batchOf(1, flows...))
		a, err := observe(t, c, &flowauditv1.ObserveRequest{})
		if err != nil || !slices.Equal(ports(a.flows), ports(flows)) {
			t.Fatalf("%d flows, %v; want all in their order", len(a.flows), err)
		}
		if a.messages != 4 {
			t.Errorf("%d messages, want three of flows and the coverage", a.messages)
		}
	})
}

func TestQuestionsThatCannotBeAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &memory{}
		c := serve(t, s)
		defer c.close(t)
		run := func(name string, args map[string]string) error {
			stream, err := c.query().Run(t.Context(), &flowauditv1.RunRequest{Name: name, Arguments: args})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		}
		look := func(req *flowauditv1.ObserveRequest) error { _, err := observe(t, c, req); return err }
		badPort := &flowauditv1.Filter{Match: &flowauditv1.Selector{Ports: []uint32{70_000}}}
		badPrefix := &flowauditv1.Filter{Not: &flowauditv1.Selector{From: &flowauditv1.Ends{Prefixes: []string{"10.0.0.0/99"}}}}
		for _, test := range []struct {
			name string
			ask  func() error
			code codes.Code
			want string
		}{
			{"a port beyond ports", func() error { return look(&flowauditv1.ObserveRequest{Filter: badPort}) }, codes.InvalidArgument, "ports: 70000 is no port"},
			{"no prefix", func() error { return look(&flowauditv1.ObserveRequest{Filter: badPrefix}) }, codes.InvalidArgument, "10.0.0.0/99"},
			{"first and last", func() error { return look(&flowauditv1.ObserveRequest{First: 1, Last: 1}) }, codes.InvalidArgument, "first and last exclude each other"},
			{"unknown question", func() error { return run("no-such", nil) }, codes.InvalidArgument, "there are assessments, bytes-by-edge"},
			{"unknown argument", func() error { return run("nodes", map[string]string{"color": "red"}) }, codes.InvalidArgument, `has no argument "color": it has since`},
			{"bad argument", func() error { return run("nodes", map[string]string{"since": "soon"}) }, codes.InvalidArgument, `argument since of question nodes: "soon" is no time`},
			{"missing argument", func() error { return run("flows-of-address", nil) }, codes.InvalidArgument, `needs argument "address"`},
			{"the store says that the question is wrong", func() error {
				s.queryErr = fmt.Errorf("%w: no", store.ErrArgument)
				return run("nodes", nil)
			}, codes.InvalidArgument, "no"},
			{"the store fails at a question", func() error { s.queryErr = errDisk; return run("nodes", nil) }, codes.Internal, "answer nodes: " + errDisk.Error()},
			{"the store fails at flows", func() error { s.flowsErr = errDisk; return look(&flowauditv1.ObserveRequest{}) }, codes.Internal, "read flows: " + errDisk.Error()},
			{"the store takes too long", func() error { s.flowsErr = context.DeadlineExceeded; return look(&flowauditv1.ObserveRequest{}) }, codes.DeadlineExceeded, ""},
		} {
			if err := test.ask(); status.Code(err) != test.code || !strings.Contains(status.Convert(err).Message(), test.want) {
				t.Errorf("%s: %v; want %s, and %q", test.name, err, test.code, test.want)
			}
		}
	})
}

// ran is everything that Run gives.
func ran(t *testing.T, c *running, name string, args map[string]string) (columns []string, rows [][]any, coverage []flow.Coverage) {
	t.Helper()
	stream, err := c.query().Run(t.Context(), &flowauditv1.RunRequest{Name: name, Arguments: args})
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return columns, rows, coverage
		}
		if err != nil {
			t.Fatal(err)
		}
		columns = append(columns, m.GetColumns()...)
		for _, r := range m.GetRows() {
			rows = append(rows, r.AsSlice())
		}
		if m.GetCoverage() != nil {
			coverage = append(coverage, flowauditv1.ToCoverage(m.GetCoverage()))
		}
	}
}

func TestANamedQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at := time.Date(2026, 1, 2, 3, 4, 5, 6_000_000, time.FixedZone("", 3600))
		s := &memory{rows: store.Rows{Columns: []string{"text", "number", "share", "yes", "when", "nothing"}, Rows: [][]any{{"a", int64(5), 0.5, true, at, nil}}}}
		for range 2*answerFlows - 1 {
			s.rows.Rows = append(s.rows.Rows, s.rows.Rows[0])
		}
		c := serve(t, s)
		defer c.close(t)
		columns, rows, coverage := ran(t, c, "nodes", nil)
		if !slices.Equal(columns, s.rows.Columns) || len(rows) != 2*answerFlows || len(coverage) != 1 {
			t.Fatalf("columns %v, %d rows, %d coverages; want the columns once, all rows, and one coverage", columns, len(rows), len(coverage))
		}
		if want := []any{"a", 5.0, 0.5, true, "2026-01-02T02:04:05.006Z", nil}; !slices.Equal(rows[0], want) {
			t.Errorf("row %v, want %v", rows[0], want)
		}
	})
}

// TestANamedQuestionEndsWithTheCoverageOfItsTime: the time that it looks back
// over, or everything where it has none.
func TestANamedQuestionEndsWithTheCoverageOfItsTime(t *testing.T) {
	for _, test := range []struct {
		since string
		want  time.Duration // before now
	}{
		{"", 24 * time.Hour}, // the question's default
		{"90s", 90 * time.Second},
		{"3d", 72 * time.Hour},
		{"2100-01-01", 0},
	} {
		t.Run("since "+test.since, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := serve(t, &memory{})
				defer c.close(t)
				args := map[string]string{}
				if test.since != "" {
					args["since"] = test.since
				}
				_, _, coverage := ran(t, c, "nodes", args)
				if now := time.Now(); len(coverage) != 1 || !coverage[0].Until.Equal(now) || now.Sub(coverage[0].Since) != test.want {
					t.Errorf("coverage %+v, want the last %s", coverage, test.want)
				}
			})
		})
	}
}

func TestListNamesTheQuestions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := serve(t, &memory{})
		defer c.close(t)
		list, err := c.query().List(t.Context(), &flowauditv1.ListRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for i, q := range queries.All() {
			got := list.GetQuestions()[i]
			if got.GetName() != q.Name || got.GetText() != q.Text || len(got.GetArguments()) != len(q.Args) {
				t.Errorf("question %v, want %s", got, q.Name)
			}
			for j, a := range q.Args {
				if g := got.GetArguments()[j]; g.GetName() != a.Name || g.GetType() != string(a.Type) || g.GetDefault() != a.Default || g.GetRequired() != a.Required {
					t.Errorf("%s: argument %v, want %+v", q.Name, g, a)
				}
			}
		}
	})
}

func TestSQL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &memory{rows: store.Rows{Columns: []string{"a", "b", "c", "d", "e"}, Rows: [][]any{{nil, int64(5), 0.5, true, time.UnixMilli(0)}, {"x", nil, nil, nil, nil}}}}
		c := serve(t, s)
		defer c.close(t)
		ask := func(r *flowauditv1.SelectRequest) (*flowauditv1.RunResponse, error) {
			stream, err := c.query().Select(t.Context(), r)
			if err != nil {
				return nil, err
			}
			return stream.Recv()
		}
		m, err := ask(&flowauditv1.SelectRequest{Query: "SELECT 1", MaxRows: 9})
		if err != nil || !slices.Equal(m.GetTypes(), []string{"string", "int", "float", "bool", "time"}) || len(m.GetRows()) != 2 || m.GetCoverage() != nil {
			t.Errorf("%v, %v", m, err)
		}
		if s.sql != "SELECT 1" || s.sqlRows != 9 {
			t.Errorf("asked %q for %d rows", s.sql, s.sqlRows)
		}
		for rows, want := range map[uint64]int{0: sqlRows, 1 << 60: sqlRows} {
			if _, err := ask(&flowauditv1.SelectRequest{Query: "SELECT 1", MaxRows: rows}); err != nil || s.sqlRows != want {
				t.Errorf("%d rows asked for, limit %d, %v", rows, s.sqlRows, err)
			}
		}
		if _, err := ask(&flowauditv1.SelectRequest{Query: strings.Repeat(" ", sqlText+1)}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("a long text: %v", err)
		}
		s.hangs = true
		if _, err := ask(&flowauditv1.SelectRequest{Query: "SELECT 1"}); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "longer than 30s") {
			t.Errorf("SQL without an end: %v", err)
		}
		stream, err := c.query().Run(t.Context(), &flowauditv1.RunRequest{Name: "nodes"})
		if err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "longer than 2m0s") {
			t.Errorf("a question without an end: %v", err)
		}
	})
}
