package cluster_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestManifestsAreValid: a real API server takes every object that the chart
// renders, with nothing unknown in it. Kinds of other projects it does not have.
func TestManifestsAreValid(t *testing.T) {
	files, err := filepath.Glob("../../deploy/manifests/*.yaml")
	must(t, err)
	if len(files) == 0 {
		t.Fatal("there is none")
	}
	foreign := regexp.MustCompile(`(?m)^apiVersion: (monitoring\.coreos\.com|cert-manager\.io)/`)
	for _, file := range files {
		text, err := os.ReadFile(file)
		must(t, err)
		var own []string
		for _, object := range strings.Split(string(text), "\n---\n") {
			if !foreign.MatchString(object) {
				own = append(own, object)
			}
		}
		if len(own) < 10 {
			t.Errorf("%s: %d objects only", file, len(own))
		}
		_, err = lab.Kubectl(t.Context(), strings.Join(own, "\n---\n"), "apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-")
		if err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}
