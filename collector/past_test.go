package collector

import (
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/collector/store/duckdb"
	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/kube"
	recorded "github.com/flowaudit/flowaudit/policy/history"
	"github.com/flowaudit/flowaudit/policy/suggest"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// What agents report becomes policies: named, judged, stored in DuckDB, asked
// for as edges with the timeline, suggested and proven.
func TestReportsBecomePolicies(t *testing.T) {
	s, err := duckdb.Open(t.Context(), duckdb.Options{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r := serve(t, s)
	defer r.close(t)
	now := time.Now()
	r.index.Replace(&kube.Objects{
		Namespaces: []*corev1.Namespace{{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}},
		Nodes: []*corev1.Node{{
			ObjectMeta: metav1.ObjectMeta{Name: "n1"},
			Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: nodeAddr.String()}}},
		}},
		Pods: []*corev1.Pod{shopPod("web", webAddr), shopPod("api", apiAddr), shopPod("db", dbAddr)},
	}, now.Add(-time.Hour))
	talk := func(f flow.Flow) flow.Flow { f.Direction, f.Cluster = flow.DirectionEgress, "c"; return f }
	toFar := talk(seen(webAddr, 443, flow.VerdictAllowed, now))
	toFar.Dst = farAddr
	r.keep(t, batchFrom("n1", 1,
		talk(seen(apiAddr, 3306, flow.VerdictAllowed, now)), talk(seen(webAddr, 3306, flow.VerdictUnanswered, now)), toFar,
		talk(seen(nodeAddr, 3306, flow.VerdictAllowed, now)), talk(seen(dbAddr, 3306, flow.VerdictAllowed, now)),
	))
	h := recordedBy(t, r)
	result, err := suggest.Run(h, suggest.Options{Namespaces: []string{"shop"}})
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	if err := result.WriteYAML(&text, false); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"name: flowaudit-default-deny", "name: flowaudit-pod-db", "port: mysql", "role: api", "cidr: 203.0.113.5/32"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is missing in\n%s", want, text.String())
		}
	}
	if !result.Proven() || result.Proof.Edges != 5 || strings.Contains(text.String(), nodeAddr.String()) {
		t.Errorf("proof %+v; a probe by the own node needs no rule:\n%s", result.Proof, text.String())
	}
}

// recordedBy asks a collector as flowaudit does.
func recordedBy(t *testing.T, r *running) *recorded.History {
	t.Helper()
	in := recorded.Input{Since: time.Now().Add(-2 * time.Hour), Until: time.Now().Add(time.Minute)}
	edges, err := r.query().Edges(t.Context(), &flowauditv1.EdgesRequest{Since: in.Since.UnixMilli(), Until: in.Until.UnixMilli()})
	if err != nil {
		t.Fatal(err)
	}
	for {
		part, err := edges.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		more, err := part.ToEdges()
		if err != nil {
			t.Fatal(err)
		}
		in.Edges = append(in.Edges, more...)
		in.Coverage = flowauditv1.ToCoverage(part.GetCoverage())
	}
	for len(in.Changes) < 4 { // the timeline is written behind
		timeline, err := r.query().Timeline(t.Context(), &flowauditv1.TimelineRequest{Since: in.Since.UnixMilli(), Until: in.Until.UnixMilli()})
		if err != nil {
			t.Fatal(err)
		}
		in.Changes = nil
		for {
			part, err := timeline.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range part.GetChanges() {
				c, err := flowauditv1.ToChange(m)
				if err != nil {
					t.Fatal(err)
				}
				in.Changes = append(in.Changes, c)
			}
		}
	}
	h, err := recorded.New(in)
	if err != nil {
		t.Fatal(err)
	}
	return h
}
