package kube

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestUsual: what kubectl would use, where nothing was named.
func TestUsual(t *testing.T) {
	home, empty := t.TempDir(), t.TempDir()
	config := filepath.Join(home, ".kube", "config")
	if err := os.MkdirAll(filepath.Dir(config), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		access Access
		env    map[string]string
		want   []string // files
		any    bool
	}{
		"nothing":                 {Access{}, map[string]string{"HOME": empty}, nil, false},
		"neither home nor file":   {Access{}, nil, nil, false},
		"the file of the home":    {Access{}, map[string]string{"HOME": home}, []string{config}, true},
		"KUBECONFIG before it":    {Access{}, map[string]string{"HOME": home, "KUBECONFIG": "/a:/b"}, []string{"/a", "/b"}, true},
		"one that was named":      {Access{Kubeconfig: "/c"}, map[string]string{"KUBECONFIG": "/a"}, nil, true},
		"the pod's, as was named": {Access{InCluster: true}, map[string]string{"HOME": home}, nil, true},
	} {
		got := c.access.Usual(func(key string) string { return c.env[key] })
		if got != c.any || !slices.Equal(c.access.Files, c.want) {
			t.Errorf("%s: %t, files %v; want %t, %v", name, got, c.access.Files, c.any, c.want)
		}
	}
}
