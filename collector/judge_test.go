package collector

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/kube"
	"github.com/flowaudit/flowaudit/policy"
	"github.com/flowaudit/flowaudit/policy/other"
)

var (
	webAddr  = netip.MustParseAddr("10.1.0.1")
	apiAddr  = netip.MustParseAddr("10.1.0.2")
	dbAddr   = netip.MustParseAddr("10.1.0.3")
	nodeAddr = netip.MustParseAddr("192.168.0.1")
	farAddr  = netip.MustParseAddr("203.0.113.5")
	judged   = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
)

// dbPolicy lets only pods of a role reach the database's port mysql.
func dbPolicy(role string) *networkingv1.NetworkPolicy {
	port := intstr.FromString("mysql")
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db-policy"},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"role": "db"}},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From:  []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"role": role}}}},
				Ports: []networkingv1.NetworkPolicyPort{{Port: &port}},
			}},
		},
	}
}

func shopPod(name string, addr netip.Addr) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{"role": name}},
		Spec:       corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "mysql", ContainerPort: 3306}}}}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: addr.String()}}},
	}
}

// court is a judge over a small shop.
type court struct {
	*judge
	index   *kube.Index
	changes []flow.Change
}

func newCourt(t *testing.T, policies ...*networkingv1.NetworkPolicy) *court {
	t.Helper()
	h, err := newHistory()
	if err != nil {
		t.Fatal(err)
	}
	c := &court{}
	c.index = kube.New(kube.Options{Changed: func(ch flow.Change) { c.changes = append(c.changes, ch) }})
	c.index.Replace(&kube.Objects{
		Namespaces: []*corev1.Namespace{{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}},
		Nodes: []*corev1.Node{{
			ObjectMeta: metav1.ObjectMeta{Name: "n1"},
			Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: nodeAddr.String()}}},
		}},
		Pods:     []*corev1.Pod{shopPod("web", webAddr), shopPod("api", apiAddr), shopPod("db", dbAddr)},
		Policies: policies,
	}, judged.Add(-time.Hour))
	if err := h.apply(c.changes); err != nil {
		t.Fatal(err)
	}
	h.begin(time.Time{})
	c.judge = &judge{history: h, classes: policy.NewClasses(), index: c.index}
	return c
}

func (c *court) becomes(t *testing.T, at time.Time, p *networkingv1.NetworkPolicy) {
	t.Helper()
	object, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.history.apply([]flow.Change{{Time: at, Kind: flow.ChangePolicy, Namespace: p.Namespace, Name: p.Name, Object: object}}); err != nil {
		t.Fatal(err)
	}
}

// seen is a flow to the database as an agent reports it.
func seen(src netip.Addr, port uint16, v flow.Verdict, at time.Time) flow.Flow {
	return flow.Flow{
		Key:   flow.Key{Protocol: flow.TCP, Src: src, Dst: dbAddr, Port: port, Verdict: v},
		Start: at, End: at.Add(time.Second), Connections: 1, Node: "n1",
	}
}

func (c *court) verdict(f flow.Flow) string {
	flows := []flow.Flow{f}
	nameFlows(c.index, "n1", flows)
	c.flows(flows)
	text := fmt.Sprintf("%s %s", flows[0].Expected, flows[0].Assessment)
	if flows[0].Caveat != flow.CaveatNone {
		text += " " + flows[0].Caveat.String()
	}
	for _, p := range flows[0].Policies {
		text += fmt.Sprintf(" %s/%s %s", p.Namespace, p.Name, p.Rule)
	}
	return text
}

