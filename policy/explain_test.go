package policy_test

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy"
)

var update = flag.Bool("update", false, "write testdata anew")

// tiers are policies of three tiers; each explanation below is of one thing
// that they do not allow, or of one that they do.
const tiers = `
metadata: {name: default-deny, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
---
metadata: {name: dns, namespace: shop}
spec: {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: UDP}, {port: 53}]}]}
---
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from: [{ipBlock: {cidr: 203.0.113.0/24, except: [203.0.113.128/25]}}]
    ports: [{port: http}]
  egress:
  - to: [{podSelector: {matchLabels: {app: api}}}]
    ports: [{port: 80}]
  - to: [{namespaceSelector: {matchLabels: {team: c}}, podSelector: {matchExpressions: [{key: role, operator: NotIn, values: [back]}, {key: tier, operator: Exists}]}}]
---
metadata: {name: db, namespace: data}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{namespaceSelector: {matchLabels: {team: a}}, podSelector: {matchLabels: {app: api}}}, {podSelector: {matchLabels: {app: api}}}]
    ports: [{port: 5432}, {port: 9000, endPort: 9010}]
---
metadata: {name: closed, namespace: ops}
spec: {}
---
metadata: {name: namespace-only, namespace: data}
spec: {podSelector: {matchLabels: {app: api}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]}
`

func TestExplain(t *testing.T) {
	e := shop(t, decode(t, tiers)...)
	s := e.Snapshot()
	for name, connection := range map[string]string{
		"port":             "shop/api > data/db tcp 5433",
		"label":            "shop/web > shop/api tcp 80",
		"labels":           "shop/web > data/db tcp 5432",
		"block":            "198.51.100.1 > shop/web tcp 8080",
		"except":           "203.0.113.200 > shop/web tcp 8080",
		"named-port":       "203.0.113.1 > shop/web-2 tcp 8080",
		"protocol":         "shop/bare > ops/probe sctp 53",
		"no-rule-at-all":   "shop/web > ops/probe tcp 53",
		"node":             "node:node-1 > shop/web-2 tcp 9090",
		"namespace":        "ops/probe > data/db tcp 5432",
		"open-rule":        "data/db > data/api tcp 81",
		"service":          "shop/web > service:10.96.0.1 tcp 5432",
		"other-namespace":  "shop/web > data/api tcp 443",
		"allowed":          "203.0.113.1 > shop/web tcp 8080",
		"nobody-isolated":  "data/api > data/api udp 1",
		"own-node":         "node:node-2 > shop/api tcp 443",
		"icmp":             "shop/web > data/db icmp 0",
		"unknown-end":      "unknown:10.0.7.7 > data/db tcp 5432",
		"unknown-end-port": "unknown:10.0.7.7 > data/db tcp 1",
	} {
		t.Run(name, func(t *testing.T) { golden(t, name, s.Explain(parseConnection(t, s, connection))) })
	}
}

func TestExplainInvalidPolicy(t *testing.T) {
	e := shop(t, decode(t, `
metadata: {name: broken}
spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/33}}], ports: [{port: 80, protocol: tcp}]}]}`)...)
	s := e.Snapshot()
	golden(t, "invalid", s.Explain(parseConnection(t, s, "data/db > shop/web tcp 80")))
}

func TestExplainUnknownNamespace(t *testing.T) {
	e := shop(t, decode(t, tiers)...)
	s := e.Snapshot()
	src := e.Classes().End(&policy.Pod{Namespace: "other", Name: "job", Labels: map[string]string{"app": "api"}})
	c := &policy.Connection{Src: src, Dst: s.Pod("data", "db").End(), Protocol: flow.TCP, Port: 5432}
	golden(t, "unknown-namespace", s.Explain(c))
}

// golden compares an explanation, as text and as JSON, with a file.
func golden(t *testing.T, name string, e *policy.Explanation) {
	t.Helper()
	text, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got := e.String() + "\n" + string(text) + "\n"
	path := filepath.Join("testdata", "explain-"+name+".txt")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("%s (go test ./policy -update writes it anew):\n%s", path, diff)
	}
}
