package collector

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flowaudit/flowaudit/collector/alert"
	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/monitor/monitortest"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

func (r *running) alertsClient() flowauditv1.AlertsClient { return flowauditv1.NewAlertsClient(r.conn) }

// listed asks for alerts.
func (r *running) listed(t *testing.T, req *flowauditv1.ListAlertsRequest) []*flowauditv1.Alert {
	t.Helper()
	out, err := r.alertsClient().ListAlerts(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return out.GetAlerts()
}

func refusedFlow(port uint16) flow.Flow {
	f := flowTo(port, flow.VerdictDenied)
	f.Source = &flow.Endpoint{Kind: flow.EndpointPod, Namespace: "shop", Pod: "web-1", Workload: flow.Workload{Kind: "Deployment", Name: "web"}}
	f.Destination = &flow.Endpoint{Kind: flow.EndpointPod, Namespace: "shop", Pod: "db-0", Workload: flow.Workload{Kind: "StatefulSet", Name: "db"}}
	return f
}

func TestADenialIsListedWithinSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := serve(t, &memory{})
		defer r.close(t)
		r.keep(t, batchOf(1, refusedFlow(3306)))
		time.Sleep(8 * time.Second)
		list := r.listed(t, &flowauditv1.ListAlertsRequest{})
		if len(list) != 1 {
			t.Fatalf("%d alerts, want one", len(list))
		}
		a := list[0]
		if a.GetRule() != "first-denied" || a.GetFrom().GetName() != "shop/web" || a.GetTo().GetPod() != "db-0" || a.GetPort() != 3306 || a.GetCount() != 1 {
			t.Errorf("%v", a)
		}
		if !strings.Contains(a.GetExplanation(), "ingress") || !strings.Contains(a.GetCommand(), "--from-workload shop/web") {
			t.Errorf("explanation %q, command %q", a.GetExplanation(), a.GetCommand())
		}
		monitortest.Shows(t, r.registry(t), `flowaudit_alerts_firing{rule="first-denied",severity="warning"} 1
			flowaudit_alerts_firing{rule="port-scan",severity="critical"} 0
			flowaudit_alerts_fired_total 1`)
		if list := r.listed(t, &flowauditv1.ListAlertsRequest{Matchers: []string{"severity=critical"}}); len(list) != 0 {
			t.Errorf("%v is not critical", list)
		}
		time.Sleep(20 * time.Minute)
		if list := r.listed(t, &flowauditv1.ListAlertsRequest{}); len(list) != 1 || list[0].GetRule() != "coverage-lost" {
			t.Errorf("%v still fires", list)
		}
		if list := r.listed(t, &flowauditv1.ListAlertsRequest{Since: 1, Matchers: []string{"alertname=first-denied"}}); len(list) != 1 || list[0].GetState() != flowauditv1.AlertState_ALERT_STATE_RESOLVED {
			t.Errorf("%v, want one that has resolved", list)
		}
	})
}

func TestSilencesAndAcknowledgmentsAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &memory{}
		r := serve(t, s)
		client := r.alertsClient()
		silence := &flowauditv1.Silence{Matchers: []string{"source=~shop/.*"}, Ends: time.Now().Add(time.Hour).UnixMilli(), By: "ada", Comment: "works on it"}
		made, err := client.Silence(t.Context(), &flowauditv1.SilenceRequest{Silence: silence})
		if err != nil || made.GetSilence().GetId() == "" {
			t.Fatalf("%v %v", made, err)
		}
		r.keep(t, batchOf(1, refusedFlow(3306)))
		time.Sleep(8 * time.Second)
		list := r.listed(t, &flowauditv1.ListAlertsRequest{})
		if len(list) != 1 || list[0].GetSilencedBy() != made.GetSilence().GetId() {
			t.Fatalf("%v, want one that is silenced", list)
		}
		id := list[0].GetId()
		if got, err := client.Acknowledge(t.Context(), &flowauditv1.AcknowledgeRequest{Id: id[:5], By: "ada"}); err != nil || got.GetAlert().GetAcknowledged().GetBy() != "ada" {
			t.Errorf("%v %v", got, err)
		}
		r.close(t)

		r = serve(t, s)
		defer r.close(t)
		client = r.alertsClient()
		if list := r.listed(t, &flowauditv1.ListAlertsRequest{}); len(list) != 1 || list[0].GetAcknowledged().GetBy() != "ada" {
			t.Errorf("%v, want the acknowledged one after a restart", list)
		}
		all, err := client.ListSilences(t.Context(), &flowauditv1.ListSilencesRequest{})
		if err != nil || len(all.GetSilences()) != 1 || all.GetSilences()[0].GetComment() != "works on it" {
			t.Errorf("%v %v", all, err)
		}
		made.Silence.Ends = time.Now().Add(-time.Second).UnixMilli()
		if _, err := client.Silence(t.Context(), &flowauditv1.SilenceRequest{Silence: made.GetSilence()}); err != nil {
			t.Error(err)
		}
		if all, _ := client.ListSilences(t.Context(), &flowauditv1.ListSilencesRequest{}); len(all.GetSilences()) != 0 {
			t.Errorf("%v is over", all)
		}
	})
}

