package kube

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Manifests feeds an index from a directory of YAML and JSON files, and again
// whenever they change.
type Manifests struct {
	dir   string
	index *Index
	log   *slog.Logger
	good  map[string]*Objects // the last usable content of each file
	told  []string            // problems that were logged already
	watch *fsnotify.Watcher
}

// settle is how long files must be quiet before they are read again: editors
// and kubectl write several times.
const settle = 200 * time.Millisecond

// maxManifest bounds one file.
const maxManifest = 64 << 20

// OpenManifests reads dir into the index. It fails if dir cannot be read;
// files and objects that cannot be used are problems in the index's Stats.
func OpenManifests(dir string, x *Index, log *slog.Logger) (*Manifests, error) {
	watch, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch manifests: %w", err)
	}
	m := &Manifests{dir: dir, index: x, log: log, good: make(map[string]*Objects), watch: watch}
	if err := m.load(time.Now()); err != nil {
		return nil, errors.Join(err, watch.Close())
	}
	return m, nil
}

// Run reads the files again after each change, until ctx ends.
func (m *Manifests) Run(ctx context.Context) error {
	defer m.watch.Close()
	follow(ctx, m.watch.Events, m.watch.Errors, func() {
		if err := m.load(time.Now()); err != nil {
			m.log.Error("manifests cannot be read, the last state stays", "error", err)
		}
	})
	return nil
}

// follow calls reload when events have come and none has for a while.
func follow(ctx context.Context, events <-chan fsnotify.Event, errs <-chan error, reload func()) {
	quiet := time.NewTimer(settle)
	quiet.Stop()
	for {
		select {
		case <-events:
			quiet.Reset(settle)
		case <-errs: //nolint:errcheck // the watcher's queue overflowed: something changed
			quiet.Reset(settle)
		case <-quiet.C:
			reload()
		case <-ctx.Done():
			return
		}
	}
}

// load reads the whole directory and replaces the index's state.
func (m *Manifests) load(at time.Time) error {
	files, err := m.files()
	if err != nil {
		return fmt.Errorf("read manifests: %w", err)
	}
	all := &Objects{}
	seen := make(map[string]bool)
	for _, path := range files {
		seen[path] = true
		o, problems := m.read(path)
		all.Problems = append(all.Problems, problems...)
		all.append(o)
	}
	for path := range m.good {
		if !seen[path] {
			delete(m.good, path)
		}
	}
	m.index.Replace(all, at)
	m.tell(m.index.Stats().Problems)
	return nil
}

// files lists the manifests below the directory, and watches every folder. A
// ConfigMap's mount changes by a link, so links are followed.
func (m *Manifests) files() ([]string, error) {
	root, err := filepath.EvalSymlinks(m.dir)
	if err != nil {
		return nil, err
	}
	if err := m.watch.Add(m.dir); err != nil {
		return nil, err
	}
	var files []string
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if path != root && d.Name()[0] == '.' {
				return filepath.SkipDir // a ConfigMap's mount keeps its versions there
			}
			return m.watch.Add(path)
		}
		switch filepath.Ext(path) {
		case ".yaml", ".yml", ".json":
			files = append(files, path)
		}
		return nil
	})
	return files, err
}

// read decodes a file. One that does not parse keeps what it held before.
func (m *Manifests) read(path string) (*Objects, []string) {
	content, err := readBounded(path)
	if err != nil {
		return m.last(path), []string{fmt.Sprintf("%s: %v", path, err)}
	}
	o := &Objects{}
	problems := decodeFile(path, content, o)
	if len(problems) > 0 && m.good[path] != nil {
		return m.last(path), append(problems, path+": keeps its last usable content")
	}
	m.good[path] = o
	return o, problems
}

func readBounded(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxManifest {
		return nil, fmt.Errorf("%d bytes are too many for a manifest", info.Size())
	}
	return os.ReadFile(path)
}

func (m *Manifests) last(path string) *Objects {
	if o := m.good[path]; o != nil {
		return o
	}
	return &Objects{}
}

// tell logs problems that are new.
func (m *Manifests) tell(problems []string) {
	for _, p := range problems {
		if !slices.Contains(m.told, p) {
			m.log.Warn("manifest problem", "problem", p)
		}
	}
	m.told = problems
}

func (o *Objects) append(p *Objects) {
	o.Namespaces = append(o.Namespaces, p.Namespaces...)
	o.Nodes = append(o.Nodes, p.Nodes...)
	o.Pods = append(o.Pods, p.Pods...)
	o.Services = append(o.Services, p.Services...)
	o.EndpointSlices = append(o.EndpointSlices, p.EndpointSlices...)
	o.Policies = append(o.Policies, p.Policies...)
	o.ReplicaSets = append(o.ReplicaSets, p.ReplicaSets...)
	o.Jobs = append(o.Jobs, p.Jobs...)
}
