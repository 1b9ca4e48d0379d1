package policy_test

import (
	"fmt"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy"
)

// The cluster that the figures are of: 5,000 pods in 200 namespaces, 2,000
// policies, 10 in each namespace: default deny, DNS, and one for each of
// eight workloads, which lets in two others of the namespace, a part of another
// namespace, and an address block.
const (
	benchNamespaces = 200
	benchPods       = 25 // a namespace
	benchWorkloads  = 8
)

func benchCluster() policy.Options {
	o := policy.Options{Classes: policy.NewClasses(), Namespaces: make(map[string]map[string]string)}
	for n := range benchNamespaces {
		ns := fmt.Sprintf("team-%03d", n)
		o.Namespaces[ns] = map[string]string{"team": fmt.Sprintf("t%d", n/4), "stage": []string{"prod", "test"}[n%2]}
		for i := range benchPods {
			app := i % benchWorkloads
			o.Pods = append(o.Pods, policy.Pod{
				Namespace: ns, Name: fmt.Sprintf("app-%d-%d", app, i), Node: fmt.Sprintf("node-%d", (n+i)%50),
				Labels: map[string]string{
					"app": fmt.Sprintf("app-%d", app), "tier": []string{"web", "api", "db"}[app%3],
					"app.kubernetes.io/instance": ns, "pod-template-hash": fmt.Sprintf("%x", n*benchWorkloads+app),
				},
				Ports: []policy.NamedPort{{Name: "http", Protocol: flow.TCP, Port: 8080}, {Name: "metrics", Protocol: flow.TCP, Port: 9090}},
				Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(n), 0, byte(i + 1)})},
			})
		}
		o.Policies = append(o.Policies, benchDenyAll(ns), benchDNS(ns))
		for app := range benchWorkloads {
			o.Policies = append(o.Policies, benchPolicy(n, app, 8080))
		}
	}
	return o
}

func selectorOf(labels ...string) *metav1.LabelSelector {
	s := &metav1.LabelSelector{MatchLabels: make(map[string]string)}
	for i := 0; i < len(labels); i += 2 {
		s.MatchLabels[labels[i]] = labels[i+1]
	}
	return s
}

func meta(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name}
}

func benchDenyAll(ns string) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{ObjectMeta: meta(ns, "default-deny"), Spec: networkingv1.NetworkPolicySpec{
		PolicyTypes: []networkingv1.PolicyType{"Ingress", "Egress"},
	}}
}

func benchDNS(ns string) *networkingv1.NetworkPolicy {
	port := intstr.FromInt32(53)
	return &networkingv1.NetworkPolicy{ObjectMeta: meta(ns, "dns"), Spec: networkingv1.NetworkPolicySpec{
		PolicyTypes: []networkingv1.PolicyType{"Egress"},
		Egress: []networkingv1.NetworkPolicyEgressRule{
			{Ports: []networkingv1.NetworkPolicyPort{{Protocol: new(corev1.ProtocolUDP), Port: &port}, {Protocol: new(corev1.ProtocolTCP), Port: &port}}},
			{To: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{}}}},
		},
	}}
}

func benchPolicy(n, app int, port int32) *networkingv1.NetworkPolicy {
	number, http := intstr.FromInt32(port), intstr.FromString("http")
	return &networkingv1.NetworkPolicy{ObjectMeta: meta(fmt.Sprintf("team-%03d", n), fmt.Sprintf("app-%d", app)), Spec: networkingv1.NetworkPolicySpec{
		PodSelector: *selectorOf("app", fmt.Sprintf("app-%d", app)),
		PolicyTypes: []networkingv1.PolicyType{"Ingress"},
		Ingress: []networkingv1.NetworkPolicyIngressRule{
			{
				From: []networkingv1.NetworkPolicyPeer{
					{PodSelector: selectorOf("app", fmt.Sprintf("app-%d", (app+1)%benchWorkloads))},
					{PodSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "tier", Operator: metav1.LabelSelectorOpIn, Values: []string{"web", "api"}}}}},
				},
				Ports: []networkingv1.NetworkPolicyPort{{Port: &number}},
			},
			{
				From: []networkingv1.NetworkPolicyPeer{
					{NamespaceSelector: selectorOf("team", fmt.Sprintf("t%d", (n+1)%benchNamespaces/4)), PodSelector: selectorOf("tier", "web")},
					{IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("10.%d.0.0/24", (n+7)%benchNamespaces), Except: []string{fmt.Sprintf("10.%d.0.%d/32", (n+7)%benchNamespaces, app)}}},
				},
				Ports: []networkingv1.NetworkPolicyPort{{Port: &http}, {Port: new(intstr.FromInt32(9000)), EndPort: new(int32(9100))}},
			},
		},
	}}
}

func benchEngine(b *testing.B, o policy.Options) *policy.Engine {
	b.Helper()
	e, err := policy.New(o)
	if err != nil {
		b.Fatal(err)
	}
	if problems := e.Snapshot().Problems(); len(problems) > 0 {
		b.Fatal(problems)
	}
	return e
}