func TestFlowsAreJudgedByPolicy(t *testing.T) {
	change := func(f flow.Flow, how func(*flow.Flow)) flow.Flow {
		how(&f)
		return f
	}
	for _, c := range []struct {
		name string
		flow flow.Flow
		want string
	}{
		{"who may, passes", seen(apiAddr, 3306, flow.VerdictAllowed, judged), "allowed allowed shop/db-policy ingress[0]"},
		{"who may not, is refused", seen(webAddr, 3306, flow.VerdictDenied, judged), "denied enforced shop/db-policy "},
		{"who may not, gets no answer", seen(webAddr, 3306, flow.VerdictUnanswered, judged), "denied enforced shop/db-policy "},
		{"who may not, passes", seen(webAddr, 3306, flow.VerdictAllowed, judged), "denied unenforced shop/db-policy "},
		{"the wrong port passes", seen(apiAddr, 5432, flow.VerdictAllowed, judged), "denied unenforced shop/db-policy "},
		{"who may, is refused", seen(apiAddr, 3306, flow.VerdictDenied, judged), "allowed unexplained shop/db-policy ingress[0]"},
		{"who may, gets no answer", seen(apiAddr, 3306, flow.VerdictUnanswered, judged), "allowed unanswered shop/db-policy ingress[0]"},
		{"the pod's own node probes it", seen(nodeAddr, 3306, flow.VerdictAllowed, judged), "allowed allowed"},
		{"an outside address", seen(farAddr, 3306, flow.VerdictDenied, judged), "denied enforced shop/db-policy "},
		{
			"by the source that the destination's node sees",
			change(seen(webAddr, 3306, flow.VerdictAllowed, judged), func(f *flow.Flow) { f.TranslatedSrc = nodeAddr }),
			"allowed allowed",
		},
		{
			"ICMP is not defined",
			change(seen(webAddr, 0, flow.VerdictAllowed, judged), func(f *flow.Flow) { f.Protocol = flow.ICMP }),
			"unknown unknown protocol",
		},
		{
			"a connection that was there before",
			change(seen(webAddr, 3306, flow.VerdictAllowed, judged), func(f *flow.Flow) { f.Caveat = flow.CaveatOlder }),
			"denied unknown older-connection shop/db-policy ",
		},
		{
			"a later window of a connection",
			change(seen(webAddr, 3306, flow.VerdictAllowed, judged), func(f *flow.Flow) { f.Connections = 0 }),
			"denied unknown older-connection shop/db-policy ",
		},
		{
			"who may has no route",
			change(seen(apiAddr, 3306, flow.VerdictDenied, judged), func(f *flow.Flow) { f.Reason = flow.ReasonNoRoute }),
			"allowed unexplained shop/db-policy ingress[0]",
		},
		{
			"who may not has no route, which shows nothing of the policy",
			change(seen(webAddr, 3306, flow.VerdictDenied, judged), func(f *flow.Flow) { f.Reason = flow.ReasonNoRoute }),
			"denied unknown other-cause shop/db-policy ",
		},
		{
			"what the plugin names stays",
			change(seen(webAddr, 3306, flow.VerdictDenied, judged), func(f *flow.Flow) {
				f.Policies = []flow.PolicyRef{{Namespace: "shop", Name: "other", Rule: "x"}}
			}),
			"denied enforced shop/other x",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := newCourt(t, dbPolicy("api")).verdict(c.flow); got != c.want {
				t.Errorf("judged %q, want %q", got, c.want)
			}
		})
	}
}

func TestFlowsAreJudgedByThePoliciesOfTheirTime(t *testing.T) {
	c := newCourt(t, dbPolicy("api"))
	c.becomes(t, judged, dbPolicy("web"))
	for _, s := range []struct {
		at   time.Duration
		flow flow.Verdict
		want string
	}{
		{-time.Minute, flow.VerdictAllowed, "denied unenforced shop/db-policy "},
		{-time.Minute, flow.VerdictDenied, "denied enforced shop/db-policy "},
		{time.Minute, flow.VerdictAllowed, "allowed allowed shop/db-policy ingress[0]"},
		{10 * time.Second, flow.VerdictDenied, "allowed unknown recent-change shop/db-policy ingress[0]"},
		{time.Minute, flow.VerdictDenied, "allowed unexplained shop/db-policy ingress[0]"},
	} {
		if got := c.verdict(seen(webAddr, 3306, s.flow, judged.Add(s.at))); got != s.want {
			t.Errorf("%s, %s after the change: judged %q, want %q", s.flow, s.at, got, s.want)
		}
	}
}

