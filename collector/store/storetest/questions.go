package storetest

import (
	"embed"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/queries"
)

//go:embed testdata
var golden embed.FS

// asked are the arguments that questions are asked with beside their defaults;
// a since that is not among them is T0.
func asked(question string) map[string]string {
	switch question {
	case "flows-of-address", "holders-of-address":
		return map[string]string{"address": "10.0.0.1", "until": instant(minute(100))}
	case "reached-by":
		return map[string]string{"namespace": "shop", "workload": "web", "hops": "3"}
	case "reaches":
		return map[string]string{"namespace": "bank", "workload": "ledger", "hops": "2"}
	case "port-scans":
		return map[string]string{"ports": "5"}
	case "host-scans":
		return map[string]string{"hosts": "5"}
	case "new-edges":
		return map[string]string{"since": instant(minute(60))}
	case "first-denied":
		return map[string]string{"since": instant(minute(1))}
	case "unused-rules", "policy-changes":
		return map[string]string{"since": instant(minute(-60))}
	case "denied-over-time":
		return map[string]string{"seconds": "600"}
	}
	return map[string]string{}
}

func instant(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func arguments(q *queries.Question) map[string]string {
	args := asked(q.Name)
	for _, a := range q.Args {
		if _, given := args[a.Name]; a.Name == "since" && !given {
			args[a.Name] = instant(T0)
		}
	}
	return args
}

// questions compares the answer to every question over one data set with the
// golden one, which is the same for every store.
func questions(t *testing.T, s Fixture) {
	scene(t, s)
	for _, q := range queries.All() {
		rows, err := s.Query(t.Context(), flow.SeeAll(), q.Name, arguments(&q))
		if err != nil {
			t.Errorf("%s: %v", q.Name, err)
			continue
		}
		got := table(rows)
		if s.Update {
			if err := os.WriteFile(filepath.Join("..", "storetest", "testdata", q.Name+".txt"), []byte(got), 0o600); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := golden.ReadFile("testdata/" + q.Name + ".txt")
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), got); d != "" {
			t.Errorf("%s: %s", q.Name, d)
		}
		if len(rows.Rows) == 0 {
			t.Errorf("%s: the data set has nothing for it to find", q.Name)
		}
	}
}

func questionsOfNothing(t *testing.T, s Fixture) {
	for _, q := range queries.All() {
		rows, err := s.Query(t.Context(), flow.SeeAll(), q.Name, arguments(&q))
		if err != nil {
			t.Errorf("%s: %v", q.Name, err)
		} else if len(rows.Rows) != 0 || len(rows.Columns) == 0 {
			t.Errorf("%s: %d rows of %v", q.Name, len(rows.Rows), rows.Columns)
		}
	}
}

