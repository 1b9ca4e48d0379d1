package kube

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/flowaudit/flowaudit/flow"
)

type flowGap = flow.Gap

func (r *watched) lost(g flow.Gap) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gaps = append(r.gaps, g)
}

func newPod(namespace, name string) *corev1.Pod {
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(name + "-uid"), Labels: map[string]string{"app": name}},
		Spec:       corev1.PodSpec{NodeName: "n1"},
	}
}

func newNode(name, ip string) *corev1.Node {
	return &corev1.Node{
		TypeMeta: metav1.TypeMeta{Kind: "Node", APIVersion: "v1"}, ObjectMeta: metav1.ObjectMeta{Name: name},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}}},
	}
}

func newNamespace(name string, labels map[string]string) *corev1.Namespace {
	return &corev1.Namespace{TypeMeta: metav1.TypeMeta{Kind: "Namespace", APIVersion: "v1"}, ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
}

func (r *watched) who(addr string, at time.Time) string {
	e := r.Index.Endpoint(netip.MustParseAddr(addr), at)
	switch e.Kind {
	case flow.EndpointPod:
		return fmt.Sprintf("%s/%s %s/%s", e.Namespace, e.Pod, e.Workload.Kind, e.Workload.Name)
	case flow.EndpointAmbiguous:
		return "ambiguous " + strings.Join(e.Candidates, " ")
	}
	return e.Kind.String()
}

func TestWatchFollowsPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI(t)
		owned := newPod("shop", "web-x")
		yes := true
		owned.OwnerReferences = []metav1.OwnerReference{{APIVersion: "batch/v1", Kind: "Job", Name: "nightly-1", Controller: &yes}}
		began := time.Now()
		api.put("namespaces", newNamespace("shop", map[string]string{"env": "prod"}))
		api.put("nodes", newNode("n1", "192.168.0.1"))
		api.put("pods", ready(owned, "10.0.0.1", began))
		api.put("jobs", &metav1.PartialObjectMetadata{
			TypeMeta:   metav1.TypeMeta{Kind: "PartialObjectMetadata", APIVersion: "meta.k8s.io/v1"},
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "nightly-1", OwnerReferences: []metav1.OwnerReference{{Kind: "CronJob", Name: "nightly", Controller: &yes}}},
		})
		time.Sleep(time.Minute)
		r := watching(t, api, "", Options{})
		<-r.Synced()
		if got := r.who("10.0.0.1", time.Now()); got != "shop/web-x CronJob/nightly" {
			t.Errorf("a pod that was there is %q", got)
		}
		if got := r.who("192.168.0.1", time.Now()); got != "node" {
			t.Errorf("the node is %q", got)
		}
		api.put("pods", newPod("shop", "late")) // no address yet
		synctest.Wait()
		api.put("pods", ready(newPod("shop", "late"), "10.0.0.2", time.Now()))
		synctest.Wait()
		if got := r.who("10.0.0.2", time.Now()); got != "shop/late Pod/late" {
			t.Errorf("a new pod is %q", got)
		}
		if s := r.Status(); s.Away || len(s.Problems) != 0 || s.Server != "http://api.test" {
			t.Errorf("%+v", s)
		}
	})
}

func TestAgentAsksForItsNodeOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI(t)
		r := watching(t, api, "n1", Options{})
		<-r.Synced()
		api.mu.Lock()
		defer api.mu.Unlock()
		want := map[string]string{"pods": "spec.nodeName=n1", "nodes": "metadata.name=n1"}
		for _, q := range api.requests {
			if q.field == "" || q.field != want[q.resource] {
				t.Errorf("asked to %s %s where %q", q.verb, q.resource, q.field)
			}
		}
	})
}

func TestNoPermissionForOneKind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI(t)
		api.forbidden["services"] = true
		api.put("pods", ready(newPod("shop", "web"), "10.0.0.1", time.Now()))
		r := watching(t, api, "", Options{})
		<-r.Synced()
		if got := r.who("10.0.0.1", time.Now()); got != "shop/web Pod/web" {
			t.Errorf("the rest does not work: %q", got)
		}
		problems := r.Status().Problems
		if len(problems) != 1 || !strings.HasPrefix(problems[0], "no permission for services (") || !strings.Contains(problems[0], `resource "services"`) {
			t.Errorf("problems %q, want one that names services and the verb", problems)
		}
		time.Sleep(time.Minute)
		if len(r.gaps) != 0 || r.Status().Away {
			t.Errorf("a kind that is refused is taken for an absent server: %+v", r.gaps)
		}
		api.mu.Lock()
		api.forbidden["services"] = false
		api.mu.Unlock()
		time.Sleep(time.Minute)
		if p := r.Status().Problems; len(p) != 0 {
			t.Errorf("permission was given, and it still says %q", p)
		}
	})
}

