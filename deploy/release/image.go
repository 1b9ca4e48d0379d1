package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// image is an image for one platform or more.
type image struct {
	name      string
	platforms []platform
}

// platform is an image's content on one architecture.
type platform struct {
	arch       string
	files      []file
	entrypoint string
	programs   []string // on this machine, for the bill of materials
	packages   []debianPackage
}

// file is one of an image.
type file struct {
	path     string // absolute, in the image
	mode     int64
	content  []byte // nil for a directory
	from     string // or a file of this machine
	link     string // or where a symbolic link leads
	netAdmin bool   // may use CAP_NET_ADMIN, whoever runs it
	owner    int
}

// nobody is who programs run as: a user that owns nothing.
const nobody = 65532

// base are the files that every image has.
func base() []file {
	return []file{
		{path: "/etc", mode: 0o755},
		{path: "/etc/passwd", mode: 0o644, content: fmt.Appendf(nil, "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:%d:%d:nonroot:/:/sbin/nologin\n", nobody, nobody)},
		{path: "/etc/group", mode: 0o644, content: fmt.Appendf(nil, "root:x:0:\nnonroot:x:%d:\n", nobody)},
		{path: "/tmp", mode: 0o1777},
	}
}

// agentFiles are those of the agent's image. The program brings the capability
// it needs, so that no root has to run it.
func agentFiles(program string) []file {
	return append(base(), file{path: "/flowaudit-agent", mode: 0o755, from: program, netAdmin: true})
}

// never is the time of everything in an image.
func never() time.Time { return time.Unix(0, 0).UTC() }

// archive writes the image as an OCI archive.
func (i *image) archive(to string) error {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, p := range i.platforms {
		img, err := p.image()
		if err != nil {
			return err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: p.arch}}})
	}
	dir, err := os.MkdirTemp("", "flowaudit-image-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // a temporary directory
	path, err := layout.Write(dir, mutate.IndexMediaType(empty.Index, types.OCIImageIndex))
	if err != nil {
		return fmt.Errorf("write layout: %w", err)
	}
	_, name, _ := strings.Cut(filepath.Base(i.name), ":")
	// containerd names an imported image by the first annotation, others by the second.
	err = path.AppendIndex(index, layout.WithAnnotations(map[string]string{"io.containerd.image.name": i.name, "org.opencontainers.image.ref.name": name}))
	if err != nil {
		return fmt.Errorf("write layout: %w", err)
	}
	return pack(dir, to)
}

func (p *platform) image() (v1.Image, error) {
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		b, err := p.layer()
		return io.NopCloser(bytes.NewReader(b)), err
	}, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, fmt.Errorf("make layer: %w", err)
	}
	img, err := mutate.AppendLayers(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), layer)
	if err != nil {
		return nil, err
	}
	img, err = mutate.ConfigFile(img, &v1.ConfigFile{
		OS: "linux", Architecture: p.arch, Created: v1.Time{Time: never()},
		RootFS: rootFS(img), Config: v1.Config{
			Entrypoint: []string{p.entrypoint}, User: fmt.Sprintf("%d:%d", nobody, nobody), WorkingDir: "/", Env: []string{"PATH=/"},
		},
	})
	return img, err
}

func rootFS(img v1.Image) v1.RootFS {
	c, err := img.ConfigFile()
	if err != nil {
		return v1.RootFS{Type: "layers"}
	}
	return c.RootFS
}

// layer is the image's only one, as a tar archive.
func (p *platform) layer() ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	files := slices.Clone(p.files)
	slices.SortStableFunc(files, func(a, b file) int { return strings.Compare(a.path, b.path) })
	for _, f := range files {
		if err := f.write(w); err != nil {
			return nil, fmt.Errorf("add %s: %w", f.path, err)
		}
	}
	return out.Bytes(), w.Close()
}

func (f *file) write(w *tar.Writer) error {
	h := tar.Header{Name: strings.TrimPrefix(f.path, "/"), Mode: f.mode, ModTime: never(), Format: tar.FormatPAX, Uid: f.owner, Gid: f.owner}
	content := f.content
	if f.from != "" {
		var err error
		if content, err = os.ReadFile(f.from); err != nil {
			return err
		}
	}
	switch {
	case f.link != "":
		h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
	case content == nil:
		h.Typeflag = tar.TypeDir
		h.Name += "/"
	default:
		h.Typeflag, h.Size = tar.TypeReg, int64(len(content))
	}
	if f.netAdmin {
		h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": netAdmin}
	}
	if err := w.WriteHeader(&h); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}

// netAdmin is CAP_NET_ADMIN (bit 12) as a file has it, permitted and effective:
// struct vfs_cap_data of version 2, linux/capability.h.
const netAdmin = "\x01\x00\x00\x02" + "\x00\x10\x00\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x00"

// pack writes a directory as a tar archive, in the order of names.
func pack(dir, to string) error {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		f := file{path: "/" + name, mode: 0o755}
		if !d.IsDir() {
			f.mode, f.from = 0o644, path
		}
		return f.write(w)
	})
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return fmt.Errorf("pack %s: %w", to, err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, out.Bytes(), 0o644)
}
