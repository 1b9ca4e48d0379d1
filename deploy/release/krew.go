package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"text/template"
)

// plugin is the kubectl plugin for one platform.
type plugin struct{ System, Arch, Archive, SHA256 string }

// krew makes the archives of the kubectl plugin and the manifest that krew
// installs them by.
func (r *release) krew(ctx context.Context) error {
	var plugins []plugin
	for _, arch := range []string{"amd64", "arm64"} {
		program, err := r.buildFor(ctx, "flowaudit", "linux", arch, false)
		if err != nil {
			return err
		}
		p := plugin{System: "linux", Arch: arch, Archive: fmt.Sprintf("kubectl-flowaudit-linux-%s.tar.gz", arch)}
		content, err := pluginArchive([]file{
			{path: "/kubectl-flowaudit", mode: 0o755, from: program},
			{path: "/kubectl_complete-flowaudit", mode: 0o755, from: filepath.Join(r.root, "deploy/krew/kubectl_complete-flowaudit")},
			{path: "/LICENSE", mode: 0o644, from: filepath.Join(r.root, "LICENSE")},
		})
		if err != nil {
			return fmt.Errorf("make %s: %w", p.Archive, err)
		}
		sum := sha256.Sum256(content)
		p.SHA256 = hex.EncodeToString(sum[:])
		if err := os.WriteFile(filepath.Join(r.out, p.Archive), content, 0o644); err != nil {
			return err
		}
		plugins = append(plugins, p)
	}
	manifest, err := krewManifest(filepath.Join(r.root, "deploy/krew/flowaudit.yaml.tmpl"), r.version, plugins)
	if err != nil {
		return fmt.Errorf("make the manifest of krew: %w", err)
	}
	to := filepath.Join(r.out, "flowaudit.yaml")
	fmt.Println(to)
	return os.WriteFile(to, manifest, 0o644)
}

func pluginArchive(files []file) ([]byte, error) {
	var out bytes.Buffer
	zip, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	w := tar.NewWriter(zip)
	for _, f := range files {
		if err := f.write(w); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	err = zip.Close()
	return out.Bytes(), err
}

func krewManifest(from, version string, plugins []plugin) ([]byte, error) {
	t, err := template.ParseFiles(from)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = t.Execute(&out, struct {
		Version string
		Plugins []plugin
	}{version, plugins})
	return out.Bytes(), err
}