func TestServerAway(t *testing.T) {
	for _, anew := range []bool{false, true} {
		t.Run(fmt.Sprintf("started anew %t", anew), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				api := newFakeAPI(t)
				old, stays := newPod("shop", "old"), newPod("shop", "stays")
				api.put("pods", ready(old, "10.0.0.1", time.Now()))
				api.put("pods", ready(stays, "10.0.0.2", time.Now()))
				r := watching(t, api, "n1", Options{})
				<-r.Synced()
				time.Sleep(time.Minute)
				down := time.Now()
				api.stop()
				time.Sleep(30 * time.Second)
				if got := r.who("10.0.0.2", time.Now()); got != "shop/stays Pod/stays" || !r.Status().Away {
					t.Errorf("away %t, and a known pod is %q", r.Status().Away, got)
				}
				// Meanwhile the address changes hands.
				changed := time.Now()
				api.remove("pods", old)
				api.put("pods", ready(newPod("shop", "new"), "10.0.0.1", changed))
				time.Sleep(30 * time.Second)
				up := time.Now()
				api.mu.Lock()
				lists := countLists(api.requests)
				api.mu.Unlock()
				api.start(anew)
				time.Sleep(30 * time.Second)
				if s := r.Status(); s.Away {
					t.Fatal("still away")
				}
				for _, c := range []struct {
					at   time.Time
					want string
				}{
					{down.Add(-2 * time.Second), "shop/old Pod/old"},
					{changed.Add(5 * time.Second), "shop/new Pod/new"},
					{time.Now(), "shop/new Pod/new"},
				} {
					if got := r.who("10.0.0.1", c.at); got != c.want {
						t.Errorf("%s after the server went the address is %q, want %q", c.at.Sub(down), got, c.want)
					}
				}
				if got := r.who("10.0.0.1", down.Add(20*time.Second)); !strings.HasPrefix(got, "ambiguous") {
					t.Errorf("while nobody told who had it, it is %q", got)
				}
				checkGaps(t, r, down, up)
				api.mu.Lock()
				defer api.mu.Unlock()
				if n := countLists(api.requests) - lists; !anew && n != 0 {
					t.Errorf("%d lists where the watches could go on", n)
				}
			})
		})
	}
}

func TestAServerThatIsNotReadyIsNotAskedForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI(t)
		api.put("pods", ready(newPod("shop", "web"), "10.0.0.1", time.Now()))
		r := watching(t, api, "n1", Options{})
		<-r.Synced()
		refuse := func(yes bool) (lists int) {
			api.mu.Lock()
			defer api.mu.Unlock()
			api.forbidden["pods"] = yes
			return countLists(api.requests)
		}
		api.stop()
		time.Sleep(5 * time.Second)
		lists := refuse(true)
		api.start(false)
		time.Sleep(10 * time.Second)
		if s := r.Status(); !s.Away || len(s.Problems) != 0 {
			t.Errorf("a server that has just come back refuses, and that is %+v", s)
		}
		refuse(false)
		time.Sleep(15 * time.Second)
		if n := refuse(true) - lists; n != 0 || r.Status().Away {
			t.Errorf("%d lists, away %t: want the watch to go on", n, r.Status().Away)
		}
		api.stop()
		api.start(false)
		time.Sleep(2 * time.Minute)
		if s := r.Status(); s.Away || len(s.Problems) != 1 {
			t.Errorf("permission was taken away, and that is %+v", s)
		}
	})
}

func countLists(requests []request) int {
	n := 0
	for _, q := range requests {
		if q.verb == "list" {
			n++
		}
	}
	return n
}

// checkGaps wants the time away, whole and in order.
func checkGaps(t *testing.T, r *watched, down, up time.Time) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.gaps) < 2 {
		t.Fatalf("gaps %+v, want some", r.gaps)
	}
	first, last := r.gaps[0], r.gaps[len(r.gaps)-1]
	if first.Kind != flow.GapNames || first.Start.After(down) || down.Sub(first.Start) > time.Second || last.End.Before(up) || last.End.Sub(up) > 25*time.Second {
		t.Errorf("the gaps go from %s to %s, want from %s to %s", first.Start, last.End, down, up)
	}
	for i := range r.gaps[1:] {
		if !r.gaps[i].End.Equal(r.gaps[i+1].Start) {
			t.Errorf("between gaps %d and %d is time", i, i+1)
		}
	}
}

