package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/flow"
	ht "github.com/flowaudit/flowaudit/policy/history/historytest"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// recorded answers questions about edges and changes.
type recorded struct {
	edges   []*flow.Edge
	changes []flow.Change
}

func (c *collector) Edges(req *flowauditv1.EdgesRequest, stream flowauditv1.Query_EdgesServer) error {
	if c.recorded == nil {
		return c.err
	}
	for part := range slices.Chunk(c.recorded.edges, 7) {
		if err := stream.Send(flowauditv1.FromEdges(part)); err != nil {
			return err
		}
	}
	since, until := time.UnixMilli(req.GetSince()), time.UnixMilli(req.GetUntil())
	return stream.Send(&flowauditv1.EdgesResponse{Coverage: flowauditv1.FromCoverage(flow.Coverage{
		Since: since, Until: until, Nodes: []flow.NodeCoverage{{Node: "n1", Covered: until.Sub(since)}},
	})})
}

func (c *collector) Timeline(_ *flowauditv1.TimelineRequest, stream flowauditv1.Query_TimelineServer) error {
	if c.recorded == nil {
		return c.err
	}
	for _, x := range c.recorded.changes {
		if err := stream.Send(&flowauditv1.TimelineResponse{Changes: []*flowauditv1.Change{flowauditv1.FromChange(x)}}); err != nil {
			return err
		}
	}
	return nil
}

// shop is a month of a small shop.
func shop() *ht.Cluster {
	c := ht.New()
	dns := c.Workload("Deployment kube-system/coredns", "k8s-app=kube-dns", "dns=53/udp,dns-tcp=53")
	web := c.Workload("Deployment shop/web", "app.kubernetes.io/name=web,app.kubernetes.io/version=2.1", "http=8080")
	api := c.Workload("Deployment shop/api", "app.kubernetes.io/name=api,app.kubernetes.io/version=5", "")
	db := c.Workload("StatefulSet shop/db", "app.kubernetes.io/name=postgres,app.kubernetes.io/instance=shop", "sql=5432")
	stats := c.Workload("StatefulSet shop/stats", "app.kubernetes.io/name=postgres,app.kubernetes.io/instance=stats", "sql=5432")
	report := c.Workload("CronJob shop/report", "app.kubernetes.io/name=report", "")
	node := ht.Node("node-1", "192.168.7.1")
	for _, p := range []*ht.Pods{web, api, report} {
		c.Talk(p, dns, "53/udp")
	}
	c.Talk(ht.Node("ingress-1", "192.168.7.9"), web, "8080")
	c.Talk(web, api, "9000") // asked for at port 80 of the Service api
	c.Talk(api, db, "5432")
	c.Talk(report, db, "5432").Hours = 30
	c.Talk(report, stats, "5432").Hours = 30
	c.Talk(api, ht.Outside("198.51.100.10"), "443")
	c.Talk(api, ht.Outside("198.51.100.11"), "443")
	c.Talk(api, ht.Outside("2001:db8::10"), "443")
	c.Talk(db, stats, "3868/sctp")
	c.Talk(node, web, "8080").Exempt = flow.ExemptOwnNode
	ht.Refuse(c.Talk(web, db, "5432"))
	return c
}

func asking(c *ht.Cluster) *collector {
	return &collector{recorded: &recorded{c.Input.Edges, c.Input.Changes}}
}

// month bounds what shop recorded.
func month(args ...string) []string {
	return append(args, "--since", ht.Begin().Format(time.RFC3339), "--until", ht.End().Format(time.RFC3339))
}

func TestSuggestOutput(t *testing.T) {
	for name, args := range map[string][]string{
		"yaml":      {"-n", "shop"},
		"explain":   {"-n", "shop", "--workload", "api", "--explain"},
		"json":      {"-n", "shop", "--workload", "web", "--egress", "-o", "json"},
		"namespace": {"-n", "shop", "--isolation", "namespace"},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"suggest"}, month(args...)...)
			golden(t, "suggest-"+name, transcript(flowaudit(t, asking(shop()), nil, args...), args...))
		})
	}
}

