package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flowaudit/flowaudit/flow"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// alertsFake answers about alerts as a test says, and notes what it was asked.
type alertsFake struct {
	flowauditv1.UnimplementedAlertsServer
	list  *flowauditv1.ListAlertsResponse
	asked *askedOfAlerts
}

type askedOfAlerts struct {
	list    *flowauditv1.ListAlertsRequest
	silence *flowauditv1.Silence
	ack     *flowauditv1.AcknowledgeRequest
	test    *flowauditv1.TestRulesRequest
}

func (f alertsFake) ListAlerts(_ context.Context, req *flowauditv1.ListAlertsRequest) (*flowauditv1.ListAlertsResponse, error) {
	f.asked.list = req
	if len(req.GetMatchers()) > 0 && !strings.Contains(req.GetMatchers()[0], "=") {
		return nil, status.Error(codes.InvalidArgument, "parse matcher")
	}
	out := &flowauditv1.ListAlertsResponse{Problems: f.list.GetProblems()}
	for _, a := range f.list.GetAlerts() {
		if strings.HasPrefix(a.GetId(), req.GetId()) {
			out.Alerts = append(out.Alerts, a)
		}
	}
	return out, nil
}

func (f alertsFake) Silence(_ context.Context, req *flowauditv1.SilenceRequest) (*flowauditv1.SilenceResponse, error) {
	f.asked.silence = req.GetSilence()
	return &flowauditv1.SilenceResponse{Silence: &flowauditv1.Silence{Id: "1b2c3d4e", Ends: req.GetSilence().GetEnds()}, Matching: 2}, nil
}

func (f alertsFake) ListSilences(context.Context, *flowauditv1.ListSilencesRequest) (*flowauditv1.ListSilencesResponse, error) {
	return &flowauditv1.ListSilencesResponse{Silences: []*flowauditv1.Silence{
		{Id: "1b2c3d4e", Matchers: []string{"alertname=first-denied", "source=~shop/.*"}, Ends: here.Add(time.Hour).UnixMilli(), By: "ada", Comment: "the shop moves"},
	}}, nil
}

func (f alertsFake) Acknowledge(_ context.Context, req *flowauditv1.AcknowledgeRequest) (*flowauditv1.AcknowledgeResponse, error) {
	f.asked.ack = req
	a := f.list.GetAlerts()[0]
	return &flowauditv1.AcknowledgeResponse{Alert: &flowauditv1.Alert{Summary: a.GetSummary(), Acknowledged: &flowauditv1.Acknowledgment{By: req.GetBy()}}}, nil
}

func (f alertsFake) TestRules(_ context.Context, req *flowauditv1.TestRulesRequest) (*flowauditv1.TestRulesResponse, error) {
	f.asked.test = req
	out := &flowauditv1.TestRulesResponse{
		Alerts: f.list.GetAlerts(), Edges: 20, EdgeHours: 300,
		Rules:    []*flowauditv1.RuleTested{{Rule: "first-denied", Severity: "warning", Fired: 1}, {Rule: "coverage-lost", Severity: "warning", Note: "silent nodes are not looked for in the past"}},
		Coverage: flowauditv1.FromCoverage(flow.Coverage{Since: here.Add(-time.Hour), Until: here, Nodes: []flow.NodeCoverage{wholeHour}}),
	}
	if strings.Contains(req.GetRules(), "bad") {
		out.Problems = []string{"line 3: rule bad: has no group"}
	}
	return out, nil
}

