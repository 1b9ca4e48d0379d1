package main

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"sigs.k8s.io/yaml"
)

// made makes everything, twice, and gives the directories.
func made(t *testing.T) (once, again string) {
	t.Helper()
	dirs := []string{t.TempDir(), t.TempDir()}
	for _, dir := range dirs {
		r := release{root: "../..", out: dir, version: "v1.2.3", repository: "example.org/flowaudit", architectures: "amd64,arm64"}
		if err := r.images(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := r.krew(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return dirs[0], dirs[1]
}

// TestRelease: all of it, on what one build makes.
func TestRelease(t *testing.T) {
	once, again := made(t)
	t.Run("is the same each time", func(t *testing.T) { same(t, once, again) })
	t.Run("agent", func(t *testing.T) { agentImage(t, filepath.Join(once, "flowaudit-agent.tar")) })
	t.Run("collector", func(t *testing.T) { collectorImage(t, filepath.Join(once, "flowaudit-collector.tar")) })
	t.Run("bills", func(t *testing.T) { bills(t, once) })
	t.Run("krew", func(t *testing.T) { krewPlugin(t, once) })
}

func same(t *testing.T, once, again string) {
	files, err := filepath.Glob(filepath.Join(once, "*.*"))
	if err != nil || len(files) != 8 {
		t.Fatalf("%v %v, want two images, three bills, two archives and a manifest", files, err)
	}
	for _, f := range files {
		a, errA := os.ReadFile(f)
		b, errB := os.ReadFile(filepath.Join(again, filepath.Base(f)))
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			t.Errorf("%s differs from build to build (%v, %v)", filepath.Base(f), errA, errB)
		}
	}
}

// open reads an archive as tools do that know OCI's layout.
func open(t *testing.T, archive, name string) []v1.Image {
	t.Helper()
	dir := t.TempDir()
	b, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	unpack(t, bytes.NewReader(b), dir)
	top, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := top.IndexManifest()
	if err != nil || len(m.Manifests) != 1 || m.Manifests[0].Annotations["io.containerd.image.name"] != name {
		t.Fatalf("index %+v, %v", m, err)
	}
	index, err := top.ImageIndex(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	m, err = index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	var images []v1.Image
	for _, d := range m.Manifests {
		img, err := index.Image(d.Digest)
		if err != nil {
			t.Fatal(err)
		}
		c, err := img.ConfigFile()
		if err != nil || c.Architecture != d.Platform.Architecture || c.Config.User != "65532:65532" || len(c.RootFS.DiffIDs) != 1 {
			t.Errorf("configuration %+v, %v", c, err)
		}
		images = append(images, img)
	}
	return images
}

// unpack extracts an archive and gives the headers of its entries.
func unpack(t *testing.T, from io.Reader, dir string) map[string]*tar.Header {
	t.Helper()
	headers := make(map[string]*tar.Header)
	for r := tar.NewReader(from); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return headers
		}
		if err != nil {
			t.Fatal(err)
		}
		headers[h.Name] = h
		path := filepath.Join(dir, h.Name)
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(path, 0o755)
		} else {
			var b []byte
			if b, err = io.ReadAll(r); err == nil {
				err = os.WriteFile(path, b, os.FileMode(h.Mode).Perm())
			}
		}
		if err != nil {
			t.Fatal(err) // a directory that is missing in the image, for one
		}
	}
}