func TestSuggestWritesAFileAPolicy(t *testing.T) {
	dir := t.TempDir()
	r := flowaudit(t, asking(shop()), nil, month("suggest", "-A", "-o", "dir", "--dir", dir)...)
	if r.code != exitOK {
		t.Fatalf("exit code %d: %s", r.code, r.stderr)
	}
	text, err := os.ReadFile(filepath.Join(dir, "shop", "flowaudit-deployment-web.yaml"))
	if err != nil || !strings.HasPrefix(string(text), "# Deployment shop/web\napiVersion: networking.k8s.io/v1\n") {
		t.Errorf("%v: %s", err, text)
	}
	if _, err := os.Stat(filepath.Join(dir, "kube-system", "flowaudit-deployment-coredns.yaml")); err != nil {
		t.Error(err)
	}
}

func TestSuggestWaitsForCronJobs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "jobs.yaml")
	job := "apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: yearly, namespace: shop}\nspec: {schedule: \"0 3 1 1 *\", timeZone: Europe/Berlin}\n"
	if err := os.WriteFile(path, []byte(job), 0o600); err != nil {
		t.Fatal(err)
	}
	r := flowaudit(t, asking(shop()), nil, month("suggest", "-n", "shop", "--cronjobs", path, "--require-ready")...)
	if want := "CronJob shop/yearly: its schedule (0 3 1 1 *) has not come yet; the next is 2027-01-01 02:00"; r.code != exitRefused || !strings.Contains(r.stderr, want) {
		t.Errorf("exit code %d, want %d and %q: %s", r.code, exitRefused, want, r.stderr)
	}
}

func TestSuggestRefusesWhatCannotBe(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "-n names namespaces, -A means all"},
		{[]string{"-A", "-n", "shop"}, "exclude each other"},
		{[]string{"-A", "--mode", "guess"}, "want add, replace or tighten"},
		{[]string{"-A", "--port-slack", "1"}, "below"},
		{[]string{"-A", "--cluster-cidr", "10"}, "is no CIDR"},
		{[]string{"-A", "--dns-cache", "dns"}, "is no IP address"},
		{[]string{"-A", "--ready-after", "soon"}, "want a time such as 7d"},
		{[]string{"-A", "--cronjobs", "cluster"}, "--cronjobs cluster needs a kubeconfig"},
		{[]string{"-A", "-o", "xml"}, "want yaml, json or dir"},
		{[]string{"-A", "--since", "1h", "--until", "2h"}, "is before --since"},
		{[]string{"-A", "--workload", "a/b/c/d"}, "is no workload"},
		{[]string{"-A", "--mode", "tighten", "--isolation", "namespace"}, "does not go with"},
	} {
		if c.want == "below" {
			c.want = "less than 1"
		}
		r := flowaudit(t, asking(shop()), nil, append([]string{"suggest"}, c.args...)...)
		if r.code != exitUsage || !strings.Contains(r.stderr, c.want) {
			t.Errorf("%v: exit code %d, want %d and %q: %s", c.args, r.code, exitUsage, c.want, r.stderr)
		}
	}
}

func TestSeveralClustersAreAskedFor(t *testing.T) {
	c := shop()
	c.Input.Edges[0].Cluster = "other"
	r := flowaudit(t, asking(c), nil, month("unused")...)
	if r.code != exitUsage || !strings.Contains(r.stderr, "which cluster?") {
		t.Errorf("exit code %d: %s", r.code, r.stderr)
	}
}

// allowDB is a policy of the shop's database, for some clients.
func allowDB(clients ...string) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"}}
	p.Spec.PodSelector.MatchLabels = ht.Labels("app.kubernetes.io/name=postgres")
	var peers []networkingv1.NetworkPolicyPeer
	for _, c := range clients {
		peers = append(peers, networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app.kubernetes.io/name": c}}})
	}
	p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: peers}}
	return p
}

const dbManifest = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app.kubernetes.io/name: postgres}}
  ingress:
    - from: [{podSelector: {matchLabels: {app.kubernetes.io/name: api}}}, {podSelector: {matchLabels: {app.kubernetes.io/name: web}}}]
