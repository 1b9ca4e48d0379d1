package collector

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/kube"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// objectsOf asks as flowaudit does, and reads the answer as it does.
func objectsOf(t *testing.T, r *running, at time.Time) (*kube.Snapshot, []string, error) {
	t.Helper()
	req := &flowauditv1.ObjectsRequest{}
	if !at.IsZero() {
		req.At = at.UnixMilli()
	}
	stream, err := flowauditv1.NewQueryClient(r.conn).Objects(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	var objects [][]byte
	var limits []string
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, nil, err
		}
		objects, limits = append(objects, part.GetObjects()...), append(limits, part.GetLimits()...)
	}
	s := kube.Decode(objects)
	if len(s.Problems) > 0 {
		t.Error(s.Problems)
	}
	return s, limits, nil
}

// described names pods with what policies see of them, and policies.
func described(s *kube.Snapshot) string {
	var out []string
	for _, p := range s.Pods {
		w := s.Workload(p)
		out = append(out, fmt.Sprintf("%s/%s of %s/%s role=%s %s on %q", p.Namespace, p.Name, w.Kind, w.Name, p.Labels["role"], p.Status.PodIP, p.Spec.NodeName))
	}
	slices.Sort(out)
	for _, p := range s.Policies {
		out = append(out, "policy "+p.Namespace+"/"+p.Name)
	}
	return strings.Join(out, "\n")
}

func TestObjectsOfNoCluster(t *testing.T) {
	s := &memory{}
	r := serve(t, s)
	defer r.close(t)
	if _, _, err := objectsOf(t, r, time.Time{}); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "start it with --kubeconfig") {
		t.Errorf("a collector without a cluster says %v", err)
	}
}

// knowing starts a collector that knows the shop since an hour.
func knowing(t *testing.T, s *memory) (*running, time.Time) {
	t.Helper()
	r := serveWith(t, s, Options{Manifests: t.TempDir()})
	<-r.ready
	now := time.Now()
	agent := shopPod("agent", nodeAddr)
	agent.Spec.HostNetwork = true
	r.index.Replace(&kube.Objects{
		Namespaces: []*corev1.Namespace{{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"team": "shop"}}}},
		Nodes: []*corev1.Node{{
			ObjectMeta: metav1.ObjectMeta{Name: "n1"},
			Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: nodeAddr.String()}}},
		}},
		Services: []*corev1.Service{{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.3", ClusterIPs: []string{"10.96.0.3"}}}},
		Pods:     []*corev1.Pod{shopPod("web", webAddr), shopPod("db", dbAddr), agent},
		Policies: []*networkingv1.NetworkPolicy{dbPolicy("api")},
	}, now.Add(-time.Hour))
	return r, now
}

