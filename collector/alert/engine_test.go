package alert

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// world is an engine with a clock and a cluster around it.
type world struct {
	t        *testing.T
	e        *Engine
	now      time.Time
	notified []Alert
	saved    map[string]Record
	before   bool // the policies of before denied too
}

func newWorld(t *testing.T, rules string) *world {
	t.Helper()
	c := Parse([]byte(rules))
	for _, p := range c.Problems {
		t.Fatal(p)
	}
	w := &world{t: t, now: time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC), saved: make(map[string]Record)}
	w.e = NewEngine(c, w)
	w.watched(48 * time.Hour)
	return w
}

func (w *world) Explain(f *flow.Flow) (string, string) {
	return "ingress denied: isolated by shop/db", "shop/db ingress[0]"
}

func (w *world) DeniedAt(*flow.Flow, time.Time) bool { return w.before }

// watched says that node n1 was watched for so long until now.
func (w *world) watched(d time.Duration) {
	w.e.Covered(flow.Coverage{Since: w.now.Add(-d), Until: w.now, Nodes: []flow.NodeCoverage{{Node: "n1", Covered: d}}}, w.now)
}

// pass lets time pass, a second at a time.
func (w *world) pass(d time.Duration) {
	for until := w.now.Add(d); w.now.Before(until); {
		w.now = w.now.Add(time.Second)
		tick := w.e.Tick(w.now)
		w.notified = append(w.notified, tick.Notify...)
		for _, r := range tick.Save {
			w.saved[r.ID] = r
		}
	}
}

func (w *world) observe(flows ...flow.Flow) { w.e.Observe(w.now, flows) }

// names lists what was notified as "rule state from>to".
func (w *world) names() []string {
	var out []string
	for _, a := range w.notified {
		out = append(out, fmt.Sprintf("%s %s %s>%s", a.Rule, a.State, a.From, a.To))
	}
	w.notified = nil
	return out
}

func (w *world) want(what string, want ...string) {
	w.t.Helper()
	if got := w.names(); !slices.Equal(got, want) {
		w.t.Errorf("%s:\n got %q\nwant %q", what, got, want)
	}
}

func pod(namespace, workload string) *flow.Endpoint {
	return &flow.Endpoint{Kind: flow.EndpointPod, Namespace: namespace, Pod: workload + "-1", Workload: flow.Workload{Kind: "Deployment", Name: workload}, Node: "n1"}
}

// to is a flow between two ends, "shop/web" or an address, on a port.
func (w *world) to(from, to string, port uint16) flow.Flow {
	f := flow.Flow{Key: flow.Key{Protocol: flow.TCP, Port: port, Verdict: flow.VerdictAllowed, Direction: flow.DirectionEgress}, Node: "n1", Cluster: "c", Connections: 1, Start: w.now, End: w.now}
	f.Source, f.Src = endOf(from)
	f.Destination, f.Dst = endOf(to)
	f.Expected, f.Assessment = flow.VerdictAllowed, flow.AssessmentAllowed
	return f
}

func endOf(text string) (*flow.Endpoint, netip.Addr) {
	if namespace, name, ok := strings.Cut(text, "/"); ok {
		var sum byte
		for i := range len(text) {
			sum = sum*31 + text[i]
		}
		return pod(namespace, name), netip.AddrFrom4([4]byte{10, 1, 0, sum})
	}
	return &flow.Endpoint{Kind: flow.EndpointOutside}, netip.MustParseAddr(text)
}

func (w *world) denied(from, to string, port uint16) flow.Flow {
	f := w.to(from, to, port)
	f.Verdict, f.Expected, f.Assessment = flow.VerdictDenied, flow.VerdictDenied, flow.AssessmentEnforced
	f.Policies = []flow.PolicyRef{{Kind: "NetworkPolicy", Namespace: "shop", Name: "db", Side: "ingress"}}
	return f
}