`

func TestReplayOutput(t *testing.T) {
	c := shop()
	c.Policy(allowDB("api", "report", "postgres"), ht.Begin().Add(-time.Hour))
	path := filepath.Join(t.TempDir(), "db.yaml")
	if err := os.WriteFile(path, []byte(dbManifest), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"text": nil, "json": {"-o", "json"}, "markdown": {"-o", "markdown"}, "whole": {"--whole", "-n", "shop"},
	} {
		t.Run(name, func(t *testing.T) {
			r := flowaudit(t, asking(c), nil, append(month("replay", "--manifests", path), args...)...)
			golden(t, "replay-"+name, transcript(r, append(month("replay", "--manifests", "db.yaml"), args...)...))
		})
	}
	t.Run("delete", func(t *testing.T) {
		args := month("replay", "--delete", "shop/db")
		golden(t, "replay-delete", transcript(flowaudit(t, asking(c), nil, args...), args...))
	})
	t.Run("watch", func(t *testing.T) {
		x := asking(c)
		for i := range x.recorded.changes {
			x.recorded.changes[i].Time = here.Add(-time.Hour)
		}
		x.observe = []*flowauditv1.ObserveResponse{{Flows: flowauditv1.FromFlows(liveFlows(c))}}
		args := []string{"replay", "--manifests", path, "--watch"}
		r := flowaudit(t, x, nil, args...)
		args[2] = "db.yaml"
		golden(t, "replay-watch", transcript(r, args...))
	})
}

// liveFlows are one that the change refuses, and one that it does not.
func liveFlows(c *ht.Cluster) []flow.Flow {
	var out []flow.Flow
	for n, e := range c.Input.Edges {
		if e.Destination.Workload.Name != "db" || e.Source.Kind != flow.EndpointPod {
			continue
		}
		end := func(x flow.EdgeEnd, labels map[string]string, pod string) *flow.Endpoint {
			return &flow.Endpoint{Kind: x.Kind, Namespace: x.Namespace, Pod: pod, Workload: x.Workload, Identity: x.Identity, Labels: labels}
		}
		f := flow.Flow{
			Key:   flow.Key{Protocol: e.Protocol, Port: e.Port, Src: netip.MustParseAddr(fmt.Sprintf("10.1.0.%d", n)), Dst: netip.MustParseAddr("10.1.1.1"), Verdict: e.Verdict, Direction: e.Direction},
			Start: at(float64(n)), End: at(float64(n)), Node: "n1", Connections: 1, Expected: e.Expected,
			Source: end(e.Source, e.SourceLabels, "a"), Destination: end(e.Destination, e.DestinationLabels, "b"),
		}
		out = append(out, f)
	}
	return out
}

func TestReplayRefusesWhatCannotBe(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "the change is empty"},
		{[]string{"--delete", "db"}, "want namespace/name"},
		{[]string{"-n", "shop", "--delete", "a/b"}, "-n goes with --whole"},
		{[]string{"--delete", "a/b", "--watch", "-o", "markdown"}, "--watch writes text or json"},
	} {
		r := flowaudit(t, asking(shop()), nil, append([]string{"replay"}, c.args...)...)
		if r.code != exitUsage || !strings.Contains(r.stderr, c.want) {
			t.Errorf("%v: exit code %d, want %d and %q: %s", c.args, r.code, exitUsage, c.want, r.stderr)
		}
	}
}

func TestUnusedOutput(t *testing.T) {
	c := shop()
	c.Policy(allowDB("api", "report", "web", "nobody"), ht.Begin().Add(-time.Hour))
	for _, format := range []string{"table", "json"} {
		args := month("unused", "--for", "20d", "-o", format)
		golden(t, "unused-"+format, transcript(flowaudit(t, asking(c), nil, args...), args...))
	}
}

func TestHelpOfWhatComputes(t *testing.T) {
	for _, name := range []string{"suggest", "replay", "unused"} {
		r := flowaudit(t, nil, nil, name, "--help")
		if !strings.Contains(r.stdout, "Examples:") {
			t.Errorf("%s: no example", name)
		}
		golden(t, "help-"+name, transcript(r, name, "--help"))
	}
}

// The page about suggestions shows what the commands say.
func TestSuggestPageIsTrue(t *testing.T) {
	page, err := os.ReadFile("../../docs/suggest.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		golden string
		stderr bool // all of it is shown, or that only
		stdout bool
	}{{"suggest-explain", false, true}, {"suggest-yaml", true, false}, {"replay-text", true, true}, {"unused-table", true, true}} {
		text, err := os.ReadFile(filepath.Join("testdata", c.golden+".txt"))
		if err != nil {
			t.Fatal(err)
		}
		_, said, _ := strings.Cut(string(text), "\n")
		stdout, rest, _ := strings.Cut(said, "--- standard error\n")
		stderr, _, _ := strings.Cut(rest, "--- exit code")
		if c.stdout && !strings.Contains(string(page), stdout) || c.stderr && !strings.Contains(string(page), stderr) {
			t.Errorf("docs/suggest.md does not show what testdata/%s.txt has", c.golden)
		}
	}
}
