package replay_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/flow"
	ht "github.com/flowaudit/flowaudit/policy/history/historytest"
	"github.com/flowaudit/flowaudit/policy/replay"
)

// allow is a policy that allows the pods of labels to connect to db.
func allow(name string, from ...string) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
	p.Spec.PodSelector.MatchLabels = map[string]string{"app": "db"}
	p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	for _, labels := range from {
		p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{
			From: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: ht.Labels(labels)}}},
		})
	}
	return p
}

// lines are flips in short.
func lines(r *replay.Result) []string {
	var out []string
	for _, list := range [][]replay.Flip{r.Refused, r.Allowed, r.Unclear} {
		for _, f := range list {
			text := fmt.Sprintf("%s -> %s %d: %s -> %s", strings.Fields(f.Source)[1], f.Destination, f.Port, f.Before, f.After)
			if f.InPart {
				text += fmt.Sprintf(" from %s until %s", f.First.Format("01-02"), f.Last.Format("01-02"))
			}
			out = append(out, text)
		}
	}
	return out
}

func TestReplay(t *testing.T) {
	day := func(n int) time.Time { return ht.Begin().Add(time.Duration(n) * 24 * time.Hour) }
	for _, c := range []struct {
		name   string
		past   func(c *ht.Cluster)
		change replay.Change
		want   []string
	}{
		{"what was free is refused", func(c *ht.Cluster) {
			c.Talk(c.Workload("Deployment shop/web", "app=web", ""), c.Workload("StatefulSet shop/db", "app=db", ""), "5432")
		}, replay.Change{Apply: []*networkingv1.NetworkPolicy{allow("p", "app=api")}}, []string{"shop/web -> StatefulSet shop/db 5432: allowed -> denied"}},
		{"what was refused is allowed", func(c *ht.Cluster) {
			ht.Refuse(c.Talk(c.Workload("Deployment shop/web", "app=web", ""), c.Workload("StatefulSet shop/db", "app=db", ""), "5432"))
			c.Policy(allow("p", "app=api"), day(-1))
		}, replay.Change{Apply: []*networkingv1.NetworkPolicy{allow("p", "app=api", "app=web")}}, []string{"shop/web -> StatefulSet shop/db 5432: denied -> allowed"}},
		{"nothing changes", func(c *ht.Cluster) {
			c.Talk(c.Workload("Deployment shop/web", "app=web", ""), c.Workload("StatefulSet shop/db", "app=db", ""), "5432")
			c.Policy(allow("p", "app=web"), day(-1))
		}, replay.Change{Apply: []*networkingv1.NetworkPolicy{allow("q")}}, nil},
		{"a deletion", func(c *ht.Cluster) {
			c.Talk(c.Workload("Deployment shop/web", "app=web", ""), c.Workload("StatefulSet shop/db", "app=db", ""), "5432")
			c.Policy(allow("p", "app=web"), day(-1))
			c.Policy(allow("q"), day(-1))
		}, replay.Change{Delete: []replay.Name{{Namespace: "shop", Name: "p"}}}, []string{"shop/web -> StatefulSet shop/db 5432: allowed -> denied"}},
		{"the whole set", func(c *ht.Cluster) {
			c.Talk(c.Workload("Deployment shop/web", "app=web", ""), c.Workload("StatefulSet shop/db", "app=db", ""), "5432")
			c.Policy(allow("p", "app=web"), day(-1))
		}, replay.Change{Whole: true, Apply: []*networkingv1.NetworkPolicy{allow("q")}}, []string{"shop/web -> StatefulSet shop/db 5432: allowed -> denied"}},
		{"the whole set of another namespace", func(c *ht.Cluster) {
			c.Talk(c.Workload("Deployment shop/web", "app=web", ""), c.Workload("StatefulSet shop/db", "app=db", ""), "5432")
			c.Policy(allow("p", "app=web"), day(-1))
		}, replay.Change{Namespaces: []string{"other"}, Apply: []*networkingv1.NetworkPolicy{allow("q")}}, nil},
		{"labels as they were", func(c *ht.Cluster) {
			db := c.Workload("StatefulSet shop/db", "app=db", "")
			ht.Between(c.Talk(c.Workload("Deployment shop/web", "app=web,old=yes", "").Gone(day(10)), db, "5432"), day(0), day(10))
			ht.Between(c.Talk(c.WorkloadAt("Deployment shop/web", "app=web", "", day(10)), db, "5433"), day(10), day(20))
		}, replay.Change{Apply: []*networkingv1.NetworkPolicy{allow("p", "old=yes")}}, []string{"shop/web -> StatefulSet shop/db 5433: allowed -> denied"}},
		{"other policies as they were, for a part of the time", func(c *ht.Cluster) {
			c.Talk(c.Workload("Deployment shop/web", "app=web", ""), c.Workload("StatefulSet shop/db", "app=db", ""), "5432")
			c.Policy(allow("q", "app=web"), day(-1))
			c.DeletePolicy("shop", "q", day(20))
		}, replay.Change{Apply: []*networkingv1.NetworkPolicy{allow("p")}}, []string{"shop/web -> StatefulSet shop/db 5432: allowed -> denied from 10-21 until 10-30"}},
		{"an edge ends where the policies say otherwise than was expected", func(c *ht.Cluster) {
			c.Talk(c.Workload("Deployment shop/web", "app=web", ""), c.Workload("StatefulSet shop/db", "app=db", ""), "5432")
			c.Policy(allow("q"), day(29)) // from then on it is another edge
		}, replay.Change{Apply: []*networkingv1.NetworkPolicy{allow("p")}}, []string{"shop/web -> StatefulSet shop/db 5432: allowed -> denied"}},
		{"what no policy can refuse", func(c *ht.Cluster) {
			db := c.Workload("StatefulSet shop/db", "app=db", "")
			c.Talk(ht.Node("n1", "192.168.1.1"), db, "8080").Exempt = flow.ExemptOwnNode
			c.Talk(db, db, "5432").Exempt = flow.ExemptSamePod
			c.Talk(db, db, "5433")
		}, replay.Change{Apply: []*networkingv1.NetworkPolicy{allow("p")}}, []string{"shop/db -> StatefulSet shop/db 5433: allowed -> denied"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cluster := ht.New()
			c.past(cluster)
			r, err := replay.Run(cluster.History(t), &c.change, replay.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, lines(r)); d != "" {
				t.Error(d)
			}
			if r.Passed() != (len(r.Refused) == 0) {
				t.Error("passed is wrong")
			}
		})
	}
}

