package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// build builds a program for an architecture, the same way each time: no
// paths, no state of the checkout, no time.
func (r *release) build(ctx context.Context, name, arch string, cgo bool) (string, error) {
	return r.buildFor(ctx, name, "linux", arch, cgo)
}

func (r *release) buildFor(ctx context.Context, name, system, arch string, cgo bool) (string, error) {
	out, err := filepath.Abs(filepath.Join(r.out, "programs", system+"-"+arch, name))
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -X main.version="+r.version, "-o", out, "./cmd/"+name)
	cmd.Dir = r.root
	cmd.Env = append(os.Environ(), "GOOS="+system, "GOARCH="+arch, "CGO_ENABLED=0")
	if cgo {
		cmd.Env = append(cmd.Env, "CGO_ENABLED=1")
	}
	if said, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s for %s/%s: %w\n%s", name, system, arch, err, said)
	}
	return out, nil
}