func TestAFirstDenialFiresWithinSecondsAndResolves(t *testing.T) {
	w := newWorld(t, "")
	w.observe(w.denied("shop/web", "shop/db", 3306))
	w.pass(6 * time.Second)
	if len(w.notified) != 1 {
		t.Fatalf("%d alerts, want one", len(w.notified))
	}
	a := w.notified[0]
	for what, got := range map[string]string{
		"first-denied": a.Rule, "warning": a.Severity, "firing": string(a.State),
		"shop/web was refused by shop/db for the first time ever (tcp/3306)": a.Summary,
		"ingress denied: isolated by shop/db":                                a.Explanation, "shop/db ingress[0]": a.NearestMiss,
		"flowaudit observe --verdict denied,unanswered --from-workload shop/web --to-workload shop/db --since 2026-11-02T10:00:00Z": a.Command,
		"web-1": a.From.Pod, "shop/web": a.Labels["source"], "shop": a.Labels["namespace"],
	} {
		if got != what {
			t.Errorf("got %q, want %q", got, what)
		}
	}
	w.names()
	w.observe(w.denied("shop/web", "shop/db", 3306), w.denied("shop/web", "shop/db", 5432))
	w.pass(14 * time.Minute)
	w.want("what goes on is the same alert")
	w.observe(w.denied("shop/web", "shop/db", 3306))
	w.pass(16 * time.Minute)
	w.want("it resolves when nothing was refused for a quarter of an hour", "first-denied resolved shop/web>shop/db")
	if r := w.saved[a.ID]; r.Count != 4 || r.State != Resolved {
		t.Errorf("kept with %d connections as %s, want 4, resolved", r.Count, r.State)
	}
	w.observe(w.denied("shop/web", "shop/db", 3306))
	w.pass(time.Minute)
	w.want("a second time is not the first")
}

func TestWhatWasRecordedIsNotNew(t *testing.T) {
	w := newWorld(t, "")
	edge := func(f flow.Flow) *flow.Edge {
		b := flow.NewEdgeBuilder()
		f.Start, f.End = w.now.Add(-40*time.Hour), w.now.Add(-30*time.Hour)
		b.Add([]flow.Flow{f})
		return b.Edges()[0]
	}
	w.e.Learn(edge(w.denied("shop/web", "shop/db", 3306)))
	w.e.Learn(edge(w.to("shop/web", "203.0.113.7", 443)))
	w.observe(w.denied("shop/web", "shop/db", 3306), w.to("shop/web", "203.0.113.99", 443))
	w.pass(time.Minute)
	w.want("a known refusal, and an address of a known network")
	w.observe(w.to("shop/web", "198.51.100.1", 443))
	w.pass(time.Minute)
	w.want("another network", "new-edge-outside firing shop/web>-")
}

func TestAScanIsOneAlert(t *testing.T) {
	w := newWorld(t, "")
	for p := range 1000 {
		if p%400 == 399 {
			w.pass(time.Second)
		}
		w.observe(w.denied("shop/web", "shop/db", uint16(p+1)))
	}
	w.pass(10 * time.Minute)
	w.want("1,000 ports", "port-scan firing shop/web>shop/db")
}

func TestASweepIsOneAlert(t *testing.T) {
	w := newWorld(t, "")
	for i := range 200 {
		f := w.denied("shop/web", fmt.Sprintf("shop/w%d", i), 22)
		f.Dst = netip.AddrFrom4([4]byte{10, 2, 0, byte(i)})
		w.observe(f)
	}
	w.pass(5 * time.Minute)
	w.want("200 addresses", "host-sweep firing shop/web>-")
}

func TestLateralMovementIsToldOnce(t *testing.T) {
	w := newWorld(t, "")
	for i := range 6 {
		w.observe(w.denied("shop/web", fmt.Sprintf("shop/w%d", i), uint16(8000+i)))
	}
	w.pass(time.Minute)
	w.want("six workloads", "lateral-movement firing shop/web>-")
}

func TestCountsHaveHysteresis(t *testing.T) {
	w := newWorld(t, `
default_rules: false
rules:
- {name: many, match: {refused: true}, group: [source], count: {of: connections, over: 10, clear: 4, within: 10s}, for: 2s, keep_firing_for: 5s}
`)
	each := func(n uint64, d time.Duration) {
		for range int(d / time.Second) {
			f := w.denied("shop/web", "shop/db", 1)
			f.Connections = n
			w.observe(f)
			w.pass(time.Second)
		}
	}
	f := w.denied("shop/web", "shop/db", 1)
	f.Connections = 9
	w.observe(f)
	w.pass(time.Minute)
	w.want("nine are not ten")
	each(2, 12*time.Second)
	w.want("two a second are twenty in ten", "many firing shop/web>-")
	for range 6 {
		f := w.denied("shop/web", "shop/db", 1)
		f.Connections = 4
		w.observe(f)
		w.pass(4 * time.Second)
	}
	w.want("fewer than over, but not than clear")
	w.pass(20 * time.Second)
	w.want("quiet", "many resolved shop/web>-")
}

