package cluster_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// people may read what deploy/rbac/reader.yaml says, and the cluster has a kind
// of policy beside NetworkPolicy.
const people = `apiVersion: v1
kind: ServiceAccount
metadata: {name: people, namespace: flowaudit}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: flowaudit-readers}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: flowaudit-reader}
subjects: [{kind: ServiceAccount, name: people, namespace: flowaudit}]
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: ciliumnetworkpolicies.cilium.io}
spec:
  group: cilium.io
  scope: Namespaced
  names: {plural: ciliumnetworkpolicies, singular: ciliumnetworkpolicy, kind: CiliumNetworkPolicy}
  versions:
    - name: v2
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`

const ciliumPolicy = `apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: l7, namespace: policy-shop}
spec: {endpointSelector: {matchLabels: {"k8s:role": db}}}
`

// asPeople runs flowaudit with the rights of people.
func asPeople(t *testing.T, kubeconfig string, args ...string) (stdout string, code int) {
	t.Helper()
	cmd := lab.Plane().Command(t.Context(), filepath.Join(lab.bin, "flowaudit"), append(args, "--kubeconfig", kubeconfig)...)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if code = cmd.ProcessState.ExitCode(); code == 1 || code == 2 {
		t.Errorf("flowaudit %s: exit code %d: %s", strings.Join(args, " "), code, stderr.String())
	}
	return out.String(), code
}

// TestPolicyOnACluster: the API server and the collector give the same objects,
// the rights of deploy/rbac suffice, and the collector knows what was before.
func TestPolicyOnACluster(t *testing.T) {
	s := openShop(t, "policy-shop")
	must(t, lab.Apply(t.Context(), people))
	t.Cleanup(func() {
		if _, err := lab.Kubectl(lab.ctx, "", "delete", "crd", "ciliumnetworkpolicies.cilium.io"); err != nil {
			t.Error(err)
		}
	})
	_, err := lab.Kubectl(t.Context(), "", "wait", "--for=condition=Established", "crd/ciliumnetworkpolicies.cilium.io", "--timeout=20s")
	must(t, err)
	must(t, lab.Apply(t.Context(), ciliumPolicy))
	kubeconfig, err := lab.Kubeconfig(t.Context(), "flowaudit", "people")
	must(t, err)
	pods, err := lab.Running(t.Context(), s.Namespace, "app=web", 1)
	must(t, err)
	explain := []string{"policy", "explain", "--from", s.Namespace + "/" + pods[0].Name, "--to", s.Namespace + "/db-0", "--port", "3306"}

	got, _ := asPeople(t, kubeconfig, explain...)
	for _, want := range []string{"tcp port 3306: denied\n", "isolated by policy-shop/db-policy", "lacks label role=api, has role=web", "  CiliumNetworkPolicy policy-shop/l7 selects policy-shop/db-0\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
	matrix := []string{"policy", "matrix", "--from", s.Namespace, "--to", s.Namespace, "-o", "csv"}
	byServer, _ := asPeople(t, kubeconfig, matrix...)
	if !strings.Contains(byServer, "policy-shop/api,policy-shop/db,tcp,3306,3306,allow\n") {
		t.Errorf("the matrix lacks what is allowed:\n%s", byServer)
	}
	must(t, lab.product.Until(t.Context(), 20*time.Second, "the collector's matrix", func() error {
		byCollector, err := lab.product.Ask(t.Context(), matrix...)
		if err == nil && byCollector != byServer {
			err = fmt.Errorf("the API server's matrix is\n%s\nthe collector's\n%s", byServer, byCollector)
		}
		return err
	}))
	if found, _ := asPeople(t, kubeconfig, "policy", "lint", "--ignore", "FA801,FA802"); strings.Contains(found, "FA000") || !strings.Contains(found, "NetworkPolicy policy-shop/report-egress") {
		t.Errorf("lint found\n%s", found)
	}
	change := filepath.Join(t.TempDir(), "open.yaml")
	must(t, os.WriteFile(change, []byte("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: db-policy, namespace: policy-shop}\nspec: {podSelector: {matchLabels: {role: db}}, ingress: [{ports: [{port: 3306}]}]}\n"), 0o600))
	changed, code := asPeople(t, kubeconfig, "policy", "diff", "--after", change, "--exit-code")
	if code != 5 || !strings.Contains(changed, "policy-shop/web -> policy-shop/db") {
		t.Errorf("exit code %d, and the change does\n%s", code, changed)
	}
	deniedThen(t, explain)
	for _, r := range audited(t, "system:serviceaccount:flowaudit:people") {
		if decision := r.Annotations["authorization.k8s.io/decision"]; decision != "allow" {
			t.Errorf("%s %s: %s", r.Verb, r.RequestURI, decision)
		}
	}
}

// deniedThen removes the policy, and asks about before and after.
func deniedThen(t *testing.T, explain []string) {
	t.Helper()
	newSecond()
	before := time.Now().UTC().Format(time.RFC3339Nano)
	newSecond()
	_, err := lab.Kubectl(t.Context(), "", "-n", "policy-shop", "delete", "networkpolicy", "db-policy")
	must(t, err)
	must(t, lab.product.Until(t.Context(), 20*time.Second, "the collector to hear of it", func() error {
		now, err := lab.product.Ask(t.Context(), explain...)
		if err == nil && !strings.Contains(now, "tcp port 3306: allowed\n") {
			err = errors.New(now)
		}
		return err
	}))
	then, err := lab.product.Ask(t.Context(), append(explain, "--at", before)...)
	if err != nil || !strings.Contains(then, "tcp port 3306: denied\n") || !strings.Contains(then, "isolated by policy-shop/db-policy") {
		t.Errorf("%v: before the policy was deleted:\n%s", err, then)
	}
}
