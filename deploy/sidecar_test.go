package deploy_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// TestTheSidecarOfTheDocs: what docs/install.md shows is a pod's, with flags
// that there are, and of the exceptions that are said there.
func TestTheSidecarOfTheDocs(t *testing.T) {
	text, err := os.ReadFile("../docs/install.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n## In a pod\n")
	_, block, _ := strings.Cut(section, "```yaml\n")
	block, _, _ = strings.Cut(block, "```\n")
	var pod corev1.PodSpec
	if err := yaml.UnmarshalStrict([]byte(block), &pod); err != nil {
		t.Fatal(err)
	}
	if len(pod.Containers) != 1 || len(pod.Volumes) != len(pod.Containers[0].VolumeMounts) {
		t.Fatalf("it has %+v", pod)
	}
	page, err := os.ReadFile("../docs/man/flowaudit-agent.8")
	if err != nil {
		t.Fatal(err)
	}
	for _, arg := range pod.Containers[0].Args {
		if name, _, _ := strings.Cut(arg, "="); !documented(page, name) {
			t.Errorf("flowaudit-agent has no flag %s", name)
		}
	}
	want := []string{"allowPrivilegeEscalation != false", "unrestricted capabilities"}
	if got := exceptions(t, pod); !slices.Equal(got, want) {
		t.Errorf("it needs the exceptions %q, want %q", got, want)
	}
}