func TestAConditionThatPassesWithinForDoesNotFire(t *testing.T) {
	w := newWorld(t, `
default_rules: false
rules:
- {name: many, match: {refused: true}, group: [source], count: {of: connections, over: 3, within: 5s}, for: 30s}
`)
	f := w.denied("shop/web", "shop/db", 1)
	f.Connections = 5
	w.observe(f)
	w.pass(2 * time.Minute)
	w.want("five at once, then none")
}

func TestBothNodesReportsCountOnce(t *testing.T) {
	w := newWorld(t, "")
	f := w.denied("shop/web", "shop/db", 3306)
	f.Connections = 3
	g := f
	g.Node, g.Verdict = "n2", flow.VerdictUnanswered
	w.observe(g, f)
	w.pass(10 * time.Second)
	if len(w.notified) != 1 || w.notified[0].Count != 3 {
		t.Errorf("%v, want one alert of 3 connections", w.notified)
	}
}

func TestNewEdgesAreSilentWhileLearning(t *testing.T) {
	metadata := func(w *world, from string) flow.Flow { return w.to(from, "169.254.169.254", 80) }
	w := newWorld(t, "")
	w.observe(w.to("shop/fresh", "203.0.113.7", 443), metadata(w, "shop/fresh"))
	w.pass(time.Minute)
	w.want("a workload that has just come", "new-edge-metadata firing shop/fresh>-")
	day := flow.Batch{Node: "n1", Start: w.now, End: w.now.Add(23 * time.Hour)}
	w.now = day.End
	w.e.Heard(w.now, &day)
	w.observe(w.to("shop/fresh", "198.51.100.7", 443))
	w.pass(time.Second)
	day.Start, day.End = day.End, day.End.Add(2*time.Hour)
	w.now = day.End
	w.e.Heard(w.now, &day)
	w.notified = nil
	w.observe(w.to("shop/fresh", "203.0.113.9", 443), w.to("shop/fresh", "192.0.2.7", 443))
	w.pass(time.Second)
	w.want("after a day that was watched, what was learned is known", "new-edge-outside firing shop/fresh>-")

	young := newWorld(t, "learning: 72h")
	young.observe(young.to("shop/web", "203.0.113.7", 443), metadata(young, "shop/web"))
	young.pass(time.Minute)
	young.want("a cluster that was watched for less")
}

func TestDenialsAfterAChangeNameItAndItsAuthor(t *testing.T) {
	w := newWorld(t, "")
	w.e.Changed(&flow.Change{Time: w.now, Kind: flow.ChangePolicy, Namespace: "shop", Name: "db", Author: "kubectl"})
	w.e.Changed(&flow.Change{Time: w.now, Kind: flow.ChangePolicy, Namespace: "other", Name: "db", Author: "argocd"})
	w.pass(time.Minute)
	for i := range 30 {
		w.observe(w.denied(fmt.Sprintf("shop/w%d", i), "shop/db", 3306))
	}
	w.pass(10 * time.Second)
	if len(w.notified) != 1 || w.notified[0].Rule != "denied-after-change" || !strings.Contains(w.notified[0].Summary, "policy shop/db changed at 2026-11-02T10:00:00Z by kubectl") {
		t.Errorf("%+v, want one alert that names the change", w.notified)
	}
	w.notified = nil
	w.pass(time.Hour)
	w.want("the change is long ago", "denied-after-change resolved ->-")

	w = newWorld(t, "")
	w.before = true
	w.e.Changed(&flow.Change{Time: w.now, Kind: flow.ChangePolicy, Namespace: "shop", Name: "db"})
	w.observe(w.denied("shop/web", "shop/db", 3306))
	w.pass(10 * time.Second)
	w.want("it was denied before the change too", "first-denied firing shop/web>shop/db")
}