func TestServerAwayFromTheBeginning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI(t)
		api.put("pods", ready(newPod("shop", "web"), "10.0.0.1", time.Now()))
		api.stop()
		began := time.Now()
		r := watching(t, api, "", Options{})
		time.Sleep(time.Minute)
		if !r.Status().Away {
			t.Error("it does not say that the server is away")
		}
		api.start(false)
		<-r.Synced()
		time.Sleep(time.Second)
		if got := r.who("10.0.0.1", time.Now()); got != "shop/web Pod/web" {
			t.Errorf("%q", got)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.gaps) == 0 || !r.gaps[0].Start.Equal(began) {
			t.Errorf("gaps %+v, want one from the start", r.gaps)
		}
	})
}

func TestSkewIsMeasured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI(t)
		api.ahead = 42 * time.Second
		r := watching(t, api, "n1", Options{})
		<-r.Synced()
		if d := r.Status().Skew; d < 41*time.Second || d > 43*time.Second {
			t.Errorf("skew %s, want 42s", d)
		}
	})
}

func TestOtherKindsOfPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI(t)
		api.groups = []string{"apps", "cilium.io", "projectcalico.org"}
		api.forbidden["globalnetworkpolicies"] = true
		api.put("ciliumnetworkpolicies", newPod("shop", "l7"))
		api.put("networkpolicies", &networkingv1.NetworkPolicy{ // what Calico's server makes of one
			TypeMeta:   metav1.TypeMeta{Kind: "NetworkPolicy", APIVersion: "networking.k8s.io/v1"},
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: calicoCopy + "db"},
		})
		var found []string
		r := watching(t, api, "", Options{}, func(o *WatchOptions) {
			o.Others = func(policies []OtherPolicy) {
				found = nil
				for _, p := range policies {
					found = append(found, fmt.Sprintf("%s, %s, readable %t", p.Group, &p, p.Object != nil))
				}
			}
		})
		<-r.Synced()
		synctest.Wait()
		want := []string{"ciliumnetworkpolicies.cilium.io", "globalnetworkpolicies.projectcalico.org"}
		if got := r.OtherKinds(); !slices.Equal(got, want) {
			t.Errorf("%q, want the one that exists and the one that cannot be asked for: %q", got, want)
		}
		if want := []string{"projectcalico.org, GlobalNetworkPolicy, readable false", "cilium.io, CiliumNetworkPolicy shop/l7, readable true"}; !slices.Equal(found, want) {
			t.Errorf("found %q, want %q", found, want)
		}
		api.remove("ciliumnetworkpolicies", newPod("shop", "l7"))
		time.Sleep(2 * discoverEvery)
		if synctest.Wait(); len(found) != 1 {
			t.Errorf("one has gone, and there are %q", found)
		}
	})
}

func TestChangesAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI(t)
		var got []flow.Change
		r := watching(t, api, "", Options{Changed: func(c flow.Change) { got = append(got, c) }})
		<-r.Synced()
		take := func() []flow.Change {
			synctest.Wait()
			out := got
			got = nil
			return out
		}
		written := metav1.NewTime(time.Now().Truncate(time.Second))
		policy := &networkingv1.NetworkPolicy{
			TypeMeta: metav1.TypeMeta{Kind: "NetworkPolicy", APIVersion: "networking.k8s.io/v1"},
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db", ManagedFields: []metav1.ManagedFieldsEntry{
				{Manager: "helm", Time: &metav1.Time{Time: written.Add(-time.Hour)}}, {Manager: "kubectl-edit", Time: &written},
			}},
		}
		api.put("networkpolicies", policy)
		c := take()
		if len(c) != 1 || c[0].Kind != flow.ChangePolicy || c[0].Namespace != "shop" || c[0].Name != "db" || c[0].Author != "kubectl-edit" || !c[0].Time.Equal(written.Time) {
			t.Fatalf("a policy: %+v", c)
		}
		var back networkingv1.NetworkPolicy
		if err := json.Unmarshal(c[0].Object, &back); err != nil || back.Name != "db" || len(back.ManagedFields) != 0 {
			t.Errorf("%v: %s", err, c[0].Object)
		}
		api.put("networkpolicies", policy)
		if c := take(); len(c) != 0 {
			t.Errorf("a policy that did not change: %+v", c)
		}
		api.remove("networkpolicies", policy)
		if c := take(); len(c) != 1 || !c[0].Deleted || len(r.Index.Policies()) != 0 {
			t.Errorf("a policy that went: %+v", c)
		}
		api.put("namespaces", newNamespace("shop", map[string]string{"env": "test"}))
		synctest.Wait()
		api.put("pods", ready(newPod("shop", "web"), "10.0.0.1", time.Now()))
		if c := take(); len(c) != 2 || c[0].Kind != flow.ChangeNamespace || string(c[0].Object) != `{"env":"test"}` || c[1].Kind != flow.ChangeIdentity {
			t.Fatalf("a namespace and a pod: %+v", c)
		}
		before := r.Index.Endpoint(netip.MustParseAddr("10.0.0.1"), time.Now())
		told := time.Now()
		time.Sleep(time.Second)
		api.put("namespaces", newNamespace("shop", map[string]string{"env": "prod"}))
		if c := take(); len(c) != 3 || c[1].Deleted || !c[2].Deleted || c[2].Name != fmt.Sprintf("%016x", before.Identity) {
			t.Errorf("other labels of the namespace: %+v", c)
		}
		if now := r.Index.Endpoint(netip.MustParseAddr("10.0.0.1"), time.Now()); now.Identity == before.Identity {
			t.Error("other labels of the namespace, and the same identity")
		}
		if then := r.Index.Endpoint(netip.MustParseAddr("10.0.0.1"), told); then.Pod != "web" || then.Identity != before.Identity {
			t.Errorf("the past has another identity: %+v", then)
		}
	})
}

