package kube

import (
	"maps"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// granted reads what the ClusterRole of a file allows.
func granted(t *testing.T, file string) map[request]bool {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[request]bool)
	for _, d := range documents(content) {
		var role rbacv1.ClusterRole
		if err := yaml.Unmarshal(d.text, &role); err != nil {
			t.Fatal(err)
		}
		if role.Kind != "ClusterRole" {
			continue
		}
		for _, rule := range role.Rules {
			for _, group := range rule.APIGroups {
				for _, resource := range rule.Resources {
					for _, verb := range rule.Verbs {
						out[request{verb: verb, group: group, resource: resource}] = true
					}
				}
			}
		}
	}
	return out
}

// Each role grants what is asked for, and nothing that is not: a watch that
// breaks off and a server that starts anew make every request that there is.
func TestRolesGrantWhatIsAskedAndNoMore(t *testing.T) {
	for _, c := range []struct{ file, node string }{
		{"../deploy/rbac/agent.yaml", "n1"},
		{"../deploy/rbac/collector.yaml", ""},
	} {
		t.Run(c.file, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				api := newFakeAPI(t)
				for _, k := range otherKinds() {
					if !slices.Contains(api.groups, k.group) {
						api.groups = append(api.groups, k.group)
					}
				}
				r := watching(t, api, c.node, Options{})
				<-r.Synced()
				api.stop()
				time.Sleep(10 * time.Second)
				api.put("pods", newPod("shop", "web"))
				api.start(true)
				time.Sleep(time.Minute)
				// A server without streaming lists is asked for a list.
				for _, f := range r.followers {
					if _, err := f.source.List(t.Context(), metav1.ListOptions{}); err != nil {
						t.Error(err)
					}
				}
				asked := make(map[request]bool)
				api.mu.Lock()
				for _, q := range api.requests {
					q.field = ""
					asked[q] = true
				}
				api.mu.Unlock()
				if role := granted(t, c.file); !maps.Equal(asked, role) {
					t.Errorf("asked for %v\nthe role grants %v", sorted(asked), sorted(role))
				}
			})
		})
	}
}

// What the collector asks about agents and readers is granted apart.
func TestTheRoleForTokensGrantsReviewsOnly(t *testing.T) {
	want := map[request]bool{
		{verb: "create", group: "authentication.k8s.io", resource: "tokenreviews"}: true, {verb: "create", group: "authorization.k8s.io", resource: "subjectaccessreviews"}: true,
	}
	if role := granted(t, "../deploy/rbac/tokens.yaml"); !maps.Equal(want, role) {
		t.Errorf("the role grants %v", sorted(role))
	}
}

func sorted(requests map[request]bool) []string {
	var out []string
	for q := range requests {
		out = append(out, q.verb+" "+q.resource+"."+q.group)
	}
	slices.Sort(out)
	return out
}