func alerting() *collector {
	at := here.Add(-10 * time.Minute).UnixMilli()
	denied := &flowauditv1.Alert{
		Id: "3f9a6c1d00e1b2c3", Rule: "first-denied", Severity: "warning", State: flowauditv1.AlertState_ALERT_STATE_FIRING,
		Summary: "shop/web was refused by shop/db for the first time ever (tcp/3306)", Cluster: "prod",
		From:     &flowauditv1.AlertEnd{Kind: "pod", Namespace: "shop", Workload: "web", Pod: "web-6d4b75cb6d-x2x9q", Address: "10.1.0.1", Name: "shop/web"},
		To:       &flowauditv1.AlertEnd{Kind: "pod", Namespace: "shop", Workload: "db", Pod: "db-0", Address: "10.1.0.3", Name: "shop/db"},
		Protocol: "tcp", Port: 3306, Started: at, Since: at - 5000, Last: at + 60_000, Count: 4, Times: 2,
		Policies:    []*flowauditv1.PolicyRef{{Kind: "NetworkPolicy", Namespace: "shop", Name: "db-policy", Side: "ingress"}},
		Change:      &flowauditv1.AlertChange{Time: at - 60_000, Kind: "policy", Namespace: "shop", Name: "db-policy", Author: "kubectl"},
		Explanation: "ingress denied: isolated by shop/db-policy, and no rule allows it",
		NearestMiss: "shop/db-policy ingress[0]: pod shop/web lacks label role=api, has role=web (spec.ingress[0].from[0].podSelector)",
		Command:     "flowaudit observe --verdict denied,unanswered --from-workload shop/web --to-workload shop/db --since 2026-11-24T12:00:00Z",
		Link:        "https://grafana.example/d/flowaudit", Runbook: "https://docs.example/first-denied.md", Undelivered: []string{"slack"},
	}
	lost := &flowauditv1.Alert{
		Id: "aa01000000000000", Rule: "coverage-lost", Severity: "warning", State: flowauditv1.AlertState_ALERT_STATE_RESOLVED, Summary: "node n1 is not fully watched",
		Node: "n1", Started: at - 600_000, Ended: at, Since: at - 600_000, Last: at, Count: 1, Times: 1, Command: "flowaudit status", Detail: "overrun at conntrack, 12 lost",
	}
	return &collector{alerts: alertsFake{list: &flowauditv1.ListAlertsResponse{Alerts: []*flowauditv1.Alert{denied, lost}, Problems: []string{"alerts: notifier slack: it answers 500; 1 wait since 2026-11-24T12:00:00Z"}}, asked: &askedOfAlerts{}}}
}

func TestAlertsCommands(t *testing.T) {
	for name, args := range map[string][]string{
		"list":        {"list", "--since", "1d", "severity=warning"},
		"list-json":   {"list", "-o", "json"},
		"no-rules":    {"test", "--rules", "testdata/nothing.yaml"},
		"show":        {"show", "3f9a"},
		"show-lost":   {"show", "aa01"},
		"show-none":   {"show", "77"},
		"show-many":   {"show", ""},
		"silence":     {"silence", "source=~shop/.*", "--for", "3h", "--by", "ada"},
		"silence-end": {"silence", "--end", "1b2c3d4e"},
		"silence-all": {"silence"},
		"silences":    {"silences"},
		"ack":         {"ack", "3f9a", "--by", "ada", "--comment", "known"},
		"test":        {"test", "--since", "7d"},
		"test-bad":    {"test", "--rules", "testdata/alert-rules.yaml"},
		"bad-matcher": {"list", "severity"},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"alerts"}, args...)
			golden(t, "alerts-"+name, transcript(flowaudit(t, alerting(), nil, args...), args...))
		})
	}
}

func TestWhatAlertsCommandsAsk(t *testing.T) {
	c := alerting()
	asked := c.alerts.asked
	flowaudit(t, c, nil, "alerts", "silence", "a=b", "--for", "1d", "--by", "ada", "--comment", "why")
	if s := asked.silence; s.GetMatchers()[0] != "a=b" || s.GetEnds() != here.Add(24*time.Hour).UnixMilli() || s.GetBy() != "ada" || s.GetComment() != "why" {
		t.Errorf("%v", s)
	}
	flowaudit(t, c, nil, "alerts", "silence", "--end", "x")
	if s := asked.silence; s.GetId() != "x" || s.GetEnds() != here.UnixMilli() {
		t.Errorf("%v", s)
	}
	flowaudit(t, c, nil, "alerts", "ack", "x", "--for", "12h")
	if a := asked.ack; a.GetUntil() != here.Add(12*time.Hour).UnixMilli() || a.GetBy() == "" {
		t.Errorf("%v", a)
	}
	flowaudit(t, c, nil, "alerts", "ack", "x", "--undo")
	if asked.ack.GetUntil() >= here.UnixMilli() {
		t.Errorf("%v is not taken back", asked.ack)
	}
	flowaudit(t, c, nil, "alerts", "test", "--cluster", "c")
	if r := asked.test; r.GetSince() != here.Add(-30*24*time.Hour).UnixMilli() || r.GetUntil() != here.UnixMilli() || r.GetCluster() != "c" || r.GetRules() != "" {
		t.Errorf("%v", r)
	}
	if r := flowaudit(t, c, nil, "alerts", "rules"); !strings.Contains(r.stdout, "name: first-denied") || r.code != exitOK {
		t.Errorf("exit code %d, %.100s", r.code, r.stdout)
	}
}
