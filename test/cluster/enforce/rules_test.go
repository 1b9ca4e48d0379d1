package enforce_test

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"github.com/flowaudit/flowaudit/test/cluster/enforce"
	"github.com/flowaudit/flowaudit/test/netlab"
)

var update = flag.Bool("update", false, "write the golden files")

func read(t *testing.T, path string) (s enforce.State) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, document := range strings.Split(string(b), "\n---\n") {
		var kind struct{ Kind string }
		if err := yaml.Unmarshal([]byte(document), &kind); err != nil {
			t.Fatal(err)
		}
		switch kind.Kind {
		case "Pod":
			s.Pods = append(s.Pods, parse[corev1.Pod](t, document))
		case "Namespace":
			s.Namespaces = append(s.Namespaces, parse[corev1.Namespace](t, document))
		case "NetworkPolicy":
			s.Policies = append(s.Policies, parse[networkingv1.NetworkPolicy](t, document))
		default:
			t.Fatalf("kind %q", kind.Kind)
		}
	}
	return s
}

func parse[T any](t *testing.T, document string) (object T) {
	t.Helper()
	if err := yaml.UnmarshalStrict([]byte(document), &object); err != nil {
		t.Fatal(err)
	}
	return object
}

// TestRules: every form that a policy has, as rules that the kernel takes.
func TestRules(t *testing.T) {
	o := enforce.DefaultOptions()
	o.Limit = "10/minute burst 10 packets"
	got, err := enforce.Rules("node1", read(t, "testdata/policies.yaml"), o)
	if err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/rules.nft"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("-want +got; -update renews it:\n%s", diff)
	}
	if err := netlab.NodeT(t, "enforce", 1, 0).NFT(got); err != nil {
		t.Error(err)
	}
}
