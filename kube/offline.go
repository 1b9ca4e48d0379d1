package kube

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Snapshot is a cluster as files describe it, whole objects, each with its place.
type Snapshot struct {
	*Objects
	DaemonSets []*appsv1.DaemonSet
	CronJobs   []*batchv1.CronJob
	// Problems are documents and objects that could not be used.
	Problems []Problem
	// OtherPolicies are policies of other kinds than the NetworkPolicy of
	// Kubernetes: nothing here judges them.
	OtherPolicies []OtherPolicy
	// Limits say what could not be had, and what follows, in plain words.
	Limits []string

	// Assumed names the namespaces that no object describes: their labels are
	// not known, but for the name.
	Assumed []string

	places    map[string]place // by kind namespace/name
	templates []template
	owners    *owners // what stands behind ReplicaSets and Jobs; made when it is asked for
}

// Problem is something in a file that cannot be used.
type Problem struct {
	File   string
	Line   int    // from 1; 0 if the file itself cannot be read
	Object string // kind namespace/name; empty if it is not known
	Field  string // its path; empty if it is not known
	Text   string
}

func (p Problem) Error() string {
	out := p.File
	if p.Line > 0 {
		out += ":" + strconv.Itoa(p.Line)
	}
	for _, part := range []string{p.Object, p.Field, p.Text} {
		if part != "" {
			out += ": " + part
		}
	}
	return out
}

// LoadOptions say how Load reads.
type LoadOptions struct {
	Stdin io.Reader
	// Progress, if not nil, is called with the count of bytes read, of all
	// whose size is known, after each file.
	Progress func(done, all int64)
	// Under, if not nil, is a cluster that the files are applied to: they add
	// objects, and replace those of the same kind and name.
	Under *Snapshot
}

// Load reads manifests once: files, directories with all that is below them,
// and standard input for "-". It fails if a path cannot be read; what is wrong
// inside of files are the snapshot's Problems. Objects of kinds that say
// nothing about connections are passed over. A namespace without an object is
// added, with the label that every namespace has; a workload without pods is
// added as one pod of the workload's name.
func Load(paths []string, o LoadOptions) (*Snapshot, error) {
	files, err := manifestFiles(paths)
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	s := newSnapshot()
	var done, all int64
	for _, f := range files {
		all += f.size
	}
	for _, f := range files {
		content, err := f.read(o.Stdin)
		if err != nil {
			return nil, fmt.Errorf("read manifests: %w", err)
		}
		if err := s.addFile(f.path, content); err != nil {
			return nil, err
		}
		if done += f.size; o.Progress != nil {
			o.Progress(done, all)
		}
	}
	if o.Under != nil {
		s.lay(o.Under)
	}
	s.addTemplatePods()
	s.completeNamespaces()
	return s, nil
}

func newSnapshot() *Snapshot { return &Snapshot{Objects: &Objects{}, places: make(map[string]place)} }

// Decode reads objects as JSON, as a collector gives them. They have no places.
func Decode(objects [][]byte) *Snapshot {
	s := newSnapshot()
	for _, raw := range objects {
		d := &decoding{source: &source{file: "the collector"}}
		d.object(raw, "", metav1.TypeMeta{})
		for _, p := range d.problems {
			p.Line = 0
			s.Problems = append(s.Problems, p)
		}
		for _, add := range d.found {
			add(s)
		}
	}
	clear(s.places)
	s.addTemplatePods()
	s.completeNamespaces()
	return s
}

// lay adds the objects of a cluster that the snapshot does not have itself.
func (s *Snapshot) lay(under *Snapshot) {
	s.Namespaces = missing(s, "Namespace", s.Namespaces, under.known())
	s.Nodes = missing(s, "Node", s.Nodes, under.Nodes)
	s.Pods = missing(s, "Pod", s.Pods, under.Pods)
	s.Services = missing(s, "Service", s.Services, under.Services)
	s.Policies = missing(s, "NetworkPolicy", s.Policies, under.Policies)
	s.ReplicaSets = missing(s, "ReplicaSet", s.ReplicaSets, under.ReplicaSets)
	s.Jobs = missing(s, "Job", s.Jobs, under.Jobs)
	s.DaemonSets = missing(s, "DaemonSet", s.DaemonSets, under.DaemonSets)
	s.OtherPolicies = append(s.OtherPolicies, under.OtherPolicies...)
	s.Limits = append(s.Limits, under.Limits...)
	s.Problems = append(s.Problems, under.Problems...)
}

// WithoutPolicies is the same cluster with no NetworkPolicy in it.
func (s *Snapshot) WithoutPolicies() *Snapshot {
	out, objects := *s, *s.Objects
	out.Objects, objects.Policies = &objects, nil
	return &out
}

// known are the namespaces that some object describes.
func (s *Snapshot) known() (out []*corev1.Namespace) {
	for _, n := range s.Namespaces {
		if !slices.Contains(s.Assumed, n.Name) {
			out = append(out, n)
		}
	}
	return out
}

func missing[T named](s *Snapshot, kind string, have, under []T) []T {
	for _, o := range under {
		if _, given := s.places[objectKey(kind, o.GetNamespace(), o.GetName())]; !given {
			have = append(have, o)
		}
	}
	return have
}

type manifestFile struct {
	path string
	size int64
}

func (f manifestFile) read(stdin io.Reader) ([]byte, error) {
	if f.path != "-" {
		return readBounded(f.path)
	}
	if stdin == nil {
		return nil, errors.New("there is no standard input")
	}
	return io.ReadAll(stdin)
}

func manifestFiles(paths []string) ([]manifestFile, error) {
	var files []manifestFile
	seen := make(map[string]bool)
	for _, path := range paths {
		if path == "-" {
			files = append(files, manifestFile{path: path})
			continue
		}
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		if !info.IsDir() {
			files = append(files, manifestFile{path, info.Size()})
			continue
		}
		err = filepath.WalkDir(path, func(name string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case d.IsDir() && name != path && d.Name()[0] == '.':
				return filepath.SkipDir
			case d.IsDir() || !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name)):
				return nil
			}
			info, err := os.Stat(name) // a link's target
			if err == nil && !info.IsDir() {
				files = append(files, manifestFile{name, info.Size()})
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return slices.DeleteFunc(files, func(f manifestFile) bool {
		path := filepath.Clean(f.path)
		again := seen[path]
		seen[path] = true
		return again
	}), nil
}

// addFile reads a file's documents, several at a time, and keeps their order.
func (s *Snapshot) addFile(name string, content []byte) error {
	docs := documents(content)
	parts := make([]*decoding, len(docs))
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, d := range docs {
		parts[i] = &decoding{source: &source{file: name, document: d}}
		g.Go(func() error { parts[i].document(); return nil })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, p := range parts {
		s.Problems = append(s.Problems, p.problems...)
		for _, add := range p.found {
			add(s)
		}
	}
	return nil
}

// Position says where an object, or a field of it, is written. Of a field that
// is not there it is the line of what holds it. The line is 0 for an object
// that no file has.
func (s *Snapshot) Position(kind, namespace, name, field string) (file string, line int) {
	at, ok := s.places[objectKey(kind, namespace, name)]
	if !ok {
		return "", 0
	}
	return at.position(field)
}