func TestAChangeExcusesOnlyWhatItConcerns(t *testing.T) {
	other := dbPolicy("web")
	other.Name, other.Spec.PodSelector.MatchLabels = "other", map[string]string{"role": "queue"}
	c := newCourt(t, dbPolicy("api"))
	c.becomes(t, judged, other)
	if got, want := c.verdict(seen(webAddr, 3306, flow.VerdictAllowed, judged.Add(time.Second))), "denied unenforced shop/db-policy "; got != want {
		t.Errorf("after the change of another policy: judged %q, want %q", got, want)
	}
	for i := range maxStates + 1 {
		other.Spec.PodSelector.MatchLabels = map[string]string{"role": fmt.Sprint(i)}
		c.becomes(t, judged.Add(time.Duration(i+1)*time.Millisecond), other)
	}
	if got, want := c.verdict(seen(webAddr, 3306, flow.VerdictAllowed, judged.Add(time.Second))), "denied unknown recent-change shop/db-policy "; got != want {
		t.Errorf("after very many changes: judged %q, want %q", got, want)
	}
}

func TestAServiceWithoutEndpointsRefusesByItself(t *testing.T) {
	service := func(name string, addr netip.Addr, role string) *corev1.Service {
		return &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
			Spec: corev1.ServiceSpec{
				ClusterIP: addr.String(), ClusterIPs: []string{addr.String()}, Selector: map[string]string{"role": role},
				Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}},
			},
		}
	}
	empty, full := netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("10.96.0.2")
	c := newCourt(t)
	now := time.Now()
	c.index.Replace(&kube.Objects{
		Namespaces: []*corev1.Namespace{{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}},
		Pods:       []*corev1.Pod{shopPod("web", webAddr), shopPod("api", apiAddr), shopPod("db", dbAddr)},
		Services:   []*corev1.Service{service("empty", empty, "nobody"), service("full", full, "api")},
	}, now.Add(-time.Hour))
	for _, s := range []struct {
		name    string
		to      netip.Addr
		port    uint16
		verdict flow.Verdict
		age     time.Duration
		want    bool
	}{
		{"no pod is selected", empty, 80, flow.VerdictDenied, 0, true},
		{"no answer comes", empty, 80, flow.VerdictUnanswered, 0, true},
		{"a pod is selected", full, 80, flow.VerdictDenied, 0, false},
		{"a port that the Service does not have", full, 81, flow.VerdictDenied, 0, true},
		{"long ago, when there may have been one", empty, 80, flow.VerdictDenied, time.Minute, false},
		{"it was answered", empty, 80, flow.VerdictAllowed, 0, false},
	} {
		f := seen(webAddr, s.port, s.verdict, now.Add(-s.age-time.Second))
		f.Dst = s.to
		if got := strings.Contains(c.verdict(f), " unknown no-endpoint"); got != s.want {
			t.Errorf("%s: judged %q", s.name, c.verdict(f))
		}
	}
}

