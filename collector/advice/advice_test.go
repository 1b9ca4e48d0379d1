package advice_test

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/flowaudit/flowaudit/collector/advice"
	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy/history"
	ht "github.com/flowaudit/flowaudit/policy/history/historytest"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// recorded is a store that gives what a test says was recorded.
type recorded struct {
	in      history.Input
	reading chan struct{} // if not nil, read from before edges are given
	err     error
}

func (r *recorded) Edges(_ context.Context, _ store.EdgesRequest, yield func(*flow.Edge) bool) error {
	if r.reading != nil {
		<-r.reading
	}
	for _, e := range r.in.Edges {
		if !yield(e) {
			break
		}
	}
	return r.err
}

func (r *recorded) Timeline(_ context.Context, _ flow.Sight, _, _ time.Time, yield func(flow.Change) bool) error {
	for _, c := range r.in.Changes {
		if !yield(c) {
			break
		}
	}
	return nil
}

func (r *recorded) Coverage(context.Context, flow.Sight, time.Time, time.Time) (flow.Coverage, error) {
	return r.in.Coverage, nil
}

func client(t *testing.T, s advice.Store) flowauditv1.AdviceClient {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "advice")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	flowauditv1.RegisterAdviceServer(server, advice.New(s, func(context.Context) flow.Sight { return flow.SeeAll() }))
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return flowauditv1.NewAdviceClient(conn)
}

// shop is a month in which web asked db.
func shop() *recorded {
	c := ht.New()
	web, db := c.Workload("Deployment shop/web", "app=web", ""), c.Workload("StatefulSet shop/db", "app=db", "")
	c.Talk(web, db, "5432")
	c.Policy(allow("db", "db", "web"), ht.Begin().Add(-time.Hour))
	return &recorded{in: c.Input}
}

// allow lets pods of one app, or with "" nobody, reach those of another.
func allow(name, to, from string) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": to}}, PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
		},
	}
	if from != "" {
		p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{
			PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": from}},
		}}}}
	}
	return p
}

func month() *flowauditv1.Span {
	return &flowauditv1.Span{Since: ht.Begin().UnixMilli(), Until: ht.End().UnixMilli()}
}

// answer is what a stream gave.
type answer struct {
	policies map[string]string // YAML by namespace/name
	report   map[string]any
	nodes    int // in the coverage
}

func collect(t *testing.T, stream grpc.ServerStreamingClient[flowauditv1.AdviceResponse], err error) (answer, error) {
	t.Helper()
	a := answer{policies: make(map[string]string)}
	if err != nil {
		return a, err
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return a, nil
		}
		if err != nil {
			return a, err
		}
		if p := m.GetPolicy(); p != nil {
			a.policies[p.GetNamespace()+"/"+p.GetName()] = p.GetYaml()
		}
		if r := m.GetReport(); r != nil {
			a.report, _ = r.AsInterface().(map[string]any)
			a.nodes = len(m.GetCoverage().GetNodes())
		}
	}
}

func TestSuggest(t *testing.T) {
	stream, err := client(t, shop()).Suggest(t.Context(), &flowauditv1.SuggestRequest{Span: month(), Namespaces: []string{"shop"}, Mode: "replace", Explain: true})
	a, err := collect(t, stream, err)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"shop/flowaudit-statefulset-db": "port: 5432", "shop/flowaudit-deployment-web": "- Egress"} {
		if !strings.Contains(a.policies[name], want) {
			t.Errorf("policy %s lacks %q; there are %v", name, want, a.policies)
		}
	}
	if a.report["mode"] != "replace" || a.nodes != 1 {
		t.Errorf("mode %v, coverage of %d nodes", a.report["mode"], a.nodes)
	}
	if n := len(a.report["policies"].([]any)); n != len(a.policies) {
		t.Errorf("%d policies in the report, %d sent", n, len(a.policies))
	}
}

func TestReplay(t *testing.T) {
	const deny = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}
