package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/flowaudit/flowaudit/flow"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// transcript is a command and its result as one reads them.
func transcript(r result, args ...string) string {
	shown := make([]string, len(args))
	for i, a := range args {
		if shown[i] = a; strings.ContainsAny(a, " {\"\\") {
			shown[i] = "'" + a + "'"
		}
	}
	return fmt.Sprintf("$ flowaudit %s\n%s--- standard error\n%s--- exit code %d\n", strings.Join(shown, " "), r.stdout, r.stderr, r.code)
}

func TestObserveFormats(t *testing.T) {
	for name, args := range map[string][]string{
		"compact":       {"-o", "compact"},
		"compact-color": {"--color", "always"},
		"compact-utc":   {"--utc"},
		"table":         {"-o", "table"},
		"table-color":   {"-o", "table", "--color", "always"},
		"no-headers":    {"-o", "table", "--no-headers"},
		"wide":          {"-o", "WIDE"},
		"json":          {"-o", "json"},
		"yaml":          {"-o", "yaml"},
		"jsonpath":      {"-o", `jsonpath={.source.pod}{" "}{.destination.port}{"\n"}`},
		"jsonpath-bare": {"-o", "jsonpath=.verdict"},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"observe"}, args...)
			golden(t, "observe-"+name, transcript(flowaudit(t, answering(), nil, args...), args...))
		})
	}
}

// TestCoverageLines: what an answer stands on, in all its forms.
func TestCoverageLines(t *testing.T) {
	gap := func(node, source string, kind flow.GapKind, from, to int, lost uint64, detail string) flow.Gap {
		return flow.Gap{
			Node: node, Source: source, Kind: kind, Start: here.Add(time.Duration(from) * time.Minute), End: here.Add(time.Duration(to) * time.Minute), Lost: lost, Detail: detail,
		}
	}
	many := flow.NodeCoverage{Node: "node-1", Covered: time.Hour}
	for i := range 13 {
		many.Gaps = append(many.Gaps, gap("node-1", "nflog:100", flow.GapSequence, -13+i, -13+i, uint64(i), ""))
	}
	for name, nodes := range map[string][]flow.NodeCoverage{
		"none":     nil,
		"complete": {wholeHour, {Node: "node-2", Covered: time.Hour}},
		"slack":    {{Node: "node-1", Covered: time.Hour - 30*time.Second}},
		"blind":    {wholeHour, {Node: "node-2", Covered: 59 * time.Minute}, {Node: "node-3"}},
		"gaps": {
			{Node: "node-1", Covered: time.Hour, Gaps: []flow.Gap{
				gap("node-1", "nflog:100", flow.GapOverrun, -30, -29, 0, ""), gap("node-1", "conntrack", flow.GapSource, -20, -20, 3, "operation not permitted"),
			}},
			{Node: "node-2", Covered: 40 * time.Minute, Gaps: []flow.Gap{gap("node-2", "", flow.GapDowntime, -20, 0, 0, "the agent did not run")}, Limits: []string{"no byte counts: nf_conntrack_acct is off"}},
		},
		"many-gaps": {many},
		"old-gap":   {{Node: "node-1", Covered: time.Hour, Gaps: []flow.Gap{gap("node-1", "conntrack", flow.GapOverrun, -13*60-1, -13*60+1, 0, "")}}},
	} {
		t.Run(name, func(t *testing.T) {
			c := &collector{observe: []*flowauditv1.ObserveResponse{{Coverage: coverageOf(nodes...)}}}
			golden(t, "coverage-"+name, transcript(flowaudit(t, c, nil, "observe"), "observe"))
		})
	}
	t.Run("while following", func(t *testing.T) {
		later := flow.Gap{Node: "node-1", Source: "nflog:100", Kind: flow.GapSequence, Start: here, End: here.Add(time.Second), Lost: 5}
		news := flow.Coverage{Since: later.Start, Until: later.End, Nodes: []flow.NodeCoverage{{Node: "node-1", Gaps: []flow.Gap{later}}}}
		c := answering()
		c.observe = append(c.observe, &flowauditv1.ObserveResponse{Flows: flowauditv1.FromFlows(sampleFlows()[:1]), Coverage: flowauditv1.FromCoverage(news)})
		golden(t, "observe-follow", transcript(flowaudit(t, c, nil, "observe", "-f"), "observe", "-f"))
	})
	t.Run("nothing stored", func(t *testing.T) {
		c := &collector{observe: []*flowauditv1.ObserveResponse{{Coverage: flowauditv1.FromCoverage(flow.Coverage{Since: here, Until: here, Nodes: []flow.NodeCoverage{{Node: "node-1"}}})}}}
		golden(t, "coverage-no-time", transcript(flowaudit(t, c, nil, "observe"), "observe"))
	})
	t.Run("unanswered", func(t *testing.T) {
		c := answering()
		c.observe[2].Unanswered = 4
		golden(t, "unanswered", transcript(flowaudit(t, c, nil, "observe", "--verdict", "denied"), "observe", "--verdict", "denied"))
	})
}

