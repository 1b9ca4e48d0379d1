package cluster_test

import (
	"bufio"
	"encoding/json"
	"os"
	"strings"
	"testing"
)

// request is what the API server's audit log tells of a request.
type request struct {
	Verb        string
	RequestURI  string
	User        struct{ Username string }
	ObjectRef   struct{ Resource, APIGroup string }
	Annotations map[string]string
}

// TestRights: with the rights of deploy/rbac nothing that flowaudit asks for is
// refused, an agent asks for its own node only, and what the roles grant is
// asked for.
func TestRights(t *testing.T) {
	s := openShop(t, "rights-shop")
	deeds, err := s.Act(t.Context())
	must(t, err)
	compare(t, s.Namespace, deeds) // it has read every kind by then
	const agent, collector = "system:serviceaccount:flowaudit:flowaudit-agent", "system:serviceaccount:flowaudit:flowaudit-collector"
	asked := map[string]map[string]bool{agent: {}, collector: {}}
	for _, r := range audited(t, agent, collector) {
		if decision := r.Annotations["authorization.k8s.io/decision"]; decision != "allow" {
			t.Errorf("%s: %s %s: %s", r.User.Username, r.Verb, r.RequestURI, decision)
		}
		asked[r.User.Username][r.Verb+" "+r.ObjectRef.Resource] = true
		if r.User.Username != agent {
			continue
		}
		switch r.ObjectRef.Resource {
		case "pods":
			if !strings.Contains(r.RequestURI, "fieldSelector=spec.nodeName%3Dnode") {
				t.Errorf("an agent asks for other nodes' pods: %s", r.RequestURI)
			}
		case "nodes":
			if !strings.Contains(r.RequestURI, "fieldSelector=metadata.name%3Dnode") {
				t.Errorf("an agent asks for other nodes: %s", r.RequestURI)
			}
		}
	}
	for user, resources := range map[string][]string{
		agent:     {"nodes", "pods"},
		collector: {"namespaces", "nodes", "pods", "services", "endpointslices", "networkpolicies", "replicasets", "jobs"},
	} {
		for _, resource := range resources {
			for _, verb := range []string{"list", "watch"} {
				if !asked[user][verb+" "+resource] {
					t.Errorf("%s may %s %s, and never did", user, verb, resource)
				}
			}
		}
	}
}

// audited are the requests of some users.
func audited(t *testing.T, users ...string) []request {
	t.Helper()
	log, err := os.Open(lab.AuditLog())
	must(t, err)
	defer log.Close()
	var all []request
	lines := bufio.NewScanner(log)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r request
		must(t, json.Unmarshal(lines.Bytes(), &r))
		for _, u := range users {
			if r.User.Username == u {
				all = append(all, r)
			}
		}
	}
	must(t, lines.Err())
	return all
}