func TestWhatCannotBeAskedOfAlerts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := serve(t, &memory{})
		defer r.close(t)
		c := r.alertsClient()
		ctx := t.Context()
		later := time.Now().Add(time.Hour).UnixMilli()
		for what, ask := range map[string]func() error{
			"InvalidArgument bad matcher": func() error {
				_, err := c.ListAlerts(ctx, &flowauditv1.ListAlertsRequest{Matchers: []string{"x"}})
				return err
			},
			"InvalidArgument no alert":   func() error { _, err := c.Acknowledge(ctx, &flowauditv1.AcknowledgeRequest{}); return err },
			"NotFound unknown alert":     func() error { _, err := c.Acknowledge(ctx, &flowauditv1.AcknowledgeRequest{Id: "ab"}); return err },
			"InvalidArgument no silence": func() error { _, err := c.Silence(ctx, &flowauditv1.SilenceRequest{}); return err },
			"InvalidArgument silence over": func() error {
				_, err := c.Silence(ctx, &flowauditv1.SilenceRequest{Silence: &flowauditv1.Silence{Matchers: []string{"a=b"}, Starts: 1, Ends: 2}})
				return err
			},
			"NotFound unknown silence": func() error {
				_, err := c.Silence(ctx, &flowauditv1.SilenceRequest{Silence: &flowauditv1.Silence{Id: "x", Ends: later}})
				return err
			},
			"InvalidArgument silence for x": func() error {
				_, err := c.Silence(ctx, &flowauditv1.SilenceRequest{Silence: &flowauditv1.Silence{Matchers: []string{"a=~("}, Ends: later}})
				return err
			},
		} {
			want, _, _ := strings.Cut(what, " ")
			if got := status.Code(ask()); got.String() != want {
				t.Errorf("%s: %s", what, got)
			}
		}
		_ = codes.OK
	})
}