// allClasses makes the engine compile what it would compile on first use.
func allClasses(s *policy.Snapshot, pods []*policy.RegisteredPod) (isolated int) {
	for _, p := range pods {
		isolated += len(s.Isolating(p.Class, flow.DirectionIngress))
	}
	return isolated
}

// BenchmarkCompile is a cold start: every policy, and what it means to every
// pod of the cluster.
func BenchmarkCompile(b *testing.B) {
	o := benchCluster()
	for b.Loop() {
		o.Classes = policy.NewClasses()
		s := benchEngine(b, o).Snapshot()
		if allClasses(s, s.Pods()) == 0 {
			b.Fatal("no pod is isolated")
		}
	}
}

// BenchmarkChange is one change of a policy, and what it means to every pod.
func BenchmarkChange(b *testing.B) {
	o := benchCluster()
	e := benchEngine(b, o)
	pods := e.Snapshot().Pods()
	allClasses(e.Snapshot(), pods)
	turn := 0
	b.Run("policy", func(b *testing.B) {
		for b.Loop() {
			turn++
			e.SetPolicy(benchPolicy(turn%benchNamespaces, turn%benchWorkloads, int32(1+turn%60000)))
			allClasses(e.Snapshot(), pods)
		}
	})
	// A policy with peers that no other has: every pod is asked about them.
	b.Run("policy-new-peers", func(b *testing.B) {
		for b.Loop() {
			turn++
			p := benchPolicy(turn%benchNamespaces, turn%benchWorkloads, 8080)
			p.Spec.Ingress[1].From = []networkingv1.NetworkPolicyPeer{
				{NamespaceSelector: selectorOf("team", fmt.Sprintf("t%d", turn)), PodSelector: selectorOf("tier", "web")},
				{IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("10.%d.%d.0/24", turn%200, turn/200%250)}},
			}
			e.SetPolicy(p)
			allClasses(e.Snapshot(), pods)
		}
	})
	b.Run("namespace", func(b *testing.B) {
		for b.Loop() {
			turn++
			ns := fmt.Sprintf("team-%03d", turn%benchNamespaces)
			e.SetNamespace(ns, map[string]string{"team": fmt.Sprintf("t%d", turn%50), "turn": fmt.Sprint(turn)})
			s := e.Snapshot()
			for i := range benchPods {
				s.Isolating(s.Pod(ns, fmt.Sprintf("app-%d-%d", i%benchWorkloads, i)).Class, flow.DirectionIngress)
			}
		}
	})
	b.Run("pod", func(b *testing.B) {
		for b.Loop() {
			turn++
			p := o.Pods[turn%len(o.Pods)]
			p.Labels = map[string]string{"app": fmt.Sprintf("app-%d", turn%benchWorkloads), "turn": fmt.Sprint(turn)}
			e.SetPod(p)
			s := e.Snapshot()
			s.Isolating(s.Pod(p.Namespace, p.Name).Class, flow.DirectionIngress)
		}
	})
}

// benchConnections are between pods all over the cluster, some of the same namespace.
func benchConnections(s *policy.Snapshot, n int) []policy.Connection {
	pods := s.Pods()
	out := make([]policy.Connection, n)
	for i := range out {
		src, dst := pods[i*7919%len(pods)], pods[i*104729%len(pods)]
		if i%2 == 0 {
			dst = pods[(i*7919%len(pods))/benchPods*benchPods+i/3%benchPods]
		}
		out[i] = policy.Connect(src, dst, flow.TCP, []uint16{8080, 9090, 443}[i%3])
	}
	return out
}

// BenchmarkDecide is one decision of both sides: known is one that was made
// before, among 10,000 of them, new is one that was not.
func BenchmarkDecide(b *testing.B) {
	e := benchEngine(b, benchCluster())
	s := e.Snapshot()
	allClasses(s, s.Pods())
	b.Run("known", func(b *testing.B) {
		connections := benchConnections(s, 10_000)
		for i := range connections {
			s.Decide(&connections[i])
			s.Decide(&connections[i])
		}
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			s.Decide(&connections[i%len(connections)])
			i++
		}
	})
	b.Run("new", func(b *testing.B) {
		connections := benchConnections(s, 10_000)
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			c := &connections[i%len(connections)]
			c.Port++ // an edge that was not asked about
			s.Decide(c)
			i++
		}
	})
	b.Run("outside", func(b *testing.B) {
		pods := s.Pods()
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			src := policy.End{Kind: flow.EndpointOutside, Addr: netip.AddrFrom4([4]byte{203, byte(i >> 16), byte(i >> 8), byte(i)})}
			c := policy.Connection{Src: src, Dst: pods[i%100].End(), Protocol: flow.TCP, Port: 8080}
			s.Decide(&c)
			i++
		}
	})
}

// BenchmarkReach is everything that one workload may reach at another.
func BenchmarkReach(b *testing.B) {
	e := benchEngine(b, benchCluster())
	s := e.Snapshot()
	pods := s.Pods()
	i := 0
	for b.Loop() {
		src, dst := pods[i*7919%len(pods)].End(), pods[i*104729%len(pods)].End()
		s.Reach(&src, &dst)
		i++
	}
}