// sampleStatus is a collector with one agent that is well and one that is not.
func sampleStatus() *flowauditv1.StatusResponse {
	return &flowauditv1.StatusResponse{
		Version: "1.2.3", Started: here.Add(-50 * time.Hour).UnixMilli(), Store: "duckdb", Flows: 1_234_567, Bytes: 27 << 20,
		Oldest: here.Add(-49 * time.Hour).UnixMilli(), Committed: 1_000_000, Rejected: 2, Unnamed: 30, Pods: 12, Policies: 3,
		Problems: []string{"cluster/broken.yaml: no YAML"},
		Agents: []*flowauditv1.Agent{
			{
				Node: "node-1", Instance: "node-1", Version: "1.2.3", Started: here.Add(-time.Hour).UnixMilli(), LastSeen: here.Add(-4 * time.Second).UnixMilli(),
				FlowsPerSecond: 12.34, ObservationsPerSecond: 2500, Connections: 420, Sources: []string{"nflog:100", "conntrack"},
			},
			{
				Node: "shop/web-0", Instance: "uid", Scope: flowauditv1.Scope_SCOPE_POD, Version: "1.2.2", Started: here.Add(-time.Hour).UnixMilli(),
				LastSeen: here.Add(-5 * time.Minute).UnixMilli(), Notes: []string{"hubble is read: /var/run/cilium/hubble.sock is there"}, Limits: []string{"pod scope: refusals by the node show as unanswered"},
				Gaps: []*flowauditv1.Gap{flowauditv1.FromGap(flow.Gap{Node: "shop/web-0", Source: "conntrack", Kind: flow.GapOverrun, Start: here.Add(-6 * time.Minute), End: here.Add(-5 * time.Minute)})},
			},
		},
	}
}

func TestStatusOutput(t *testing.T) {
	well := sampleStatus()
	well.Problems, well.Agents = nil, well.Agents[:1]
	for name, test := range map[string]struct {
		status *flowauditv1.StatusResponse
		args   []string
	}{
		"status-degraded": {sampleStatus(), nil},
		"status-well":     {well, nil},
		"status-empty":    {&flowauditv1.StatusResponse{Version: "1.2.3", Started: here.Add(-time.Minute).UnixMilli(), Store: "duckdb"}, nil},
		"status-json":     {sampleStatus(), []string{"-o", "json"}},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"status"}, test.args...)
			golden(t, name, transcript(flowaudit(t, &collector{status: test.status}, nil, args...), args...))
		})
	}
}

func row(t *testing.T, values ...any) *structpb.ListValue {
	t.Helper()
	l, err := structpb.NewList(values)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestQueryFormats(t *testing.T) {
	answer := func() *collector {
		return &collector{run: []*flowauditv1.RunResponse{
			{Columns: []string{"namespace", "port", "share", "last_seen"}, Rows: []*structpb.ListValue{row(t, "shop", 3306.0, 0.25, "2026-03-01T11:00:00Z")}},
			{Rows: []*structpb.ListValue{row(t, nil, 123456789.0, 1.0, `say "hi", there`)}, Coverage: coverageOf(flow.NodeCoverage{Node: "node-1", Covered: 30 * time.Minute})},
		}}
	}
	for _, format := range []string{"table", "json", "csv"} {
		t.Run(format, func(t *testing.T) {
			args := []string{"query", "denied-by-port", "-o", format}
			golden(t, "query-"+format, transcript(flowaudit(t, answer(), nil, args...), args...))
		})
	}
	t.Run("no rows", func(t *testing.T) {
		c := &collector{run: []*flowauditv1.RunResponse{{Columns: []string{"node", "kind"}, Coverage: coverageOf(wholeHour)}}}
		golden(t, "query-empty", transcript(flowaudit(t, c, nil, "query", "coverage-gaps"), "query", "coverage-gaps"))
	})
	t.Run("list", func(t *testing.T) {
		c := &collector{list: &flowauditv1.ListResponse{Questions: []*flowauditv1.Question{
			{Name: "flows-of-address", Text: "Which flows did an address take part in?", Arguments: []*flowauditv1.Argument{
				{Name: "address", Type: "address", Required: true}, {Name: "since", Type: "since", Default: "24h"},
			}},
			{Name: "nodes", Text: "Which nodes have reported?"},
		}}}
		golden(t, "query-list", transcript(flowaudit(t, c, nil, "query", "--list"), "query", "--list"))
	})
}

// TestHelp needs no collector.
func TestHelp(t *testing.T) {
	for name, args := range map[string][]string{
		"help": {"--help"}, "help-observe": {"observe", "--help"}, "help-status": {"status", "--help"}, "help-query": {"query", "--help"}, "help-sql": {"sql", "--help"},
		"help-doctor": {"doctor", "--help"},
	} {
		t.Run(name, func(t *testing.T) {
			r := flowaudit(t, nil, nil, args...)
			if name != "help" && !strings.Contains(r.stdout, "Examples:") {
				t.Error("no example")
			}
			golden(t, name, transcript(r, args...))
		})
	}
}
