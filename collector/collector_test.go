package collector

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/collector/store/duckdb"
	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/proto/dial"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

const shop = `
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {role: web}}
spec: {nodeName: node-1}
status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db-0, namespace: shop, labels: {role: db}}
spec: {nodeName: node-2}
status: {phase: Running, podIP: 10.0.0.2, podIPs: [{ip: 10.0.0.2}]}
`

// TestOverTheEmbeddedStore: from an agent's batch to every kind of answer, and
// all of it again after a restart.
func TestOverTheEmbeddedStore(t *testing.T) {
	data, manifests, socket := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "c.sock")
	for name, text := range map[string]string{"shop.yaml": shop, "broken.yaml": "kind: ["} {
		if err := os.WriteFile(filepath.Join(manifests, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	denied, unanswered := flowTo(3306, flow.VerdictDenied), flowTo(3306, flow.VerdictUnanswered)
	unanswered.Start, unanswered.End = denied.Start.Add(-time.Minute), denied.End.Add(-time.Minute)
	b := batchOf(1, denied, unanswered)
	b.Start, b.End = b.Start.Add(-2*time.Minute), b.Start
	b.Gaps = []flow.Gap{{Node: "node-1", Source: "nflog:100", Kind: flow.GapSequence, Start: b.Start, End: b.Start.Add(time.Second), Lost: 9}}
	onlyDenied := flowauditv1.FromFilter(flow.Filter{Match: flow.Selector{Verdicts: []flow.Verdict{flow.VerdictDenied}, To: flow.Ends{Namespaces: []string{"shop"}}}})
	for _, life := range []string{"at first", "after a restart"} {
		t.Run(life, func(t *testing.T) {
			s, err := duckdb.Open(t.Context(), duckdb.Options{Dir: data, Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			run(t, Options{Store: s, Cluster: "c", Manifests: manifests, Listen: ListenOptions{Address: "unix:" + socket}})
			conn, err := dial.Options{Address: "unix:" + socket}.Conn()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			c := &running{conn: conn}
			c.keep(t, b)
			c.keep(t, b)
			a, err := observe(t, c, &flowauditv1.ObserveRequest{Filter: onlyDenied, Last: 5})
			if err != nil || len(a.flows) != 1 || a.unanswered != 1 {
				t.Fatalf("%d flows, %d unanswered, %v", len(a.flows), a.unanswered, err)
			}
			if f := a.flows[0]; f.Source.Pod != "web-0" || f.Destination.Pod != "db-0" || f.Direction != flow.DirectionEgress || f.Port != 3306 {
				t.Errorf("flow %+v from %+v to %+v", f, f.Source, f.Destination)
			}
			if cover := a.coverage[0]; len(cover.Nodes) != 1 || cover.Nodes[0].Covered < time.Minute || len(cover.Nodes[0].Gaps) != 0 {
				t.Errorf("coverage %+v; want a minute, after the gap", cover)
			}
			columns, rows, coverage := ran(t, c, "denied-by-port", map[string]string{"since": "1h"})
			if len(rows) != 1 || rows[0][0] != "shop" || rows[0][2] != 3306.0 || columns[2] != "port" {
				t.Errorf("rows %v of %v", rows, columns)
			}
			if len(coverage) != 1 || len(coverage[0].Nodes) != 1 || coverage[0].Nodes[0].Covered != 2*time.Minute || len(coverage[0].Nodes[0].Gaps) != 1 {
				t.Errorf("coverage %+v; want two minutes of node-1, and its gap", coverage)
			}
			st := statusOf(t, c)
			if st.GetStore() != "duckdb" || st.GetFlows() != 2 || st.GetBytes() == 0 || st.GetPods() != 2 || st.GetUnnamed() != 0 {
				t.Errorf("status %v", st)
			}
			if p := st.GetProblems(); len(p) != 1 || !strings.Contains(p[0], "broken.yaml") {
				t.Errorf("problems %v, want one that names broken.yaml", p)
			}
		})
	}
}

// retainer notes what it is asked to delete.
type retainer struct {
	memory
	before []time.Time
	denied []time.Time
	edges  []time.Time
}

func (r *retainer) RetainEdges(_ context.Context, before time.Time) (int64, error) {
	r.edges = append(r.edges, before)
	return 0, nil
}

func (r *retainer) Retain(_ context.Context, keep store.Retention) (int64, error) {
	r.before, r.denied = append(r.before, keep.Since), append(r.denied, keep.DeniedSince())
	if len(r.before) == 2 {
		return 0, errDisk
	}
	return 5, nil
}

// TestOldFlowsAreDeletedAgainAndAgain: also after it has failed once.
func TestOldFlowsAreDeletedAgainAndAgain(t *testing.T) {
	for _, test := range []struct {
		retain time.Duration
		want   int
	}{{time.Hour, 4}, {0, 0}} {
		synctest.Test(t, func(t *testing.T) {
			s := &retainer{}
			c, err := newCollector(Options{Log: slog.New(slog.DiscardHandler), Store: s, Retain: Retain{Flows: test.retain, Denied: 3 * test.retain, Edges: 2 * test.retain}}, &authenticator{})
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			ctx, stop := context.WithTimeout(t.Context(), 3*retainInterval+time.Second)
			defer stop()
			if err := c.retain(ctx); err != nil {
				t.Fatal(err)
			}
			if len(s.edges) != test.want {
				t.Errorf("edges deleted %d times, want %d", len(s.edges), test.want)
			}
			if len(s.before) != test.want {
				t.Fatalf("deleted %d times, want %d", len(s.before), test.want)
			}
			for i, before := range s.before {
				if want := began.Add(time.Duration(i)*retainInterval - test.retain); !before.Equal(want) {
					t.Errorf("deleted what is older than %s, want %s", before, want)
				}
				if denied, edges := s.denied[i], s.edges[i]; !denied.Equal(before.Add(-2*test.retain)) || !edges.Equal(before.Add(-test.retain)) {
					t.Errorf("refused flows older than %s and edges older than %s were deleted", denied, edges)
				}
			}
		})
	}
}

var _ store.Store = (*retainer)(nil)