func TestANewPodExcuses(t *testing.T) {
	lateAddr := netip.MustParseAddr("10.1.0.9")
	for name, becomes := range map[string]*corev1.Pod{"a pod that begins": shopPod("late", lateAddr), "labels that change": shopPod("web", webAddr)} {
		c := newCourt(t, dbPolicy("api"))
		becomes.Labels["more"] = "x"
		began := metav1.NewTime(judged)
		becomes.Status.StartTime = &began
		pods := []*corev1.Pod{shopPod("api", apiAddr), shopPod("db", dbAddr), becomes}
		c.index.Replace(&kube.Objects{
			Namespaces: []*corev1.Namespace{{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}}, Pods: pods, Policies: []*networkingv1.NetworkPolicy{dbPolicy("api")},
		}, judged)
		addr := netip.MustParseAddr(becomes.Status.PodIPs[0].IP)
		for after, want := range map[time.Duration]string{
			10 * time.Second: "denied unknown recent-change shop/db-policy ",
			2 * time.Minute:  "denied unenforced shop/db-policy ",
		} {
			if got := c.verdict(seen(addr, 3306, flow.VerdictAllowed, judged.Add(after))); got != want {
				t.Errorf("%s, %s after it: judged %q, want %q", name, after, got, want)
			}
		}
	}
}

// A policy of another kind excuses what concerns the pods that it selects, and
// nothing else.
func TestAnotherKindOfPolicyExcuses(t *testing.T) {
	cilium := func(namespace, role string) *other.Policy {
		return other.Read("cilium.io", "CiliumNetworkPolicy", namespace, "l7", []byte(`{"spec": {"endpointSelector": {"matchLabels": {"k8s:role": "`+role+`"}}}}`))
	}
	const excused, held = "unknown unknown other-policy shop/db-policy ", "denied unenforced shop/db-policy "
	hosts := other.Read("cilium.io", "CiliumClusterwideNetworkPolicy", "", "hosts", []byte(`{"spec": {"nodeSelector": {}}}`))
	refused := seen(apiAddr, 3306, flow.VerdictDenied, judged)
	refused.Node = "n2"
	for name, test := range map[string]struct {
		policy *other.Policy
		seen   flow.Flow
		want   string
	}{
		"of the source":                  {cilium("shop", "web"), seen(webAddr, 3306, flow.VerdictAllowed, judged), excused},
		"of the destination":             {cilium("shop", "db"), seen(webAddr, 3306, flow.VerdictAllowed, judged), excused},
		"of another pod":                 {cilium("shop", "api"), seen(webAddr, 3306, flow.VerdictAllowed, judged), held},
		"of another namespace":           {cilium("ops", "web"), seen(webAddr, 3306, flow.VerdictAllowed, judged), held},
		"of nodes":                       {hosts, seen(webAddr, 3306, flow.VerdictAllowed, judged), held},
		"that cannot be read":            {other.Read("cilium.io", "CiliumNetworkPolicy", "shop", "l7", []byte("{}")), seen(webAddr, 3306, flow.VerdictAllowed, judged), excused},
		"that cannot be read, elsewhere": {other.Read("cilium.io", "CiliumNetworkPolicy", "ops", "l7", []byte("{}")), seen(webAddr, 3306, flow.VerdictAllowed, judged), held},
		"and a refusal":                  {cilium("shop", "db"), refused, "unknown unknown other-policy shop/db-policy ingress[0]"},
		"and an outside end":             {cilium("shop", "db"), seen(farAddr, 3306, flow.VerdictAllowed, judged), excused},
		"and what policies say anyway":   {cilium("shop", "db"), seen(webAddr, 3306, flow.VerdictDenied, judged), "denied enforced shop/db-policy "},
	} {
		c := newCourt(t, dbPolicy("api"))
		c.others.Store(other.NewSet([]*other.Policy{test.policy}))
		if got := c.verdict(test.seen); got != test.want {
			t.Errorf("%s: judged %q, want %q", name, got, test.want)
		}
	}
}

func TestAPolicyThatCannotBeCompiledDecidesNothing(t *testing.T) {
	p := dbPolicy("api")
	p.Spec.Ingress[0].From[0].PodSelector.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "role", Operator: "Near"}}
	c := newCourt(t, p)
	if got, want := c.verdict(seen(webAddr, 3306, flow.VerdictDenied, judged)), "unknown unknown invalid-policy"; got != want {
		t.Errorf("judged %q, want %q", got, want)
	}
}
