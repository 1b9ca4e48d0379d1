package historytest

import (
	"fmt"
	"math/rand/v2"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/flow"
)

// Large is a month of a cluster: 50 namespaces, 1,000 workloads of one or more
// label sets, 200 changes of labels, 100 revisions of policies, and a number of
// edges. The same seed makes the same cluster.
func Large(seed uint64, edges int) *Cluster {
	const namespaces, workloads, relabelled, revisions = 50, 1000, 200, 100
	rnd := rand.New(rand.NewPCG(seed, 1))
	c := New()
	for n := range namespaces {
		c.Namespace(fmt.Sprintf("ns%02d", n), map[string]string{"team": fmt.Sprintf("t%d", n%7)})
	}
	dns := c.Workload("Deployment ns00/coredns", "k8s-app=kube-dns", "dns=53/udp,dns-tcp=53")
	pods := make([]*Pods, 0, workloads)
	for n := range workloads {
		name := fmt.Sprintf("Deployment ns%02d/w%03d", n%namespaces, n)
		labels := fmt.Sprintf("app.kubernetes.io/name=app%d,app.kubernetes.io/instance=w%03d,app.kubernetes.io/version=%d,tier=%d", n%40, n, n%9, n%3)
		p := c.Workload(name, labels, "http=8080,metrics=9090")
		if n < relabelled {
			at := Begin().Add(time.Duration(rnd.IntN(700)) * time.Hour)
			p.Gone(at)
			p = c.WorkloadAt(name, labels+",track=new", "http=8080,metrics=9090", at)
		}
		pods = append(pods, p)
	}
	for n := range revisions {
		c.Policy(LargePolicy(rnd.IntN(60), rnd.IntN(namespaces), pods[rnd.IntN(workloads)].State.Labels), Begin().Add(time.Duration(7*n)*time.Hour))
	}
	for _, p := range pods {
		c.Talk(p, dns, "53/udp")
	}
	for n := len(pods); n < edges; n++ {
		from := pods[rnd.IntN(workloads)]
		service := []string{"8080", "9090", "5432", "6379"}[rnd.IntN(4)]
		var to Party = pods[rnd.IntN(workloads)]
		if n%5 == 0 {
			to = Outside(fmt.Sprintf("198.51.%d.%d", 100+rnd.IntN(4), rnd.IntN(256)))
		}
		first := Begin().Add(time.Duration(rnd.IntN(500)) * time.Hour)
		e := Between(c.Talk(from, to, service), first, first.Add(time.Duration(rnd.IntN(220))*time.Hour))
		if n%50 == 0 {
			e.Verdict, e.Assessment = flow.VerdictUnanswered, flow.AssessmentUnanswered
		}
	}
	return c
}

// LargePolicy allows something in a namespace of Large.
func LargePolicy(n, namespace int, from map[string]string) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprintf("ns%02d", namespace), Name: fmt.Sprintf("p%d", n)},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"tier": fmt.Sprint(n % 3)}},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress: []networkingv1.NetworkPolicyIngressRule{
				{From: []networkingv1.NetworkPolicyPeer{{NamespaceSelector: &metav1.LabelSelector{}}}},
				{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: from}}}},
			},
		},
	}
}