// What an earlier run told of, and what is gone now, went in between.
func TestWhatWentWhileNobodyWatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI(t)
		policy := func(name string) *networkingv1.NetworkPolicy {
			return &networkingv1.NetworkPolicy{
				TypeMeta:   metav1.TypeMeta{Kind: "NetworkPolicy", APIVersion: "networking.k8s.io/v1"},
				ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
			}
		}
		goes, stays := newNamespace("bank", nil), newNamespace("shop", map[string]string{"team": "a"})
		for _, n := range []*corev1.Namespace{goes, stays} {
			api.put("namespaces", n)
		}
		api.put("networkpolicies", policy("stays"))
		api.put("networkpolicies", policy("goes"))
		api.put("pods", ready(newPod("shop", "web"), "10.0.0.1", time.Now()))
		api.put("pods", ready(newPod("bank", "api"), "10.0.0.2", time.Now()))
		var mu sync.Mutex
		var told []flow.Change
		run := func(before []flow.Change) (deleted []string) {
			told = nil
			x := New(Options{Changed: func(c flow.Change) {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, c)
			}})
			x.Remember(before)
			r := watchingWith(t, api, "", x)
			<-r.Synced()
			r.stop()
			for _, c := range told {
				if c.Deleted {
					deleted = append(deleted, strings.Trim(fmt.Sprintf("%s %s/%s", c.Kind, c.Namespace, c.Name), "/"))
				}
			}
			slices.Sort(deleted)
			return deleted
		}
		if d := run(nil); len(d) != 0 {
			t.Errorf("deleted is %q, and nothing was known", d)
		}
		first := told
		if d := run(first); len(d) != 0 {
			t.Errorf("deleted is %q, and nothing went", d)
		}
		api.remove("networkpolicies", policy("goes"))
		api.remove("pods", newPod("bank", "api"))
		api.remove("namespaces", goes)
		stays.Labels["team"] = "b"
		api.put("namespaces", stays)
		api.mu.Lock()
		api.forbidden["networkpolicies"] = true
		api.mu.Unlock()
		web := fmt.Sprintf("identity shop/%016x", Identity("shop", map[string]string{"team": "a"}, map[string]string{"app": "web"}))
		bank := fmt.Sprintf("identity bank/%016x", Identity("bank", nil, map[string]string{"app": "api"}))
		want := []string{web, bank, "namespace /bank"}
		slices.Sort(want)
		if d := run(first); !slices.Equal(d, want) {
			t.Errorf("deleted is %q, want %q: policies are not known", d, want)
		}
		api.mu.Lock()
		api.forbidden["networkpolicies"] = false
		api.mu.Unlock()
		if d := run(append(first, told...)); !slices.Equal(d, []string{"policy shop/goes"}) {
			t.Errorf("deleted is %q, want the policy alone", d)
		}
	})
}

func TestWhatAWatchTellsMayBeFromTheLastBreak(t *testing.T) {
	for _, c := range []struct {
		name         string
		gone         bool
		fresh, after float64 // seconds before it went on, and after
		want         bool
	}{
		{"it is not back yet", true, 10, 0, true},
		{"just after a long break", false, 10, 4, true},
		{"some time after it", false, 10, 6, false},
		{"just after a short break", false, 0.01, 0.5, true},
		{"a moment after it", false, 0.01, 1.5, false},
	} {
		s := following{current: !c.gone, fresh: sec(-c.fresh), resumed: sec(0)}
		if got := s.catchesUp(sec(c.after)); got != c.want {
			t.Errorf("%s: %t, want %t", c.name, got, c.want)
		}
	}
}
