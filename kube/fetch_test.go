package kube

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/flow"
)

// fetched reads a fake server once.
func fetched(t *testing.T, api *fakeAPI) (*Snapshot, error) {
	t.Helper()
	server, err := newServer(api.config())
	if err != nil {
		t.Fatal(err)
	}
	defer server.client.CloseIdleConnections()
	f := &fetch{server: server, snapshot: newSnapshot()}
	err = f.all(t.Context())
	f.snapshot.completeNamespaces()
	return f.snapshot, err
}

func fetchedCronJobs(t *testing.T, api *fakeAPI) ([]*batchv1.CronJob, error) {
	t.Helper()
	server, err := newServer(api.config())
	if err != nil {
		t.Fatal(err)
	}
	defer server.client.CloseIdleConnections()
	f := &fetch{server: server, snapshot: newSnapshot()}
	err = f.list(t.Context(), cronJobs())
	return f.snapshot.CronJobs, err
}

func TestFetchCronJobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI(t)
		api.put("cronjobs", &batchv1.CronJob{
			TypeMeta: metav1.TypeMeta{Kind: "CronJob", APIVersion: "batch/v1"}, ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "report"},
			Spec: batchv1.CronJobSpec{Schedule: "0 3 * * 0"},
		})
		if jobs, err := fetchedCronJobs(t, api); err != nil || len(jobs) != 1 || jobs[0].Spec.Schedule != "0 3 * * 0" {
			t.Errorf("%v, %v", jobs, err)
		}
		api.forbidden["cronjobs"] = true
		if _, err := fetchedCronJobs(t, api); err == nil || !strings.Contains(err.Error(), "list cronjobs") {
			t.Errorf("without the permission: %v", err)
		}
	})
}

// The role for people grants what Fetch asks for, and nothing that it does not.
func TestReaderRoleGrantsWhatIsAskedAndNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI(t)
		for _, k := range otherKinds() {
			if !slices.Contains(api.groups, k.group) {
				api.groups = append(api.groups, k.group)
			}
		}
		if _, err := fetched(t, api); err != nil {
			t.Fatal(err)
		}
		if jobs, err := fetchedCronJobs(t, api); err != nil || len(jobs) > 0 {
			t.Fatal(jobs, err)
		}
		asked := make(map[request]bool)
		for _, q := range api.requests {
			asked[q] = true
		}
		if role := granted(t, "../deploy/rbac/reader.yaml"); !maps.Equal(asked, role) {
			t.Errorf("asked for %v\nthe role grants %v", sorted(asked), sorted(role))
		}
	})
}

func TestFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI(t)
		yes := true
		pod := ready(newPod("shop", "web-x"), "10.0.0.1", time.Now())
		pod.OwnerReferences = []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "web-1", Controller: &yes}}
		api.put("pods", pod)
		api.put("namespaces", newNamespace("shop", map[string]string{"env": "prod"}))
		api.put("nodes", newNode("n1", "192.168.0.1"))
		api.put("networkpolicies", &networkingv1.NetworkPolicy{TypeMeta: metav1.TypeMeta{Kind: "NetworkPolicy", APIVersion: "networking.k8s.io/v1"}, ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"}})
		api.put("replicasets", &metav1.PartialObjectMetadata{
			TypeMeta:   metav1.TypeMeta{Kind: "PartialObjectMetadata", APIVersion: "meta.k8s.io/v1"},
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web-1", OwnerReferences: []metav1.OwnerReference{{Kind: "Deployment", Name: "web", Controller: &yes}}},
		})
		s, err := fetched(t, api)
		if err != nil || len(s.Limits) > 0 {
			t.Fatal(err, s.Limits)
		}
		if len(s.Pods) != 1 || len(s.Nodes) != 1 || len(s.Policies) != 1 || len(s.Namespaces) != 1 || s.Namespaces[0].Labels["env"] != "prod" {
			t.Errorf("%d pods, %d nodes, %d policies, namespaces %v", len(s.Pods), len(s.Nodes), len(s.Policies), s.Namespaces)
		}
		if w := s.Workload(s.Pods[0]); w != (flow.Workload{Kind: "Deployment", Name: "web"}) {
			t.Errorf("the pod is of %v", w)
		}
		for _, optional := range []string{"nodes", "services", "daemonsets", "jobs"} {
			api.forbidden[optional] = true
		}
		if s, err := fetched(t, api); err != nil || len(s.Limits) != 4 {
			t.Errorf("without permission for four kinds: %v, limits %q", err, s.Limits)
		}
		api.forbidden["networkpolicies"] = true
		if _, err := fetched(t, api); err == nil || !strings.HasPrefix(err.Error(), "list networkpolicies.networking.k8s.io: ") {
			t.Errorf("without permission for policies: %v", err)
		}
	})
}

// Files that are laid over a cluster add objects and replace those of the same name.
func TestLoadOverACluster(t *testing.T) {
	text := func(kind, name, more string) string {
		version := map[string]string{"NetworkPolicy": "networking.k8s.io/v1"}[kind]
		if version == "" {
			version = "v1"
		}
		return "---\n{apiVersion: " + version + ", kind: " + kind + ", metadata: {name: " + name + ", namespace: shop, labels: {from: " + more + "}}, spec: {}}\n"
	}
	cluster := snapshot(t, text("NetworkPolicy", "kept", "cluster")+text("NetworkPolicy", "db", "cluster")+text("Pod", "web", "cluster"))
	load := func(under *Snapshot) string {
		s, err := Load([]string{"-"}, LoadOptions{Stdin: strings.NewReader(text("NetworkPolicy", "db", "file") + text("NetworkPolicy", "new", "file")), Under: under})
		if err != nil || len(s.Problems) > 0 {
			t.Fatal(err, s.Problems)
		}
		var out []string
		for _, p := range s.Policies {
			out = append(out, p.Name+" "+p.Labels["from"])
		}
		for _, p := range s.Pods {
			out = append(out, "pod "+p.Name)
		}
		for _, n := range s.Namespaces {
			out = append(out, "in "+n.Name)
		}
		slices.Sort(out)
		return strings.Join(out, ", ")
	}
	if got, want := load(cluster), "db file, in shop, kept cluster, new file, pod web"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got, want := load(cluster.WithoutPolicies()), "db file, in shop, new file, pod web"; got != want {
		t.Errorf("without its policies: %s, want %s", got, want)
	}
	if len(cluster.Policies) != 2 {
		t.Error("the cluster lost policies")
	}
}
