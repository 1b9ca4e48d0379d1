package suggest_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy/history"
	ht "github.com/flowaudit/flowaudit/policy/history/historytest"
	"github.com/flowaudit/flowaudit/policy/suggest"
)

func run(t *testing.T, c *ht.Cluster, o suggest.Options) *suggest.Result {
	t.Helper()
	r, err := suggest.Run(c.History(t), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// proven suggests, and fails unless the proof is clean.
func proven(t *testing.T, c *ht.Cluster, o suggest.Options) *suggest.Result {
	t.Helper()
	r := run(t, c, o)
	for _, f := range r.Proof.Refused {
		t.Errorf("refused: %s -> %s %s/%d: %s", f.Source, f.Destination, f.Protocol, f.Port, f.Why)
	}
	for _, p := range r.Proof.Loose.List {
		if p.Why == "" {
			t.Errorf("permitted and never seen: %+v", p)
		}
	}
	return r
}

// rules are a policy's rules in short: "to pods app=db: TCP 5432".
func rules(r *suggest.Result, namespace, name string) []string {
	var out []string
	for _, p := range r.Policies {
		if p.Object.Namespace != namespace || p.Object.Name != name {
			continue
		}
		for _, rule := range p.Object.Spec.Ingress {
			out = append(out, "from "+peerText(rule.From)+": "+portText(rule.Ports))
		}
		for _, rule := range p.Object.Spec.Egress {
			out = append(out, "to "+peerText(rule.To)+": "+portText(rule.Ports))
		}
	}
	return out
}

func peerText(peers []networkingv1.NetworkPolicyPeer) string {
	var out []string
	for _, p := range peers {
		text := ""
		if p.IPBlock != nil {
			text = p.IPBlock.CIDR
		}
		if p.NamespaceSelector != nil {
			text += "{" + strings.TrimPrefix(metav1.FormatLabelSelector(p.NamespaceSelector), "kubernetes.io/metadata.name=") + "}"
		}
		if p.PodSelector != nil {
			text += metav1.FormatLabelSelector(p.PodSelector)
		}
		out = append(out, text)
	}
	return strings.Join(out, " ")
}

func portText(ports []networkingv1.NetworkPolicyPort) string {
	var out []string
	for _, p := range ports {
		text := string(*p.Protocol) + " " + p.Port.String()
		if p.EndPort != nil {
			text += fmt.Sprintf("-%d", *p.EndPort)
		}
		out = append(out, text)
	}
	return strings.Join(out, " ")
}

func object(t *testing.T, r *suggest.Result, name string) *networkingv1.NetworkPolicy {
	t.Helper()
	for _, p := range r.Policies {
		if p.Object.Name == name {
			return p.Object
		}
	}
	t.Fatalf("no policy %s is suggested", name)
	return nil
}

func codes(r *suggest.Result) []string {
	var out []string
	for _, n := range r.Notices {
		out = append(out, n.Code)
	}
	return out
}

// Each fault is one that another suggester has.
func TestFaultsOfOthers(t *testing.T) {
	for _, c := range []struct {
		name    string
		cluster func(*ht.Cluster)
		o       suggest.Options
		policy  string
		want    []string
	}{
		{"TCP and UDP of one port are not merged", func(c *ht.Cluster) {
			web, db := c.Workload("Deployment shop/web", "app=web", ""), c.Workload("Deployment shop/db", "app=db", "")
			c.Talk(web, db, "7000")
			c.Talk(web, db, "7001/udp")
		}, suggest.Options{}, "flowaudit-deployment-web", []string{"to app=db: TCP 7000 UDP 7001"}},
		{"SCTP is a protocol", func(c *ht.Cluster) {
			c.Talk(c.Workload("Deployment shop/web", "app=web", ""), c.Workload("Deployment shop/hss", "app=hss", ""), "3868/sctp")
		}, suggest.Options{}, "flowaudit-deployment-web", []string{"to app=hss: SCTP 3868"}},
		{"the pod's port, not the Service's", func(c *ht.Cluster) { // edges carry the port after DNAT
			c.Talk(c.Workload("Deployment shop/web", "app=web", ""), c.Workload("Deployment shop/api", "app=api", "http=8080"), "8080")
		}, suggest.Options{}, "flowaudit-deployment-api", []string{"from app=web: TCP http"}},
		{"a name that one pod lacks is none", func(c *ht.Cluster) {
			web, api := c.Workload("Deployment shop/web", "app=web", ""), c.Workload("Deployment shop/api", "app=api,track=a", "http=8080")
			c.Workload("Deployment shop/api", "app=api,track=b", "")
			c.Talk(web, api, "8080")
		}, suggest.Options{}, "flowaudit-deployment-api", []string{"from app=web: TCP 8080"}},
		{"a name of two ports is none", func(c *ht.Cluster) {
			web, api := c.Workload("Deployment shop/web", "app=web", ""), c.Workload("Deployment shop/api", "app=api", "http=8080,http=9090")
			c.Talk(web, api, "8080")
		}, suggest.Options{}, "flowaudit-deployment-api", []string{"from app=web: TCP 8080"}},
		{"IPv6 addresses are /128", func(c *ht.Cluster) {
			c.Talk(c.Workload("Deployment shop/web", "app=web", ""), ht.Outside("2001:db8::5"), "443")
		}, suggest.Options{}, "flowaudit-deployment-web", []string{"to 2001:db8::5/128: TCP 443"}},
		{"volatile labels are no selector", func(c *ht.Cluster) {
			web := c.Workload("Deployment shop/web", "app=web,helm.sh/chart=web-1.2,app.kubernetes.io/version=7", "")
			c.Talk(web, c.Workload("Deployment shop/db", "app=db,helm.sh/chart=db-1.0", ""), "5432")
		}, suggest.Options{}, "flowaudit-deployment-web", []string{"to app=db: TCP 5432"}},
		{"two Helm releases of one chart are two", func(c *ht.Cluster) {
			a := c.Workload("Deployment shop/a-web", "app.kubernetes.io/name=web,app.kubernetes.io/instance=a", "")
			b := c.Workload("Deployment shop/b-web", "app.kubernetes.io/name=web,app.kubernetes.io/instance=b", "")
			db := c.Workload("Deployment shop/a-db", "app.kubernetes.io/name=db,app.kubernetes.io/instance=a", "")
			c.Talk(a, db, "5432")
			c.Talk(b, ht.Outside("198.51.100.1"), "443")
		}, suggest.Options{}, "flowaudit-deployment-a-db", []string{"from app.kubernetes.io/instance=a,app.kubernetes.io/name=web: TCP 5432"}},
		{"all ports of one label pair", func(c *ht.Cluster) {
			web, db := c.Workload("Deployment shop/web", "app=web", ""), c.Workload("Deployment shop/db", "app=db", "")
			for _, port := range []string{"5432", "9187", "9999/udp"} {
				c.Talk(web, db, port)
			}
			c.Talk(web, ht.Outside("198.51.100.1"), "443")
			c.Talk(web, ht.Outside("203.0.113.9"), "443")
		}, suggest.Options{}, "flowaudit-deployment-web", []string{"to app=db: TCP 5432 TCP 9187 UDP 9999", "to 198.51.100.1/32 203.0.113.9/32: TCP 443"}},
		{"DNS to the DNS pods, over UDP and TCP", func(c *ht.Cluster) {
			dns := c.Workload("Deployment kube-system/coredns", "k8s-app=kube-dns", "dns=53/udp,dns-tcp=53")
			c.Talk(c.Workload("Deployment shop/web", "app=web", ""), dns, "53/udp")
		}, suggest.Options{}, "flowaudit-deployment-web", []string{"to {kube-system}k8s-app=kube-dns: TCP dns-tcp UDP dns"}},
		{
			"the node-local DNS cache, of which nobody is seen to use it", func(c *ht.Cluster) {
				c.Talk(c.Workload("Deployment shop/web", "app=web", ""), ht.Outside("198.51.100.1"), "443")
			},
			suggest.Options{DNSCaches: []netip.Addr{netip.MustParseAddr("169.254.20.10")}},
			"flowaudit-deployment-web",
			[]string{"to 198.51.100.1/32: TCP 443", "to 169.254.20.10/32: TCP 53 UDP 53"},
		},
		{"namespaces by the label that all have", func(c *ht.Cluster) {
			c.Namespace("mon", map[string]string{"name": "something-else"})
			c.Talk(c.Workload("Deployment mon/prometheus", "app=prometheus", ""), c.Workload("Deployment shop/web", "app=web", "metrics=9090"), "9090")
		}, suggest.Options{}, "flowaudit-deployment-web", []string{"from {mon}app=prometheus: TCP metrics"}},
		{"both sides of a flow", func(c *ht.Cluster) {
			c.Talk(c.Workload("Deployment shop/web", "app=web", ""), c.Workload("Deployment shop/db", "app=db", ""), "5432")
		}, suggest.Options{}, "flowaudit-deployment-db", []string{"from app=web: TCP 5432"}},
		{"a client on the host's network, by its node's address", func(c *ht.Cluster) {
			c.Talk(ht.Node("cp-1", "192.168.7.2"), c.Workload("Deployment shop/hook", "app=hook", ""), "8443")
		}, suggest.Options{}, "flowaudit-deployment-hook", []string{"from 192.168.7.2/32: TCP 8443"}},
		{"a probe by the own node needs no rule", func(c *ht.Cluster) {
			web := c.Workload("Deployment shop/web", "app=web", "")
			c.Talk(ht.Node("n1", "192.168.7.9"), web, "8080").Exempt = flow.ExemptOwnNode
			c.Talk(web, ht.Outside("198.51.100.1"), "443")
		}, suggest.Options{NoEgress: true}, "flowaudit-deployment-web", nil},
		{"ingress by the source that the destination's node sees", func(c *ht.Cluster) {
			e := c.Talk(ht.Outside("198.51.100.77"), c.Workload("Deployment shop/web", "app=web", ""), "8080")
			e.Seen = netip.MustParseAddr("192.168.7.3")
			c.Talk(ht.Node("n3", "192.168.7.3"), c.Workload("Deployment shop/other", "app=other", ""), "80")
		}, suggest.Options{}, "flowaudit-deployment-web", []string{"from 192.168.7.3/32: TCP 8080"}},
		{"the API server and the metadata service by address", func(c *ht.Cluster) {
			web := c.Workload("Deployment shop/web", "app=web", "")
			c.Talk(web, ht.Node("cp-1", "192.168.7.2"), "6443")
			c.Talk(web, ht.Address{Kind: flow.EndpointAPIServer, Prefix: "203.0.113.4"}, "443")
			c.Talk(web, ht.Address{Prefix: "169.254.169.254"}, "80")
		}, suggest.Options{}, "flowaudit-deployment-web", []string{"to 192.168.7.2/32: TCP 6443", "to 203.0.113.4/32: TCP 443", "to 169.254.169.254/32: TCP 80"}},
		{"many ports are a range", func(c *ht.Cluster) {
			web, ftp := c.Workload("Deployment shop/web", "app=web", ""), c.Workload("Deployment shop/ftp", "app=ftp", "")
			for port := 30000; port < 30020; port++ {
				c.Talk(web, ftp, fmt.Sprint(port))
			}
			c.Talk(web, ftp, "21")
		}, suggest.Options{}, "flowaudit-deployment-web", []string{"to app=ftp: TCP 21 TCP 30000-30019"}},
		{"UDP ports above 1024 are learnt", func(c *ht.Cluster) {
			c.Talk(c.Workload("Deployment shop/web", "app=web", ""), c.Workload("Deployment shop/stats", "app=stats", ""), "8125/udp")
		}, suggest.Options{}, "flowaudit-deployment-web", []string{"to app=stats: UDP 8125"}},
		{"a job's runs are one workload", func(c *ht.Cluster) {
			db := c.Workload("Deployment shop/db", "app=db", "")
			c.Talk(c.Workload("CronJob shop/report", "app=report", ""), db, "5432").Hours = 30
		}, suggest.Options{}, "flowaudit-cronjob-report", []string{"to app=db: TCP 5432"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cluster := ht.New()
			c.cluster(cluster)
			r := proven(t, cluster, c.o)
			if d := cmp.Diff(c.want, rules(r, object(t, r, c.policy).Namespace, c.policy)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestNothingIsLearntFromWhatWasNotAllowed(t *testing.T) {
	c := ht.New()
	web, db := c.Workload("Deployment shop/web", "app=web", ""), c.Workload("Deployment shop/db", "app=db", "")
	c.Talk(web, db, "5432")
	ht.Refuse(c.Talk(web, db, "22"))
	e := c.Talk(web, db, "23")
	e.Verdict, e.Assessment = flow.VerdictUnanswered, flow.AssessmentUnanswered
	e = c.Talk(web, db, "24")
	e.Expected, e.Assessment = flow.VerdictDenied, flow.AssessmentUnenforced
	e = c.Talk(web, db, "25")
	e.Expected, e.Assessment, e.Caveat = flow.VerdictDenied, flow.AssessmentUnknown, flow.CaveatOlder
	e = c.Talk(web, db, "26")
	e.Verdict = flow.VerdictUnknown
	r := proven(t, c, suggest.Options{})
	if d := cmp.Diff([]string{"from app=web: TCP 5432"}, rules(r, "shop", "flowaudit-deployment-db")); d != "" {
		t.Error(d)
	}
	reasons := make(map[uint16]suggest.Reason)
	for _, a := range r.SetAside {
		reasons[a.Port] = a.Reason
	}
	want := map[uint16]suggest.Reason{22: suggest.NotAllowed, 23: suggest.NotAllowed, 24: suggest.Unenforced, 25: suggest.Unenforced, 26: suggest.NotAllowed}
	if d := cmp.Diff(want, reasons); d != "" {
		t.Error(d)
	}
}

func TestScansAreSetAside(t *testing.T) {
	c := ht.New()
	web, db, bot := c.Workload("Deployment shop/web", "app=web", ""), c.Workload("Deployment shop/db", "app=db", ""), c.Workload("Deployment shop/bot", "app=bot", "")
	c.Talk(web, db, "5432")
	c.Talk(bot, web, "8080") // it has work to do as well
	at := ht.Begin().Add(100 * time.Hour)
	for port := 1; port <= 60; port++ {
		e := ht.Between(c.Talk(bot, db, fmt.Sprint(port)), at, at.Add(time.Minute))
		e.Connections = 1
		if port%20 != 0 {
			e.Verdict, e.Assessment = flow.VerdictUnanswered, flow.AssessmentUnanswered
		}
	}
	r := proven(t, c, suggest.Options{})
	if d := cmp.Diff([]string{"to app=web: TCP 8080"}, rules(r, "shop", "flowaudit-deployment-bot")); d != "" {
		t.Error(d)
	}
	scans := 0
	for _, a := range r.SetAside {
		if a.Reason == suggest.Scan {
			scans++
		}
	}
	if scans != 3 || len(r.Proof.Decided) != 3 {
		t.Errorf("%d scanned ports that answered are listed, %d of them as decided; want 3 and 3", scans, len(r.Proof.Decided))
	}
	r = proven(t, c, suggest.Options{AcceptScans: []string{"shop/bot"}})
	if got := rules(r, "shop", "flowaudit-deployment-bot"); len(got) != 2 {
		t.Errorf("accepted, the scan is not learnt: %v", got)
	}
}

func TestLabelsThatTellNothing(t *testing.T) {
	t.Run("two workloads alike share a policy, and that is said", func(t *testing.T) {
		c := ht.New()
		a, b, db := c.Workload("Deployment shop/a", "app=x", ""), c.Workload("Deployment shop/b", "app=x", ""), c.Workload("Deployment shop/db", "app=db", "")
		c.Talk(a, db, "1")
		c.Talk(b, db, "2")
		r := proven(t, c, suggest.Options{})
		if d := cmp.Diff([]string{"to app=db: TCP 1 TCP 2"}, rules(r, "shop", "flowaudit-deployment-a")); d != "" {
			t.Error(d)
		}
		if !slices.Contains(codes(r), "labels-alike") || r.Proof.Loose.Pairs != 2 {
			t.Errorf("notices %v, %d loose pairs: want labels-alike and 2", codes(r), r.Proof.Loose.Pairs)
		}
	})
	t.Run("fewer labels are told by what they lack", func(t *testing.T) {
		c := ht.New()
		a, b, db := c.Workload("Deployment shop/a", "app=x", ""), c.Workload("Deployment shop/b", "app=x,role=b", ""), c.Workload("Deployment shop/db", "app=db", "")
		c.Talk(a, db, "1")
		c.Talk(b, db, "2")
		r := proven(t, c, suggest.Options{})
		if d := cmp.Diff([]string{"from app=x,!role: TCP 1", "from role=b: TCP 2"}, rules(r, "shop", "flowaudit-deployment-db")); d != "" {
			t.Error(d)
		}
	})
	t.Run("no labels, no policy, and no default deny that would cut it off", func(t *testing.T) {
		c := ht.New()
		c.Talk(c.Workload("Pod shop/toolbox", "", ""), ht.Outside("198.51.100.1"), "443")
		r := run(t, c, suggest.Options{})
		if len(r.Policies) != 0 || !slices.Contains(codes(r), "no-labels") || !slices.Contains(codes(r), "no-default-deny") {
			t.Errorf("%d policies, notices %v", len(r.Policies), codes(r))
		}
	})
	t.Run("labels that changed", func(t *testing.T) {
		c := ht.New()
		db := c.Workload("Deployment shop/db", "app=db", "")
		change := ht.Begin().Add(200 * time.Hour)
		old := c.Workload("Deployment shop/web", "app=web-old", "").Gone(change)
		now := c.WorkloadAt("Deployment shop/web", "app=web", "", change)
		ht.Between(c.Talk(old, db, "5432"), ht.Begin(), change)
		ht.Between(c.Talk(now, db, "5432"), change, ht.End())
		r := proven(t, c, suggest.Options{})
		if d := cmp.Diff([]string{"from app=web: TCP 5432"}, rules(r, "shop", "flowaudit-deployment-db")); d != "" {
			t.Error(d)
		}
		if !slices.Contains(codes(r), "labels-changed") || len(r.Proof.Decided) != 1 || r.Proof.Decided[0].Reason != suggest.OldLabels {
			t.Errorf("notices %v, decided %+v", codes(r), r.Proof.Decided)
		}
	})
	t.Run("a label that stays is preferred over one that changes", func(t *testing.T) {
		c := ht.New()
		db := c.Workload("Deployment shop/db", "tier=data,release=r1", "")
		c.Talk(c.Workload("Deployment shop/web", "tier=front,release=w7", "").Gone(ht.Begin().Add(time.Hour)), db, "5432")
		c.Talk(c.Workload("Deployment shop/web", "tier=front,release=w8", ""), db, "5432")
		r := proven(t, c, suggest.Options{})
		if got := metav1.FormatLabelSelector(&object(t, r, "flowaudit-deployment-db").Spec.PodSelector); got != "tier=data" {
			t.Errorf("db is selected by %s", got)
		}
	})
}

func TestWhatIsMissingIsSaid(t *testing.T) {
	for _, c := range []struct {
		name     string
		cluster  func(*ht.Cluster)
		o        suggest.Options
		code     string
		policies int
	}{
		{"an empty history", func(c *ht.Cluster) { c.Workload("Deployment shop/web", "app=web", "") }, suggest.Options{}, "no-traffic", 0},
		{"holes in the coverage", func(c *ht.Cluster) {
			c.Talk(c.Workload("Deployment shop/web", "app=web", ""), ht.Outside("198.51.100.1"), "443")
			c.Input.Coverage.Nodes[0].Covered /= 2
		}, suggest.Options{}, "blind", 2},
		{"a namespace that is gone", func(c *ht.Cluster) {
			c.Talk(c.Workload("Deployment old/job", "app=job", ""), c.Workload("Deployment shop/web", "app=web", ""), "80")
			c.Talk(c.Workload("Deployment shop/web", "app=web", ""), ht.Outside("198.51.100.1"), "443")
			c.DeleteNamespace("old", ht.Begin().Add(300*time.Hour))
		}, suggest.Options{}, "namespace-deleted", 2},
		{"a workload without pods", func(c *ht.Cluster) {
			c.Talk(c.Workload("Deployment shop/web", "app=web", "").Gone(ht.Begin().Add(50*time.Hour)), ht.Outside("198.51.100.1"), "443")
		}, suggest.Options{}, "no-pods", 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			cluster := ht.New()
			c.cluster(cluster)
			r := run(t, cluster, c.o)
			if !slices.Contains(codes(r), c.code) || len(r.Policies) != c.policies {
				t.Errorf("%d policies, notices %v; want %d and %s", len(r.Policies), codes(r), c.policies, c.code)
			}
			if len(r.Proof.Refused) > 0 {
				t.Errorf("refused: %+v", r.Proof.Refused)
			}
		})
	}
}

func TestReadiness(t *testing.T) {
	c := ht.New()
	c.Talk(c.Workload("Deployment shop/web", "app=web", ""), ht.Outside("198.51.100.1"), "443")
	young := c.WorkloadAt("Deployment shop/young", "app=young", "", ht.End().Add(-50*time.Hour))
	ht.Between(c.Talk(young, ht.Outside("198.51.100.1"), "443"), ht.End().Add(-40*time.Hour), ht.End())
	c.Workload("Deployment shop/silent", "app=silent", "")
	c.Talk(c.Workload("CronJob shop/weekly", "app=weekly", ""), ht.Outside("198.51.100.1"), "443").Hours = 1
	r := run(t, c, suggest.Options{Schedules: []suggest.Schedule{
		{Namespace: "shop", Name: "yearly", Cron: "0 3 1 1 *"}, {Namespace: "shop", Name: "lost", Cron: "@daily"}, {Namespace: "shop", Name: "weekly", Cron: "@weekly"},
	}})
	got := make(map[string]string)
	for _, x := range r.Readiness {
		got[x.Workload] = strings.Join(x.Reasons, "; ")
	}
	want := map[string]string{
		"Deployment shop/web":    "",
		"Deployment shop/young":  "watched for 2.1 days, less than 7.0",
		"Deployment shop/silent": "it never talked",
		"CronJob shop/weekly":    "",
		"CronJob shop/yearly":    "its schedule (0 3 1 1 *) has not come yet; the next is 2027-01-01 03:00",
		"CronJob shop/lost":      "no pod of it was seen, though its schedule (@daily) came 30 times",
	}
	if d := cmp.Diff(want, got); d != "" || r.Ready {
		t.Errorf("ready %v: %s", r.Ready, d)
	}
}

func TestRerunsAreTheSame(t *testing.T) {
	c := ht.New()
	random(rand.New(rand.NewPCG(1, 2)), c, 30, 200)
	var first string
	for n := range uint64(4) {
		h, err := history.New(c.Shuffled(rand.New(rand.NewPCG(n, n)).Shuffle))
		if err != nil {
			t.Fatal(err)
		}
		r, err := suggest.Run(h, suggest.Options{})
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		if err := r.WriteYAML(&b, true); err != nil {
			t.Fatal(err)
		}
		if first == "" {
			first = b.String()
		}
		if d := cmp.Diff(first, b.String()); d != "" {
			t.Fatal(d)
		}
	}
}
