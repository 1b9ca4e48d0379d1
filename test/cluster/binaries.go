package cluster

import (
	"context"
	"debug/buildinfo"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Release is the version of Kubernetes that is built.
const Release = "v1.37.2"

// programs are the parts of Kubernetes that a cluster is made of; kubelet is
// needed for nodes with containers only.
var programs = []string{"kube-apiserver", "kube-controller-manager", "kube-proxy", "kubectl", "kubelet"}

// Binaries builds Kubernetes from its module, where that was not done yet, and
// gives the directory with its programs. The first time takes minutes; what it
// does is told to progress.
func Binaries(ctx context.Context, progress io.Writer) (string, error) {
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "kubernetes-"+Release)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make directory: %w", err)
	}
	for _, name := range programs {
		path := filepath.Join(dir, name)
		if isRelease(path) {
			continue
		}
		fmt.Fprintf(progress, "building %s %s (once; it is kept in %s) …\n", name, Release, dir)
		began := time.Now()
		if err := build(ctx, name, path); err != nil {
			return "", err
		}
		fmt.Fprintf(progress, "built %s in %s\n", name, time.Since(began).Round(time.Second))
	}
	return dir, nil
}

// cacheDir is where what takes long to make is kept.
func cacheDir() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a cache directory: %w: set XDG_CACHE_HOME", err)
	}
	return filepath.Join(dir, "flowaudit"), nil
}

// isRelease tells whether a program was built from this release.
func isRelease(path string) bool {
	info, err := buildinfo.ReadFile(path)
	return err == nil && info.Main.Path == "k8s.io/kubernetes" && info.Main.Version == Release
}

// build makes one program. The rename makes it whole or absent, also beside
// another builder.
func build(ctx context.Context, name, path string) error {
	root, err := moduleRoot(ctx)
	if err != nil {
		return err
	}
	const stamp = "-X k8s.io/component-base/version."
	version := strings.Split(strings.TrimPrefix(Release, "v"), ".")
	flags := fmt.Sprintf("-s -w %sgitVersion=%s %sgitMajor=%s %sgitMinor=%s", stamp, Release, stamp, version[0], stamp, version[1])
	part := fmt.Sprintf("%s.%d", path, os.Getpid())
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o", part, "k8s.io/kubernetes/cmd/"+name)
	cmd.Dir = filepath.Join(root, "kubernetes")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w: %s", name, err, out)
	}
	if err := os.Rename(part, path); err != nil {
		return fmt.Errorf("keep %s: %w", name, err)
	}
	return nil
}

// moduleRoot is the directory of this module: its programs and tests run in it.
func moduleRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	dir := filepath.Dir(strings.TrimSpace(string(out)))
	if _, err := os.Stat(filepath.Join(dir, "kubernetes", "go.mod")); err != nil {
		return "", fmt.Errorf("find Kubernetes' go.mod: %w: run this in test/cluster", err)
	}
	return dir, nil
}