func TestUnenforcedPoliciesAreOneAlertEach(t *testing.T) {
	w := newWorld(t, "")
	for i := range 20 {
		f := w.denied(fmt.Sprintf("shop/w%d", i), "shop/db", 3306)
		f.Verdict, f.Assessment = flow.VerdictAllowed, flow.AssessmentUnenforced
		w.observe(f)
		g := w.denied(fmt.Sprintf("shop/w%d", i), "shop/api", 80)
		g.Assessment, g.Expected, g.Policies = flow.AssessmentUnexplained, flow.VerdictAllowed, nil
		w.observe(g, g, g)
	}
	w.pass(time.Minute)
	rules := make(map[string]int)
	for _, a := range w.notified {
		rules[a.Rule]++
		if a.Rule == "unenforced" && !strings.Contains(a.Summary, "shop/db") {
			t.Errorf("%s does not name the policy", a.Summary)
		}
	}
	if rules["unenforced"] != 1 || rules["unexplained-denials"] != 20 {
		t.Errorf("%v, want one of unenforced, and one an edge of unexplained-denials", rules)
	}
}

func TestCoverageThatIsLost(t *testing.T) {
	w := newWorld(t, "")
	b := flow.Batch{Node: "n1", Start: w.now.Add(-10 * time.Second), End: w.now, Key: flow.BatchKey{Cluster: "c"}}
	w.e.Heard(w.now, &b)
	w.pass(4 * time.Minute)
	w.want("a node that is silent", "coverage-lost firing ->-")
	b.Start, b.End = w.now, w.now.Add(time.Second)
	for range 70 {
		w.e.Heard(w.now, &b)
		w.pass(10 * time.Second)
	}
	w.want("it reports again", "coverage-lost resolved ->-")
	b.Gaps = []flow.Gap{
		{Node: "n1", Kind: flow.GapDowntime, Start: w.now.Add(-20 * time.Second), End: w.now},
		{Node: "n1", Kind: flow.GapNames, Start: w.now, End: w.now},
	}
	w.e.Heard(w.now, &b)
	w.pass(time.Second)
	w.want("a restart is no loss")
	b.Gaps = []flow.Gap{{Node: "n1", Source: "conntrack", Kind: flow.GapOverrun, Start: w.now, End: w.now, Lost: 12}}
	w.e.Heard(w.now, &b)
	w.pass(time.Second)
	if len(w.notified) != 1 || w.notified[0].Detail != "overrun at conntrack, 12 lost" {
		t.Errorf("%+v", w.notified)
	}
	w.notified = nil
	w.e.Present([]string{"n2"})
	w.pass(30 * time.Minute)
	w.want("a node that is gone owes no word", "coverage-lost resolved ->-")
}

func TestSilencedAndAcknowledgedAlertsAreNotTold(t *testing.T) {
	w := newWorld(t, "")
	s := Silence{ID: "s1", Matchers: []Matcher{{"source", "=~", "shop/.*"}, {"alertname", "!=", "port-scan"}}, Starts: w.now, Ends: w.now.Add(10 * time.Minute)}
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	w.e.Silence([]Silence{s})
	w.observe(w.denied("shop/web", "shop/db", 3306), w.denied("ops/web", "shop/db", 3306))
	w.pass(time.Minute)
	w.want("one is silenced", "first-denied firing ops/web>shop/db")
	w.pass(10 * time.Minute)
	w.want("when the silence ends, what still fires is told", "first-denied firing shop/web>shop/db")
	var id string
	for _, a := range w.e.Alerts() {
		id = a.ID
		w.e.Acknowledge(map[string]Acknowledgment{id: {By: "ada", Until: w.now.Add(24 * time.Hour)}})
	}
	w.pass(time.Hour)
	w.notified = nil
	if got := w.saved[id]; got.Acknowledged == nil || got.Acknowledged.By != "ada" {
		t.Errorf("%+v is not acknowledged", got.Alert)
	}
}

func TestAnotherEngineGoesOn(t *testing.T) {
	w := newWorld(t, "")
	w.observe(w.denied("shop/web", "shop/db", 3306))
	w.pass(10 * time.Second)
	w.want("fires", "first-denied firing shop/web>shop/db")
	next := newWorld(t, "")
	next.now = w.now
	for _, r := range w.saved {
		text, err := EncodeRecord(&r)
		if err != nil {
			t.Fatal(err)
		}
		again, err := DecodeRecord(text)
		if err != nil {
			t.Fatal(err)
		}
		next.e.Restore([]Record{again}, next.now)
	}
	next.pass(10 * time.Second)
	next.want("it is not told again")
	next.pass(16 * time.Minute)
	next.want("but resolves", "first-denied resolved shop/web>shop/db")
}

