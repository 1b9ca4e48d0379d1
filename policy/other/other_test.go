package other

import (
	"strings"
	"testing"
)

const (
	calico  = "projectcalico.org"
	cilium  = "cilium.io"
	antrea  = "crd.antrea.io"
	network = "policy.networking.k8s.io"
)

// pods are what the tables' policies select of.
func pods() map[string]*Pod {
	shop, ops := map[string]string{"team": "shop", "env": "prod"}, map[string]string{"team": "ops"}
	return map[string]*Pod{
		"db":      {"shop", shop, map[string]string{"role": "db", "app.kubernetes.io/name": "postgres-15"}},
		"web":     {"shop", shop, map[string]string{"role": "web"}},
		"prom":    {"ops", ops, map[string]string{"role": "prom"}},
		"strange": {"new", nil, map[string]string{"role": "web"}},
	}
}

// selected names the pods that a policy selects, sorted.
func selected(p *Policy) string {
	var out []string
	all := pods()
	for _, name := range []string{"db", "prom", "strange", "web"} {
		if p.Selects(all[name]) {
			out = append(out, name)
		}
	}
	return strings.Join(out, " ")
}

func TestSelectors(t *testing.T) {
	const everyone = "db prom strange web"
	for _, c := range []struct {
		name, group, kind, namespace, object, want string
	}{
		{"Calico, of a namespace", calico, "NetworkPolicy", "shop", `{"spec": {"selector": "role == 'db'"}}`, "db"},
		{"Calico, the whole namespace", calico, "NetworkPolicy", "shop", `{"spec": {}}`, "db web"},
		{"Calico, the cluster", calico, "GlobalNetworkPolicy", "", `{"spec": {"selector": "all()"}}`, everyone},
		{"Calico, by namespace: of one labels are not known", calico, "GlobalNetworkPolicy", "", `{"spec": {"namespaceSelector": "team == 'ops'"}}`, "prom strange"},
		{"Calico, by namespace's name", calico, "GlobalNetworkPolicy", "", `{"spec": {"namespaceSelector": "projectcalico.org/name in {'ops'}"}}`, "prom"},
		{"Calico, both", calico, "GlobalNetworkPolicy", "", `{"spec": {"namespaceSelector": "has(env)", "selector": "role == 'web'"}}`, "strange web"},
		{"Calico, a service account's labels are not known", calico, "NetworkPolicy", "shop", `{"spec": {"selector": "role == 'db'", "serviceAccountSelector": "tier == 'x'"}}`, "db"},
		{"Calico, a host's policy", calico, "GlobalNetworkPolicy", "", `{"spec": {"selector": "has(node)"}}`, ""},
		{"Calico, staged", calico, "StagedGlobalNetworkPolicy", "", `{"spec": {"selector": "all()"}}`, ""},
		{"Cilium", cilium, "CiliumNetworkPolicy", "shop", `{"spec": {"endpointSelector": {"matchLabels": {"k8s:role": "db"}}}}`, "db"},
		{"Cilium, several", cilium, "CiliumNetworkPolicy", "shop", `{"specs": [{"endpointSelector": {"matchLabels": {"role": "db"}}}, {"endpointSelector": {"matchExpressions": [{"key": "any:role", "operator": "NotIn", "values": ["db"]}]}}]}`, "db web"},
		{"Cilium, another namespace counts for nothing", cilium, "CiliumNetworkPolicy", "shop", `{"spec": {"endpointSelector": {"matchLabels": {"role": "db", "k8s:io.kubernetes.pod.namespace": "ops"}}}}`, "db"},
		{"Cilium, the cluster", cilium, "CiliumClusterwideNetworkPolicy", "", `{"spec": {"endpointSelector": {}}}`, everyone},
		{"Cilium, by namespace", cilium, "CiliumClusterwideNetworkPolicy", "", `{"spec": {"endpointSelector": {"matchLabels": {"k8s:io.kubernetes.pod.namespace": "ops"}}}}`, "prom"},
		{"Cilium, by namespace's labels", cilium, "CiliumClusterwideNetworkPolicy", "", `{"spec": {"endpointSelector": {"matchExpressions": [{"key": "k8s:io.cilium.k8s.namespace.labels.team", "operator": "In", "values": ["ops"]}]}}}`, "prom strange"},
		{"Cilium, a service account", cilium, "CiliumNetworkPolicy", "shop", `{"spec": {"endpointSelector": {"matchLabels": {"io.cilium.k8s.policy.serviceaccount": "x", "role": "db"}}}}`, "db"},
		{"Cilium, what Cilium runs", cilium, "CiliumClusterwideNetworkPolicy", "", `{"spec": {"endpointSelector": {"matchLabels": {"reserved:health": ""}}}}`, ""},
		{"Cilium, nodes", cilium, "CiliumClusterwideNetworkPolicy", "", `{"spec": {"nodeSelector": {}}}`, ""},
		{"admin, namespaces", network, "AdminNetworkPolicy", "", `{"spec": {"subject": {"namespaces": {"matchLabels": {"team": "shop"}}}}}`, "db strange web"},
		{"admin, a namespace by name", network, "BaselineAdminNetworkPolicy", "", `{"spec": {"subject": {"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}}}}}`, "db web"},
		{"admin, pods", network, "ClusterNetworkPolicy", "", `{"spec": {"subject": {"pods": {"namespaceSelector": {}, "podSelector": {"matchExpressions": [{"key": "role", "operator": "Exists"}, {"key": "x", "operator": "DoesNotExist"}, {"key": "role", "operator": "In", "values": ["web", "prom"]}]}}}}}`, "prom strange web"},
		{"Antrea, of a namespace", antrea, "NetworkPolicy", "shop", `{"spec": {"appliedTo": [{"podSelector": {"matchLabels": {"role": "db"}}}]}}`, "db"},
		{"Antrea, by rule", antrea, "ClusterNetworkPolicy", "", `{"spec": {"ingress": [{"appliedTo": [{"namespaceSelector": {"matchLabels": {"team": "ops"}}}]}], "egress": [{"appliedTo": [{"podSelector": {"matchLabels": {"role": "db"}}, "namespaceSelector": {"matchLabels": {"team": "shop"}}}]}]}}`, "db prom strange"},
		{"Antrea, nodes", antrea, "ClusterNetworkPolicy", "", `{"spec": {"appliedTo": [{"nodeSelector": {}}]}}`, ""},
	} {
		p := Read(c.group, c.kind, c.namespace, "p", []byte(c.object))
		if got := selected(p); got != c.want || p.Doubt != "" {
			t.Errorf("%s: selects %q, want %q (%s)", c.name, got, c.want, p.Doubt)
		}
	}
}

