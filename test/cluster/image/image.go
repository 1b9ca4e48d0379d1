// Package image makes container images from single programs, without a builder or a registry.
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"runtime"
	"strings"
	"time"
)

// Image is a program as an image from scratch.
type Image struct {
	Name       string   // such as localhost/flowaudit/box:1
	Program    string   // a static binary on this machine; it becomes /NAME-OF-THE-FILE
	Entrypoint []string // after the program itself
	User       string   // uid:gid; "" is root
}

// descriptor points to a blob, as the OCI image specification has it.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// archive collects the files of an OCI image layout.
type archive struct {
	out   bytes.Buffer
	files *tar.Writer
}

// Archive writes the image as an OCI archive, which containerd imports.
func (i Image) Archive(to string) error {
	program, err := os.ReadFile(i.Program)
	if err != nil {
		return fmt.Errorf("read the program of image %s: %w", i.Name, err)
	}
	layer, err := i.layer(program)
	if err != nil {
		return fmt.Errorf("write a layer: %w", err)
	}
	a := &archive{}
	a.files = tar.NewWriter(&a.out)
	if err := i.write(a, layer); err != nil {
		return fmt.Errorf("write image %s: %w", i.Name, err)
	}
	if err := os.WriteFile(to, a.out.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write image %s: %w", i.Name, err)
	}
	return nil
}

func (i Image) path() string { return "/" + path.Base(i.Program) }

// layer is the image's only one.
func (i Image) layer(program []byte) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range []tar.Header{
		{Name: "etc", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "tmp", Typeflag: tar.TypeDir, Mode: 0o1777},
		{Name: strings.TrimPrefix(i.path(), "/"), Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(program))},
	} {
		if err := w.WriteHeader(&h); err != nil {
			return nil, err
		}
	}
	if _, err := w.Write(program); err != nil {
		return nil, err
	}
	return out.Bytes(), w.Close()
}

func (i Image) write(a *archive, layer []byte) error {
	content, err := a.blob("application/vnd.oci.image.layer.v1.tar", layer)
	if err != nil {
		return err
	}
	config, err := a.object("application/vnd.oci.image.config.v1+json", map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "created": time.Unix(0, 0).UTC(),
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{content.Digest}},
		"config": map[string]any{"Entrypoint": append([]string{i.path()}, i.Entrypoint...), "User": i.User, "WorkingDir": "/", "Env": []string{"PATH=/"}},
	})
	if err != nil {
		return err
	}
	manifest, err := a.object("application/vnd.oci.image.manifest.v1+json", map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": []descriptor{content},
	})
	if err != nil {
		return err
	}
	// containerd names an imported image by this annotation.
	manifest.Annotations = map[string]string{"io.containerd.image.name": i.Name}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []descriptor{manifest}})
	if err != nil {
		return err
	}
	if err := a.file("index.json", index); err != nil {
		return err
	}
	if err := a.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	return a.files.Close()
}

func (a *archive) object(mediaType string, object any) (descriptor, error) {
	b, err := json.Marshal(object)
	if err != nil {
		return descriptor{}, err
	}
	return a.blob(mediaType, b)
}

func (a *archive) blob(mediaType string, b []byte) (descriptor, error) {
	sum := sha256.Sum256(b)
	digest := hex.EncodeToString(sum[:])
	return descriptor{MediaType: mediaType, Digest: "sha256:" + digest, Size: len(b)}, a.file("blobs/sha256/"+digest, b)
}

func (a *archive) file(name string, b []byte) error {
	if err := a.files.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(b))}); err != nil {
		return err
	}
	_, err := a.files.Write(b)
	return err
}