func TestRulesThatChangeKeepTheirAlerts(t *testing.T) {
	w := newWorld(t, "")
	w.observe(w.denied("shop/web", "shop/db", 3306))
	w.pass(10 * time.Second)
	w.names()
	w.e.Configure(Parse([]byte("rules: [{name: first-denied, severity: critical}]")))
	w.pass(10 * time.Second)
	w.want("the same rule")
	w.e.Configure(Parse([]byte("rules: [{name: first-denied, enabled: false}]")))
	w.pass(10 * time.Second)
	w.want("no such rule any more", "first-denied resolved shop/web>shop/db")
}

func TestARuleHasSoManyAlertsAndNoMore(t *testing.T) {
	w := newWorld(t, "default_rules: false\nrules: [{name: r, match: {refused: true}, group: [source], new: denial}]")
	for i := range maxGroups + 100 {
		f := w.denied("shop/web", "shop/db", 3306)
		f.Source = pod("shop", fmt.Sprint("w", i))
		w.observe(f)
	}
	w.pass(time.Second)
	if len(w.notified) != maxGroups+1 || w.e.Stats().Overflow != 100 {
		t.Errorf("%d alerts, %+v", len(w.notified), w.e.Stats())
	}
}

// An hour of normal traffic with rollouts: pods come and go, policies change
// without denying what is used, and one refusal that was always there goes on.
func TestNormalTrafficRaisesNothing(t *testing.T) {
	w := newWorld(t, "")
	for i := range 50 {
		for _, f := range []flow.Flow{w.to(fmt.Sprintf("shop/w%d", i), "203.0.113.7", 443), w.denied("shop/old", "shop/db", 3306)} {
			b := flow.NewEdgeBuilder()
			f.Start, f.End = w.now.Add(-47*time.Hour), w.now.Add(-time.Minute)
			b.Add([]flow.Flow{f})
			w.e.Learn(b.Edges()[0])
		}
	}
	for minute := range 60 {
		if minute%10 == 0 {
			w.e.Changed(&flow.Change{Time: w.now, Kind: flow.ChangePolicy, Namespace: "shop", Name: "db", Author: "argocd"})
		}
		for i := range 50 {
			f := w.to(fmt.Sprintf("shop/w%d", i), fmt.Sprintf("shop/w%d", (i+1)%50), 8080)
			f.Source.Pod += fmt.Sprint(minute / 7) // a rollout
			u := w.to(fmt.Sprintf("shop/w%d", i), "203.0.113.80", 443)
			u.Verdict, u.Assessment = flow.VerdictUnanswered, flow.AssessmentUnanswered
			r := w.denied("shop/w1", "shop/w2", 8080) // while the plugin has not settled
			r.Expected, r.Assessment, r.Caveat, r.Verdict = flow.VerdictAllowed, flow.AssessmentUnknown, flow.CaveatRecent, flow.VerdictUnanswered
			w.observe(f, u, r, w.to(fmt.Sprintf("shop/w%d", i), "203.0.113.9", 443))
		}
		w.observe(w.denied("shop/old", "shop/db", 3306))
		b := flow.Batch{Node: "n1", Start: w.now, End: w.now.Add(time.Minute)}
		w.e.Heard(w.now, &b)
		w.pass(time.Minute)
	}
	w.want("an hour")
}

func BenchmarkObserve(b *testing.B) {
	w := newWorld(new(testing.T), "")
	var flows []flow.Flow
	for i := range 1000 {
		f := w.to(fmt.Sprintf("shop/w%d", i%100), fmt.Sprintf("shop/w%d", i%37), 8080)
		switch {
		case i%5 == 0:
			f = w.to(fmt.Sprintf("shop/w%d", i%100), fmt.Sprintf("198.51.%d.%d", i%7, i%250), 443)
		case i%50 == 1:
			f = w.denied(fmt.Sprintf("shop/w%d", i%100), fmt.Sprintf("shop/w%d", i%37), 8080)
		}
		flows = append(flows, f)
	}
	for b.Loop() {
		w.e.Observe(w.now, flows)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(flows)), "ns/flow")
}