`
	stream, err := client(t, shop()).Replay(t.Context(), &flowauditv1.ReplayRequest{Span: month(), Manifests: deny})
	a, err := collect(t, stream, err)
	if err != nil {
		t.Fatal(err)
	}
	if refused, _ := a.report["refused"].([]any); len(refused) != 1 {
		t.Errorf("report %v: want one flow refused", a.report)
	}
}

func TestUnused(t *testing.T) {
	r := shop()
	c := allow("web", "web", "db")
	cluster := ht.Cluster{Input: r.in}
	cluster.Policy(c, ht.Begin().Add(-time.Hour))
	r.in = cluster.Input
	stream, err := client(t, r).Unused(t.Context(), &flowauditv1.UnusedRequest{Span: month(), Namespaces: []string{"shop"}})
	a, err := collect(t, stream, err)
	if err != nil {
		t.Fatal(err)
	}
	rules, _ := a.report["rules"].([]any)
	if len(rules) != 1 {
		t.Errorf("report %v: want one rule", a.report)
	}
}

// TestBadRequests: what is wrong is said before anything is read.
func TestBadRequests(t *testing.T) {
	several := shop()
	several.in.Edges = append(several.in.Edges, &flow.Edge{EdgeKey: flow.EdgeKey{Cluster: "other"}})
	broken := shop()
	broken.err = errors.New("disk gone")
	for name, c := range map[string]struct {
		store *recorded
		ask   func(flowauditv1.AdviceClient) (grpc.ServerStreamingClient[flowauditv1.AdviceResponse], error)
		code  codes.Code
		want  string
	}{
		"mode":     {shop(), suggesting(&flowauditv1.SuggestRequest{Mode: "all"}), codes.InvalidArgument, `mode "all"`},
		"CIDR":     {shop(), suggesting(&flowauditv1.SuggestRequest{ClusterCidrs: []string{"10/8"}}), codes.InvalidArgument, `cluster_cidrs: "10/8"`},
		"cache":    {shop(), suggesting(&flowauditv1.SuggestRequest{DnsCaches: []string{"dns"}}), codes.InvalidArgument, `dns_caches: "dns"`},
		"CronJobs": {shop(), suggesting(&flowauditv1.SuggestRequest{CronJobs: "a: ["}), codes.InvalidArgument, "cron_jobs: read manifests"},
		"schedule": {shop(), suggesting(&flowauditv1.SuggestRequest{CronJobs: "apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: x}\nspec: {schedule: often}"}), codes.InvalidArgument, "CronJob default/x"},
		"span":     {shop(), suggesting(&flowauditv1.SuggestRequest{Span: &flowauditv1.Span{Since: 2, Until: 1}}), codes.InvalidArgument, "until is before since"},
		"clusters": {several, suggesting(&flowauditv1.SuggestRequest{Span: month()}), codes.InvalidArgument, "which cluster?"},
		"store":    {broken, suggesting(&flowauditv1.SuggestRequest{Span: month()}), codes.Internal, "disk gone"},
		"no change": {shop(), func(c flowauditv1.AdviceClient) (grpc.ServerStreamingClient[flowauditv1.AdviceResponse], error) {
			return c.Replay(t.Context(), &flowauditv1.ReplayRequest{})
		}, codes.InvalidArgument, "the change is empty"},
		"bad idle": {shop(), func(c flowauditv1.AdviceClient) (grpc.ServerStreamingClient[flowauditv1.AdviceResponse], error) {
			return c.Unused(t.Context(), &flowauditv1.UnusedRequest{Idle: -1})
		}, codes.InvalidArgument, "is not positive"},
	} {
		stream, err := c.ask(client(t, c.store))
		_, err = collect(t, stream, err)
		if status.Code(err) != c.code || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %s, %q", name, err, c.code, c.want)
		}
	}
}

func suggesting(req *flowauditv1.SuggestRequest) func(flowauditv1.AdviceClient) (grpc.ServerStreamingClient[flowauditv1.AdviceResponse], error) {
	return func(c flowauditv1.AdviceClient) (grpc.ServerStreamingClient[flowauditv1.AdviceResponse], error) {
		return c.Suggest(context.Background(), req)
	}
}

// TestOneAtATime: who comes while another request is computed is sent away.
func TestOneAtATime(t *testing.T) {
	r := shop()
	r.reading = make(chan struct{})
	c := client(t, r)
	first, err := c.Unused(t.Context(), &flowauditv1.UnusedRequest{Span: month()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.Recv(); err != nil { // progress: its turn has begun
		t.Fatal(err)
	}
	second, err := c.Unused(t.Context(), &flowauditv1.UnusedRequest{Span: month()})
	if _, err = collect(t, second, err); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("error %v", err)
	}
	close(r.reading)
	if _, err := collect(t, first, nil); err != nil {
		t.Error(err)
	}
}