// rootOf unpacks an image's only layer.
func rootOf(t *testing.T, img v1.Image) (dir string, headers map[string]*tar.Header) {
	t.Helper()
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	content, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	for p := dir; p != "/" && p != os.TempDir(); p = filepath.Dir(p) { // the image's user must come in
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir, unpack(t, content, dir)
}

// within runs a program of an image, with nothing but the image, as its user.
func within(t *testing.T, root string, args ...string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("only root may change the root directory")
		}
		t.Skip("only root may change the root directory")
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	cmd.Dir, cmd.Env = "/", []string{"PATH=/"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func agentImage(t *testing.T, archive string) {
	images := open(t, archive, "example.org/flowaudit/flowaudit-agent:v1.2.3")
	if len(images) != 2 {
		t.Fatalf("%d platforms, want amd64 and arm64", len(images))
	}
	for i, machine := range []elf.Machine{elf.EM_X86_64, elf.EM_AARCH64} {
		root, headers := rootOf(t, images[i])
		program := filepath.Join(root, "flowaudit-agent")
		f, err := elf.Open(program)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if f.Machine != machine || slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
			t.Errorf("the program is for %s, and want %s without a loader", f.Machine, machine)
		}
		if got := headers["flowaudit-agent"].PAXRecords["SCHILY.xattr.security.capability"]; len(got) != 20 || got[5] != 0x10 {
			t.Errorf("capability %q, want CAP_NET_ADMIN", got)
		}
		for name := range headers {
			if slices.Contains([]string{"flowaudit-agent", "etc/", "etc/passwd", "etc/group", "tmp/"}, name) {
				continue
			}
			t.Errorf("the agent's image has %s", name)
		}
		if machine == elf.EM_X86_64 {
			if got := within(t, root, "/flowaudit-agent", "--version"); got != "flowaudit-agent v1.2.3\n" {
				t.Errorf("it says %q", got)
			}
		}
	}
}

// collectorImage: the programs run on nothing but what is in the image.
func collectorImage(t *testing.T, archive string) {
	images := open(t, archive, "example.org/flowaudit/flowaudit-collector:v1.2.3")
	if len(images) != 1 {
		t.Fatalf("%d platforms", len(images))
	}
	root, headers := rootOf(t, images[0])
	if got := within(t, root, "/flowaudit-collector", "--version"); got != "flowaudit-collector v1.2.3\n" {
		t.Errorf("it says %q", got)
	}
	if got := within(t, root, "/flowaudit", "version"); got != "flowaudit v1.2.3\n" {
		t.Errorf("the CLI says %q", got)
	}
	for _, name := range []string{"etc/ssl/certs/ca-certificates.crt", "usr/share/doc/libstdc++6/copyright", "usr/share/doc/libc6/copyright"} {
		if headers[name] == nil || headers[name].Size == 0 {
			t.Errorf("the image lacks %s", name)
		}
	}
	if h := headers["var/lib/flowaudit/"]; h == nil || h.Uid != nobody {
		t.Errorf("the directory of the store is %+v", h)
	}
}

// bills: every module of a program, as Go says, and every package of Debian.
func bills(t *testing.T, dir string) {
	for name, want := range map[string][]string{
		"flowaudit-agent-amd64":     {"google.golang.org/grpc", "stdlib", "flowaudit-agent"},
		"flowaudit-agent-arm64":     {"google.golang.org/grpc", "stdlib", "flowaudit-agent"},
		"flowaudit-collector-amd64": {"github.com/duckdb/duckdb-go/v2", "libc6", "libstdc++6", "libgcc-s1", "ca-certificates", "flowaudit-collector", "flowaudit"},
	} {
		b, err := os.ReadFile(filepath.Join(dir, name+".spdx.json"))
		if err != nil {
			t.Fatal(err)
		}
		var d spdxDocument
		if err := json.Unmarshal(b, &d); err != nil {
			t.Fatal(err)
		}
		known := map[string]bool{d.ID: true}
		var names []string
		for _, p := range d.Packages {
			if known[p.ID] || p.Version == "" {
				t.Errorf("%s: %+v is there twice, or has no version", name, p)
			}
			known[p.ID] = true
			names = append(names, p.Name)
		}
		for _, r := range d.Relationships {
			if !known[r.From] || !known[r.To] {
				t.Errorf("%s: %+v leads nowhere", name, r)
			}
		}
		for _, w := range want {
			if !slices.Contains(names, w) {
				t.Errorf("%s lacks %s", name, w)
			}
		}
	}
}

func krewPlugin(t *testing.T, dir string) {
	b, err := os.ReadFile(filepath.Join(dir, "flowaudit.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var m struct {
		Spec struct {
			Version   string
			Platforms []struct{ URI, SHA256, Bin string }
		}
	}
	if err := yaml.UnmarshalStrict(b, &struct {
		APIVersion, Kind string
		Metadata, Spec   any
	}{}); err != nil {
		t.Error(err)
	}
	if err := yaml.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	if m.Spec.Version != "v1.2.3" || len(m.Spec.Platforms) != 2 {
		t.Fatalf("manifest %+v", m)
	}
	for _, p := range m.Spec.Platforms {
		if _, err := os.Stat(filepath.Join(dir, filepath.Base(p.URI))); err != nil || len(p.SHA256) != 64 || p.Bin != "kubectl-flowaudit" {
			t.Errorf("%+v: %v", p, err)
		}
	}
}
