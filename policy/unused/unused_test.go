package unused_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/flowaudit/flowaudit/flow"
	ht "github.com/flowaudit/flowaudit/policy/history/historytest"
	"github.com/flowaudit/flowaudit/policy/unused"
)

func day(n int) time.Time { return ht.Begin().Add(time.Duration(n) * 24 * time.Hour) }

func pods(labels string) networkingv1.NetworkPolicyPeer {
	return networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{MatchLabels: ht.Labels(labels)}}
}

func port(n int32) networkingv1.NetworkPolicyPort {
	p := intstr.FromInt32(n)
	return networkingv1.NetworkPolicyPort{Port: &p}
}

// dbPolicy has one rule of three clients and two ports, and one of another.
func dbPolicy() *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"}}
	p.Spec.PodSelector.MatchLabels = map[string]string{"app": "db"}
	p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{
		{From: []networkingv1.NetworkPolicyPeer{pods("app=web"), pods("app=api"), pods("app=report")}, Ports: []networkingv1.NetworkPolicyPort{port(5432), port(9187)}},
		{From: []networkingv1.NetworkPolicyPeer{pods("app=gone")}},
	}
	return p
}

func found(r *unused.Report) map[string]string {
	out := make(map[string]string)
	for _, u := range r.Rules {
		out[u.Kind+" "+u.Field] = strings.Join(u.Caveats, "; ")
	}
	return out
}

func TestUnused(t *testing.T) {
	for _, c := range []struct {
		name   string
		past   func(c *ht.Cluster, web, api, report, db *ht.Pods)
		edited time.Time
		want   map[string]string
	}{
		{"peers, ports and whole rules", func(c *ht.Cluster, web, _, _, db *ht.Pods) { c.Talk(web, db, "5432") }, day(-1), map[string]string{
			"peer spec.ingress[0].from[1]":  "",
			"peer spec.ingress[0].from[2]":  "runs now and then: CronJob shop/report; its time may not have come",
			"port spec.ingress[0].ports[1]": "",
			"rule spec.ingress[1]":          "its peer selects no pod that was seen",
		}},
		{"long ago counts as unused, with its time", func(c *ht.Cluster, web, api, report, db *ht.Pods) {
			ht.Between(c.Talk(web, db, "9187"), day(0), day(2))
			c.Talk(api, db, "5432")
			c.Talk(report, db, "5432")
		}, day(-1), map[string]string{
			"peer spec.ingress[0].from[0]": "", "port spec.ingress[0].ports[1]": "", "rule spec.ingress[1]": "its peer selects no pod that was seen",
		}},
		{"attempts that nobody answered are no use", func(c *ht.Cluster, web, api, report, db *ht.Pods) {
			c.Talk(web, db, "5432")
			c.Talk(api, db, "5432")
			e := c.Talk(report, db, "9187")
			e.Verdict, e.Assessment = flow.VerdictUnanswered, flow.AssessmentUnanswered
		}, day(-1), map[string]string{
			"peer spec.ingress[0].from[2]":  "runs now and then: CronJob shop/report; its time may not have come",
			"port spec.ingress[0].ports[1]": "", "rule spec.ingress[1]": "its peer selects no pod that was seen",
		}},
		{"what came before the last edit does not count", func(c *ht.Cluster, web, _, _, db *ht.Pods) {
			ht.Between(c.Talk(web, db, "5432"), day(0), day(24))
		}, day(25), map[string]string{
			"rule spec.ingress[0]": "the policy was changed 5 days ago by kubectl; what came before does not count; runs now and then: CronJob shop/report; its time may not have come",
			"rule spec.ingress[1]": "the policy was changed 5 days ago by kubectl; what came before does not count; its peer selects no pod that was seen",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cluster := ht.New()
			web, api := cluster.Workload("Deployment shop/web", "app=web", ""), cluster.Workload("Deployment shop/api", "app=api", "")
			report, db := cluster.Workload("CronJob shop/report", "app=report", ""), cluster.Workload("StatefulSet shop/db", "app=db", "")
			cluster.Policy(dbPolicy(), c.edited)
			c.past(cluster, web, api, report, db)
			r, err := unused.Find(cluster.History(t), unused.Options{For: 20 * 24 * time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, found(r)); d != "" {
				t.Error(d)
			}
			if r.Policies != 1 || r.Parts != 7 {
				t.Errorf("%d parts of %d policies, want 7 of 1", r.Parts, r.Policies)
			}
		})
	}
}

func TestWhatUnusedStandsOn(t *testing.T) {
	c := ht.New()
	c.Policy(dbPolicy(), day(-1))
	c.Input.Coverage.Nodes[0].Covered /= 4
	r, err := unused.Find(c.History(t), unused.Options{For: 90 * 24 * time.Hour, Namespaces: []string{"shop"}})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"the history is only 30.0 days long: raise --since, or wait",
		"no traffic was recorded in this time: that nothing was used says nothing",
		"75.0 % of the time was not watched: traffic may have been missed",
	}
	if d := cmp.Diff(want, r.Notes); d != "" {
		t.Error(d)
	}
	if _, err := unused.Find(c.History(t), unused.Options{}); err == nil {
		t.Error("no time is taken")
	}
}
