package cluster_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/flowaudit/flowaudit/test/cluster/product"
)

// badInput are objects that the API server takes and that make no sense.
const badInput = `apiVersion: v1
kind: Pod
metadata: {name: nowhere, namespace: bad, labels: {flowaudit.test/unmanaged: "true"}}
spec: {nodeName: node1, containers: [{name: c, image: "test/c:1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: first, namespace: bad, labels: {flowaudit.test/unmanaged: "true"}}
spec: {nodeName: node1, containers: [{name: c, image: "test/c:1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: second, namespace: bad, labels: {flowaudit.test/unmanaged: "true"}}
spec: {nodeName: node1, containers: [{name: c, image: "test/c:1"}]}
---
apiVersion: v1
kind: Service
metadata: {name: typo, namespace: bad}
spec: {selector: {name: sane}, ports: [{port: 80, targetPort: htpt}]}
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere, namespace: bad}
spec: {type: ExternalName, externalName: db.example.com}
---
apiVersion: v1
kind: Service
metadata: {name: by-hand, namespace: bad}
spec: {ports: [{port: 80}]}
`

// TestBadInput: each is told with its name and what is wrong, and all else works.
func TestBadInput(t *testing.T) {
	namespace(t, "bad")
	must(t, lab.Apply(t.Context(), badInput))
	barePod(t, "bad", "sane", "node2", 8080)
	run := func(pod, status string) {
		t.Helper()
		_, err := lab.Kubectl(t.Context(), "", "-n", "bad", "patch", "pod", pod, "--subresource=status", "-p", fmt.Sprintf(`{"status":{"phase":"Running"%s}}`, status))
		must(t, err)
	}
	run("nowhere", "")
	const twice = `,"podIP":"10.244.16.251","podIPs":[{"ip":"10.244.16.251"}]`
	run("first", twice)
	run("second", twice)
	told(t, lab.product,
		"Pod bad/nowhere: has no address in status.podIPs",
		"address 10.244.16.251 is also claimed by Pod bad/",
		`Service bad/typo: no pod that it selects has a tcp port named "htpt"`)

	s := openShop(t, "sane-shop")
	deeds, err := s.Act(t.Context())
	must(t, err)
	compare(t, s.Namespace, deeds)
}

// TestNoPermission: a collector that may not see Services says so, and names pods.
func TestNoPermission(t *testing.T) {
	must(t, lab.Apply(t.Context(), `apiVersion: v1
kind: ServiceAccount
metadata: {name: restricted, namespace: flowaudit}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: restricted}
rules:
  - {apiGroups: [""], resources: [namespaces, nodes, pods], verbs: [list, watch]}
  - {apiGroups: [networking.k8s.io], resources: [networkpolicies], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: restricted}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: restricted}
subjects: [{kind: ServiceAccount, name: restricted, namespace: flowaudit}]
`))
	kubeconfig, err := lab.Kubeconfig(t.Context(), "flowaudit", "restricted")
	must(t, err)
	p, err := product.Start(t.Context(), lab.Cluster, product.Options{Bin: lab.bin, Collector: kubeconfig, NoAgents: true})
	must(t, err)
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	told(t, p, "no permission for services", "no permission for endpointslices", "no permission for replicasets", "no permission for jobs", "deploy/rbac")
	must(t, p.Until(t.Context(), answerBy, "the pods", func() error {
		out, _ := p.Command(t.Context(), "status").Output() // it fails, because there are problems
		if strings.Contains(string(out), " 0 pods") || len(out) == 0 {
			return fmt.Errorf("it knows none: %s", out)
		}
		return nil
	}))
}

// told waits until problems with these words are told.
func told(t *testing.T, p *product.Product, words ...string) {
	t.Helper()
	must(t, p.Until(t.Context(), answerBy, "the problems", func() error {
		problems, err := p.Problems(t.Context())
		if err != nil {
			return err
		}
		var missing []error
		for _, w := range words {
			if !slices.ContainsFunc(problems, func(said string) bool { return strings.Contains(said, w) }) {
				missing = append(missing, fmt.Errorf("%q is not in %q", w, problems))
			}
		}
		return errors.Join(missing...)
	}))
}