// A configuration that changes is read; what of it cannot be used is named.
func TestTheConfigurationIsReadWhenItChanges(t *testing.T) {
	file := filepath.Join(t.TempDir(), "alerts.yaml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("rules: [{name: first-denied, severity: info}, {name: bad}]\nnotifiers: [{type: pigeon}]")
	s := &memory{}
	synctest.Test(t, func(t *testing.T) {
		r := serveWith(t, s, Options{Alerts: AlertOptions{Config: file, Queue: t.TempDir()}})
		defer r.close(t)
		time.Sleep(2 * time.Second)
		got, err := r.alertsClient().ListAlerts(t.Context(), &flowauditv1.ListAlertsRequest{})
		if err != nil || len(got.GetProblems()) != 2 || !strings.Contains(got.GetProblems()[0], "rule bad") || !strings.Contains(got.GetProblems()[1], `"pigeon" is not one of`) {
			t.Errorf("%q %v", got.GetProblems(), err)
		}
		r.keep(t, batchOf(1, refusedFlow(1)))
		time.Sleep(8 * time.Second)
		write("rules: [{name: first-denied, severity: critical}]")
		time.Sleep(8 * time.Second)
		other := refusedFlow(1)
		other.Source = &flow.Endpoint{Kind: flow.EndpointPod, Namespace: "ops", Pod: "x", Workload: flow.Workload{Kind: "Deployment", Name: "x"}}
		r.keep(t, batchOf(2, other))
		time.Sleep(8 * time.Second)
		got, err = r.alertsClient().ListAlerts(t.Context(), &flowauditv1.ListAlertsRequest{})
		if err != nil || len(got.GetProblems()) != 0 || len(got.GetAlerts()) != 2 || got.GetAlerts()[0].GetSeverity() != "critical" || got.GetAlerts()[1].GetSeverity() != "info" {
			t.Errorf("%v %v", got, err)
		}
		one := func(severity string) int {
			return r.alerting.stats().Firing[alert.RuleSeverity{Rule: "first-denied", Severity: severity}]
		}
		if stats := r.alerting.stats(); one("critical") != 1 || one("info") != 1 || !stats.Leads || stats.Fired != 2 {
			t.Errorf("%+v", stats)
		}
	})
}

// What a collector takes that does not tell, the one that tells evaluates.
func TestOneCollectorTellsWhatAnotherTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &memory{}
		options := Options{Alerts: AlertOptions{Lease: "flowaudit/alerts", Queue: t.TempDir()}}
		first, second := serveWith(t, s, options), serveWith(t, s, options)
		first.alerting.lead(true)
		second.keep(t, batchFrom("node-2", 1, refusedFlow(3306), flowTo(80, flow.VerdictAllowed)))
		time.Sleep(10 * time.Second)
		fired := func() int { return int(first.alerting.stats().Fired + second.alerting.stats().Fired) }
		if list := second.listed(t, &flowauditv1.ListAlertsRequest{}); len(list) != 1 || list[0].GetRule() != "first-denied" || fired() != 1 {
			t.Errorf("%v, fired %d times", list, fired())
		}
		// The other one goes on.
		first.alerting.lead(false)
		other := refusedFlow(3306)
		other.Destination = &flow.Endpoint{Kind: flow.EndpointPod, Namespace: "shop", Pod: "api-0", Workload: flow.Workload{Kind: "StatefulSet", Name: "api"}}
		first.keep(t, batchFrom("node-1", 1, other))
		time.Sleep(5 * time.Second)
		second.alerting.lead(true)
		time.Sleep(10 * time.Second)
		if list := first.listed(t, &flowauditv1.ListAlertsRequest{}); len(list) != 2 || fired() != 2 {
			t.Errorf("%v, fired %d times", list, fired())
		}
		second.close(t)
		first.close(t)
	})
}

// holding is a notifier that is away, until it is not.
type holding struct {
	*memory
	away atomic.Bool
}

func TestAlertsWaitForAStoreThatRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &holding{memory: &memory{}}
		s.away.Store(true)
		r := serve(t, s)
		defer r.close(t)
		r.keep(t, batchOf(1, refusedFlow(3306)))
		time.Sleep(10 * time.Second)
		s.away.Store(false)
		time.Sleep(2 * time.Second)
		if list := r.listed(t, &flowauditv1.ListAlertsRequest{}); len(list) != 1 {
			t.Errorf("%v, want the alert that fired meanwhile", list)
		}
	})
}

func (h *holding) Put(ctx context.Context, documents []store.Document) error {
	if h.away.Load() {
		return errDisk
	}
	return h.memory.Put(ctx, documents)
}

// TestTheDocumentedFile: nothing in the example of docs/alerts.md is unknown.
func TestTheDocumentedFile(t *testing.T) {
	page, err := os.ReadFile("../docs/alerts.md")
	if err != nil {
		t.Fatal(err)
	}
	_, example, found := strings.Cut(string(page), "```yaml\n")
	example, _, closed := strings.Cut(example, "```")
	if !found || !closed {
		t.Fatal("the page has no example")
	}
	file := filepath.Join(t.TempDir(), "alerts.yaml")
	if err := os.WriteFile(file, []byte(example), 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		r := serveWith(t, &memory{}, Options{Alerts: AlertOptions{Config: file, Queue: t.TempDir()}})
		defer r.close(t)
		got, err := r.alertsClient().ListAlerts(t.Context(), &flowauditv1.ListAlertsRequest{})
		if err != nil || len(got.GetProblems()) > 0 {
			t.Errorf("%q, %v", got.GetProblems(), err)
		}
	})
}