func TestChangesThatCannotBe(t *testing.T) {
	p := allow("p")
	for name, c := range map[string]replay.Change{
		"empty":               {},
		"without a name":      {Apply: []*networkingv1.NetworkPolicy{{}}},
		"twice":               {Apply: []*networkingv1.NetworkPolicy{p, p}},
		"applied and deleted": {Apply: []*networkingv1.NetworkPolicy{p}, Delete: []replay.Name{{Namespace: "shop", Name: "p"}}},
	} {
		if _, err := replay.Run(ht.New().History(t), &c, replay.Options{}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestAnInvalidPolicyDoesNotPass(t *testing.T) {
	p := allow("p")
	p.Spec.PodSelector.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Near"}}
	r, err := replay.Run(ht.New().History(t), &replay.Change{Apply: []*networkingv1.NetworkPolicy{p}}, replay.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Passed() || len(r.Problems) != 1 {
		t.Errorf("passed %v, problems %v", r.Passed(), r.Problems)
	}
}

// What is watched live and what is replayed are judged alike.
func TestWatch(t *testing.T) {
	c := ht.New()
	web, db := c.Workload("Deployment shop/web", "app=web", ""), c.Workload("StatefulSet shop/db", "app=db", "")
	_ = web
	h := c.History(t)
	w, err := replay.NewWatch(replay.Change{Apply: []*networkingv1.NetworkPolicy{allow("p", "app=api")}}, h)
	if err != nil {
		t.Fatal(err)
	}
	end := func(p *ht.Pods, labels map[string]string) *flow.Endpoint {
		return &flow.Endpoint{Kind: flow.EndpointPod, Namespace: "shop", Pod: p.State.Workload.Name, Workload: p.State.Workload, Identity: p.ID, Labels: labels}
	}
	f := &flow.Flow{Key: flow.Key{Protocol: flow.TCP, Port: 5432, Verdict: flow.VerdictAllowed}, Start: ht.End(), End: ht.End(), Expected: flow.VerdictAllowed}
	f.Source, f.Destination = end(web, web.State.Labels), end(db, db.State.Labels)
	flip, err := w.Judge(f)
	if err != nil || flip == nil || flip.After != "denied" || flip.Side != "ingress" {
		t.Errorf("%+v, %v: want denied at ingress", flip, err)
	}
	f.Source = &flow.Endpoint{Kind: flow.EndpointPod, Namespace: "shop", Pod: "new", Identity: 77, Labels: map[string]string{"app": "api"}}
	if flip, err = w.Judge(f); flip != nil || err != nil {
		t.Errorf("an identity that is new: %+v, %v: want none", flip, err)
	}
}