// What cannot be understood selects all that it could, and says why.
func TestDoubts(t *testing.T) {
	const everyone = "db prom strange web"
	for _, c := range []struct {
		name, group, kind, namespace, object, selects, why string
	}{
		{"no permission", cilium, "CiliumNetworkPolicy", "", "", everyone, "no permission"},
		{"no JSON", cilium, "CiliumNetworkPolicy", "shop", "{", "db web", "cannot be read"},
		{"another type", calico, "GlobalNetworkPolicy", "", `{"spec": {"selector": 1}}`, everyone, "cannot be read"},
		{"Calico's grammar", calico, "NetworkPolicy", "shop", `{"spec": {"selector": "role is 'db'"}}`, "db web", "spec.selector: selector \"role is 'db'\", at 6"},
		{"Calico at the nodes", calico, "GlobalNetworkPolicy", "", `{"spec": {"selector": "has(node)", "applyOnForward": true}}`, everyone, "forward"},
		{"an operator of tomorrow", cilium, "CiliumNetworkPolicy", "shop", `{"spec": {"endpointSelector": {"matchExpressions": [{"key": "role", "operator": "Near"}]}}}`, "db web", `"Near"`},
		{"an operator without values", network, "AdminNetworkPolicy", "", `{"spec": {"subject": {"namespaces": {"matchExpressions": [{"key": "role", "operator": "In"}]}}}}`, everyone, "In with 0 values"},
		{"one rule of two", cilium, "CiliumNetworkPolicy", "shop", `{"specs": [{"endpointSelector": {"matchLabels": {"role": "db"}}}, {}]}`, "db web", "neither endpointSelector"},
		{"no rule", cilium, "CiliumNetworkPolicy", "shop", `{}`, "db web", "neither spec nor specs"},
		{"no subject", network, "AdminNetworkPolicy", "", `{"spec": {}}`, everyone, "spec.subject"},
		{"a group", antrea, "NetworkPolicy", "shop", `{"spec": {"appliedTo": [{"group": "g"}]}}`, "db web", "a group"},
		{"nothing", antrea, "ClusterNetworkPolicy", "", `{"spec": {}}`, everyone, "no appliedTo"},
		{"a kind of tomorrow", "example.com", "PodNetworkPolicy", "shop", `{}`, "db web", "not known here"},
	} {
		var object []byte
		if c.object != "" {
			object = []byte(c.object)
		}
		p := Read(c.group, c.kind, c.namespace, "p", object)
		if got := selected(p); got != c.selects || !strings.Contains(p.Doubt, c.why) {
			t.Errorf("%s: selects %q because %q; want %q because of %q", c.name, got, p.Doubt, c.selects, c.why)
		}
		if p.SelectsNodes() != (c.namespace == "") {
			t.Errorf("%s: selects nodes %t", c.name, p.SelectsNodes())
		}
	}
}

func TestSet(t *testing.T) {
	var none *Set
	if db := pods()["db"]; none.Selecting(db) != nil || none.SelectingNodes() != nil || none.Doubtful() != nil {
		t.Error("no policies, and they select")
	}
	s := NewSet([]*Policy{
		Read(cilium, "CiliumNetworkPolicy", "shop", "db", []byte(`{"spec": {"endpointSelector": {"matchLabels": {"role": "db"}}}}`)),
		Read(cilium, "CiliumNetworkPolicy", "ops", "db", []byte(`{"spec": {"endpointSelector": {}}}`)),
		Read(cilium, "CiliumClusterwideNetworkPolicy", "", "hosts", []byte(`{"spec": {"nodeSelector": {}}}`)),
		Read(network, "AdminNetworkPolicy", "", "new", []byte(`{"spec": {"subject": {}}}`)),
	})
	text := func(list []*Policy) string {
		var out []string
		for _, p := range list {
			out = append(out, p.String())
		}
		return strings.Join(out, ", ")
	}
	for _, c := range []struct{ got, want string }{
		{text(s.Selecting(pods()["db"])), "AdminNetworkPolicy new, CiliumNetworkPolicy shop/db"},
		{text(s.Selecting(pods()["web"])), "AdminNetworkPolicy new"},
		{text(s.SelectingNodes()), "CiliumClusterwideNetworkPolicy hosts, AdminNetworkPolicy new"},
		{text(s.Doubtful()), "AdminNetworkPolicy new"},
	} {
		if c.got != c.want {
			t.Errorf("%q, want %q", c.got, c.want)
		}
	}
}