func TestObjectsAsTheyAre(t *testing.T) {
	r, _ := knowing(t, &memory{})
	defer r.close(t)
	r.setOthers([]kube.OtherPolicy{
		{Group: "cilium.io", Kind: "CiliumNetworkPolicy", Namespace: "shop", Name: "l7", Object: json.RawMessage(`{"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicy","metadata":{"name":"l7","namespace":"shop"}}`)},
		{Group: "projectcalico.org", Kind: "GlobalNetworkPolicy"},
	})
	said, err := r.query().Status(t.Context(), &flowauditv1.StatusRequest{})
	if err != nil || !slices.Equal(said.GetCluster().GetPolicyDoubts(), []string{"CiliumNetworkPolicy shop/l7: it has neither spec nor specs", "GlobalNetworkPolicy: there is no permission to read policies of this kind"}) {
		t.Errorf("%v: in doubt: %q", err, said.GetCluster().GetPolicyDoubts())
	}
	s, limits, err := objectsOf(t, r, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	const want = `shop/agent of Pod/agent role=agent 192.168.0.1 on "n1"
shop/db of Pod/db role=db 10.1.0.3 on "n1"
shop/web of Pod/web role=web 10.1.0.1 on "n1"
policy shop/db-policy`
	if got := described(s); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	if p := s.Pods[0]; !p.Spec.HostNetwork || len(p.Spec.Containers) != 1 || p.Spec.Containers[0].Ports[0].Name != "mysql" {
		t.Errorf("%+v", p.Spec)
	}
	if len(s.Namespaces) != 1 || s.Namespaces[0].Labels["team"] != "shop" || len(s.Nodes) != 1 || s.Nodes[0].Status.Addresses[0].Address != nodeAddr.String() || s.Services[0].Spec.ClusterIPs[0] != "10.96.0.3" {
		t.Errorf("%v %v %v", s.Namespaces, s.Nodes, s.Services)
	}
	if len(s.OtherPolicies) != 1 || s.OtherPolicies[0].String() != "CiliumNetworkPolicy shop/l7" || !slices.Equal(limits, []string{"no permission to read policies of kind GlobalNetworkPolicy.projectcalico.org"}) {
		t.Errorf("%v, limits %q", s.OtherPolicies, limits)
	}
}

func TestObjectsAsTheyWere(t *testing.T) {
	m := &memory{recordErr: errors.New("the timeline is the test's")}
	r, now := knowing(t, m)
	defer r.close(t)
	at := now.Add(-time.Minute)
	if _, _, err := objectsOf(t, r, at); status.Code(err) != codes.NotFound || !strings.Contains(err.Error(), "the timeline begins later") {
		t.Errorf("where nothing is recorded: %v", err)
	}
	if _, _, err := objectsOf(t, r, now.Add(time.Hour)); status.Code(err) != codes.InvalidArgument {
		t.Errorf("the future: %v", err)
	}
	object := func(o any) []byte {
		text, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	report := flow.IdentityState{Namespace: "shop", Workload: flow.Workload{Kind: "CronJob", Name: "report"}, Labels: map[string]string{"role": "report"}}
	older := report
	older.Labels = map[string]string{"role": "old"}
	known := r.index.Endpoint(webAddr, now)
	m.mu.Lock()
	m.changes = []flow.Change{
		{Time: at.Add(-time.Hour), Cluster: "c", Kind: flow.ChangePolicy, Namespace: "shop", Name: "then", Object: object(dbPolicy("web"))},
		{Time: at.Add(-time.Hour), Cluster: "c", Kind: flow.ChangeNamespace, Name: "shop", Object: []byte(`{"team":"old"}`)},
		{Time: at.Add(-time.Hour), Cluster: "c", Kind: flow.ChangeIdentity, Namespace: "shop", Name: fmt.Sprintf("%016x", known.Identity), Object: object(flow.IdentityState{Workload: flow.Workload{Kind: "Pod", Name: "web"}})},
		{Time: at.Add(-time.Hour), Cluster: "c", Kind: flow.ChangeIdentity, Namespace: "shop", Name: "00000000000000aa", Object: object(report)},
		{Time: at.Add(-time.Hour), Cluster: "c", Kind: flow.ChangeIdentity, Namespace: "shop", Name: "00000000000000bb", Object: object(older)},
		{Time: at.Add(-time.Hour), Cluster: "elsewhere", Kind: flow.ChangePolicy, Namespace: "shop", Name: "foreign", Object: object(dbPolicy("web"))},
	}
	m.mu.Unlock()
	s, limits, err := objectsOf(t, r, at)
	if err != nil {
		t.Fatal(err)
	}
	const want = `shop/db of Pod/db role=db 10.1.0.3 on "n1"
shop/report of CronJob/report role=report  on ""
shop/report-00000000000000bb of CronJob/report role=old  on ""
shop/web of Pod/web role=web 10.1.0.1 on "n1"
policy shop/then`
	if got := described(s); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	if len(s.Namespaces) != 1 || s.Namespaces[0].Labels["team"] != "old" {
		t.Errorf("namespaces %v", s.Namespaces)
	}
	if len(limits) != 2 || !strings.HasPrefix(limits[1], "of 2 workloads no pod of that time is remembered") {
		t.Errorf("limits %q", limits)
	}
}