// table shows an answer as text.
func table(rows store.Rows) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 8, 2, ' ', tabwriter.TabIndent)
	fmt.Fprintln(w, strings.Join(rows.Columns, "\t"))
	for _, r := range rows.Rows {
		cells := make([]string, len(r))
		for i, v := range r {
			switch x := v.(type) {
			case nil:
				cells[i] = "null"
			case string:
				cells[i] = fmt.Sprintf("%q", x)
			case time.Time:
				cells[i] = x.UTC().Format(time.RFC3339Nano)
			default:
				cells[i] = fmt.Sprintf("%v", x)
			}
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	_ = w.Flush() // into memory
	return b.String()
}

// actor is an end of the scene.
type actor struct {
	addr netip.Addr
	end  *flow.Endpoint
}

func podActor(addr, node, namespace, pod, workload string) actor {
	return actor{netip.MustParseAddr(addr), &flow.Endpoint{
		Kind: flow.EndpointPod, Namespace: namespace, Pod: pod, Workload: flow.Workload{Kind: "Deployment", Name: workload}, Node: node,
		Identity: 0xa000000000000000 + uint64(len(namespace)*100+len(workload)*10) + uint64(workload[0]), Labels: map[string]string{"app": workload},
	}}
}

func bareActor(addr string, kind flow.EndpointKind) actor {
	return actor{netip.MustParseAddr(addr), &flow.Endpoint{Kind: kind}}
}

// seen is a flow of the scene as one node reports it.
func seen(node string, from, to actor, port uint16, verdict flow.Verdict, at time.Duration, connections uint64) flow.Flow {
	f := flow.Flow{
		Key:   flow.Key{Protocol: flow.TCP, Src: from.addr, Dst: to.addr, Port: port, Verdict: verdict, Direction: flow.DirectionEgress},
		Start: T0.Add(at), End: T0.Add(at + 5*time.Second), Cluster: "c", Node: node, Source: from.end, Destination: to.end,
		SourcePort: 40000, Reason: flow.ReasonReply, Expected: flow.VerdictAllowed, Sources: flow.SourceConntrack,
		Connections: connections, Counted: true,
		Sent: flow.Counters{Packets: 2 * connections, Bytes: 100 * connections}, Received: flow.Counters{Packets: connections, Bytes: 1000 * connections},
	}
	switch verdict {
	case flow.VerdictDenied:
		f.Reason, f.Expected, f.Received, f.Sources = flow.ReasonLogged, flow.VerdictDenied, flow.Counters{}, flow.SourceNFLOG
		f.Policies = []flow.PolicyRef{{Kind: "NetworkPolicy", Namespace: to.end.Namespace, Name: "default-deny", Side: "ingress"}}
	case flow.VerdictUnanswered:
		f.Reason, f.Counted, f.Sent, f.Received = flow.ReasonNoReply, false, flow.Counters{}, flow.Counters{}
	}
	f.Assessment = flow.Assess(f.Verdict, f.Expected)
	return f
}

// scene stores a few hours of a small cluster, two nodes' reports among them.
func scene(t *testing.T, s Fixture) {
	web, api := podActor("10.0.0.1", "n1", "shop", "web-1", "web"), podActor("10.0.0.2", "n2", "shop", "api-1", "api")
	db, ledger := podActor("10.0.0.3", "n2", "shop", "db-0", "db"), podActor("10.0.0.4", "n2", "bank", "ledger-0", "ledger")
	later := podActor("10.0.0.1", "n1", "bank", "batch-7", "batch") // has web's address later
	outside, metadata := bareActor("203.0.113.7", flow.EndpointOutside), bareActor("169.254.169.254", flow.EndpointOutside)
	server := bareActor("192.168.0.1", flow.EndpointAPIServer)
	const allowed, denied, unanswered = flow.VerdictAllowed, flow.VerdictDenied, flow.VerdictUnanswered

	byRule := seen("n1", web, api, 8080, allowed, 10*time.Second, 5)
	byRule.Policies = []flow.PolicyRef{{Kind: "NetworkPolicy", Namespace: "shop", Name: "api", Rule: "ingress[0]", Side: "ingress"}}
	byRule.Service = &flow.Service{Addr: netip.MustParseAddr("10.96.0.9"), Port: 80, Namespace: "shop", Name: "api"}
	twin := byRule // the other node's report of the same connections
	twin.Node, twin.Connections, twin.Direction, twin.Service = "n2", 4, flow.DirectionIngress, nil
	refused := seen("n2", web, db, 3306, denied, 70*time.Second, 3)
	refused.Direction = flow.DirectionIngress
	refused.Policies = append(refused.Policies, flow.PolicyRef{Kind: "NetworkPolicy", Namespace: "shop", Name: "db", Side: "ingress"})
	sent := seen("n1", web, db, 3306, unanswered, 69*time.Second, 3)
	sent.Expected, sent.Assessment = flow.VerdictDenied, flow.AssessmentEnforced
	bothRefuse := seen("n1", api, ledger, 443, denied, 700*time.Second, 2)
	bothRefuse.Policies = []flow.PolicyRef{{Kind: "NetworkPolicy", Namespace: "shop", Name: "api", Side: "egress"}}
	otherSide := bothRefuse
	otherSide.Node, otherSide.Connections = "n2", 1
	unenforced := seen("n2", api, ledger, 5432, allowed, 800*time.Second, 1)
	unenforced.Expected, unenforced.Assessment = flow.VerdictDenied, flow.AssessmentUnenforced
	unexplained := seen("n2", ledger, db, 9999, denied, 900*time.Second, 1)
	unexplained.Expected, unexplained.Assessment, unexplained.Policies = allowed, flow.AssessmentUnexplained, nil
	between := seen("n1", web, ledger, 8444, unanswered, 950*time.Second, 2)
	between.Reason = flow.ReasonLostBetween
	noRoute := seen("n1", web, outside, 8445, denied, 960*time.Second, 1)
	noRoute.Reason, noRoute.Assessment, noRoute.Caveat, noRoute.Policies = flow.ReasonNoRoute, flow.AssessmentUnknown, flow.CaveatOtherCause, nil
	kubernetes := seen("n1", web, server, 6443, allowed, 65*time.Minute, 2)
	kubernetes.Service = &flow.Service{Addr: netip.MustParseAddr("10.96.0.1"), Port: 443, Namespace: "default", Name: "kubernetes"}
	first := []flow.Flow{
		byRule, sent, bothRefuse, between, noRoute, seen("n1", web, outside, 443, allowed, 20*time.Second, 2), seen("n1", web, metadata, 80, denied, 30*time.Second, 1),
		kubernetes, seen("n1", web, db, 3306, allowed, 5*time.Minute, 1), seen("n1", later, outside, 25, allowed, 90*time.Minute, 7),
	}
	second := []flow.Flow{
		twin, refused, otherSide, unenforced, unexplained, seen("n2", api, db, 5432, allowed, 50*time.Second, 6), seen("n2", db, ledger, 8443, allowed, 55*time.Second, 1),
	}
	for port := range uint16(6) { // a scan of ports
		second = append(second, seen("n2", ledger, api, 7000+port, denied, 20*time.Minute+time.Duration(port)*time.Second, 1))
	}
	for host := range 6 { // a scan of hosts
		first = append(first, seen("n1", web, bareActor(fmt.Sprintf("10.0.9.%d", host+1), flow.EndpointUnknown), 22, unanswered, 21*time.Minute, 1))
	}
	for window := range 8 { // a connection of 70 minutes
		f := seen("n2", api, db, 5433, allowed, time.Duration(window)*10*time.Minute, 0)
		f.Sent, f.Received = flow.Counters{Packets: 1, Bytes: 10}, flow.Counters{Packets: 1, Bytes: 20}
		second = append(second, f)
	}
	b1, b2 := batch(1, first...), batch(1, second...)
	b2.Node, b2.Key.Instance = "n2", "n2"
	b2.Gaps = []flow.Gap{{Node: "n2", Source: "conntrack", Kind: flow.GapOverrun, Start: minute(3), End: minute(4), Lost: 12, Detail: "the socket was full"}}
	must(t, s, b1)
	must(t, s, b2)
	s.Advance(2 * time.Hour)
	must(t, s, b2, batch(2)) // a resend counts for nothing, in another slice too
	scenePolicies(t, s)
}

func scenePolicies(t *testing.T, s Fixture) {
	set := func(at int, namespace, name, object string) flow.Change {
		return flow.Change{Time: minute(at), Cluster: "c", Kind: flow.ChangePolicy, Namespace: namespace, Name: name, Author: "kubectl", Object: []byte(object)}
	}
	gone := set(7, "bank", "old", "")
	gone.Deleted, gone.Object = true, nil
	record(t, s,
		set(0, "shop", "default-deny", `{"spec":{"podSelector":{},"policyTypes":["Ingress"]}}`),
		set(0, "shop", "api", `{"spec":{"podSelector":{"matchLabels":{"app":"api"}},"policyTypes":["Ingress","Egress"],"ingress":[{},{}],"egress":[{}]}}`),
		set(1, "bank", "old", `{"spec":{"podSelector":{},"policyTypes":["Egress"]}}`), gone,
		flow.Change{Time: minute(0), Cluster: "c", Kind: flow.ChangeNamespace, Name: "shop", Object: []byte(`{"team":"a"}`)},
		flow.Change{Time: minute(2), Cluster: "c", Kind: flow.ChangeIdentity, Namespace: "shop", Name: "a0000000000000aa", Object: []byte(`{"namespace":"shop"}`)},
	)
}
