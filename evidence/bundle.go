package evidence

import (
	"archive/zip"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"strings"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// The files of a bundle.
const (
	fileCheckpoints = "checkpoints.jsonl"
	fileBatches     = "batches.jsonl"
	fileTombstones  = "tombstones.jsonl"
	fileObjects     = "objects.jsonl"
	fileFlows       = "flows.jsonl"
	fileManifest    = "manifest.json"
)

// Manifest says what a bundle is to hold. It is signed, and the bundle's last file.
type Manifest struct {
	Version   int    `json:"version"`
	Made      int64  `json:"made"`  // Unix milliseconds
	Since     int64  `json:"since"` // of the checkpoints' times; 0 is the first that is kept
	Until     int64  `json:"until"`
	Everyone  bool   `json:"everyone,omitempty"`  // all namespaces
	Namespace string `json:"namespace,omitempty"` // the one it is of
	Proof     []byte `json:"proof,omitempty"`     // what its tag is the hash of
	// Writers are those whose checkpoints it holds, each in one run.
	Writers []Range         `json:"writers,omitempty"`
	Files   map[string]File `json:"files"`
}

// Range is a run of a writer's checkpoints.
type Range struct {
	Writer string `json:"writer"`
	First  uint64 `json:"first"`
	Last   uint64 `json:"last"`
}

// File is a file's length in lines and bytes, and its SHA-256 hash.
type File struct {
	Lines  uint64 `json:"lines"`
	Bytes  uint64 `json:"bytes"`
	SHA256 Hash   `json:"sha256"`
}

type manifestFile struct {
	Manifest
	Signature []byte `json:"signature"`
}

// Object is an entry of the timeline in a bundle: what a policy, a namespace's
// labels or an identity was from a moment on.
type Object struct {
	Time      int64  `json:"time"`
	Cluster   string `json:"cluster,omitempty"`
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	Author    string `json:"author,omitempty"`
	Deleted   bool   `json:"deleted,omitempty"`
	Object    string `json:"object,omitempty"` // JSON
}

// Scope says what of the evidence a bundle shows.
type Scope struct {
	Since, Until time.Time // of when flows were stored; a zero Since is the first that is kept
	Everyone     bool      // all namespaces
	Namespace    string    // the one, unless Everyone
}

// Writer writes a bundle.
type Writer struct {
	key    *Key
	scope  Scope
	zip    *zip.Writer
	files  map[string]File
	ranges []Range
	tag    Hash

	name  string
	to    io.Writer
	sum   hash.Hash
	lines uint64
	bytes uint64
}

// NewWriter begins a bundle. Its parts are written in this order: Sections,
// Tombstones, Objects, Flows, Close.
func (k *Key) NewWriter(w io.Writer, scope Scope) *Writer {
	return &Writer{key: k, scope: scope, zip: zip.NewWriter(w), files: make(map[string]File), tag: k.Tag(scope.Namespace).Hash}
}

func (w *Writer) begin(name string) (err error) {
	w.end()
	if w.to, err = w.zip.Create(name); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	w.name, w.sum, w.lines, w.bytes = name, sha256.New(), 0, 0
	return nil
}

func (w *Writer) end() {
	if w.name != "" {
		w.files[w.name] = File{w.lines, w.bytes, Hash(w.sum.Sum(nil))}
		w.name = ""
	}
}

func (w *Writer) line(b []byte) error {
	b = append(b, '\n')
	w.sum.Write(b)
	w.lines++
	w.bytes += uint64(len(b))
	if _, err := w.to.Write(b); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	return nil
}

// Shows reports whether the bundle shows a group.
func (w *Writer) Shows(g *Group) bool { return w.scope.Everyone || g.Tag == w.tag }

// Sections writes the checkpoints and then their batches. Each of the two is
// asked for once, and gives them in the same order: by writer and number.
func (w *Writer) Sections(each func(yield func(*Section) error) error) error {
	if err := w.begin(fileCheckpoints); err != nil {
		return err
	}
	err := each(func(s *Section) error {
		if n := len(w.ranges); n == 0 || w.ranges[n-1].Writer != s.Writer {
			w.ranges = append(w.ranges, Range{s.Writer, s.Number, s.Number})
		} else {
			w.ranges[n-1].Last = s.Number
		}
		return w.line(marshal(&s.Signed))
	})
	if err != nil {
		return err
	}
	if err := w.begin(fileBatches); err != nil {
		return err
	}
	return each(func(s *Section) error {
		for _, b := range s.Links {
			if err := w.line(marshal(w.view(b))); err != nil {
				return err
			}
		}
		return nil
	})
}

// view is a batch as the bundle shows it.
func (w *Writer) view(b *Batch) *Batch {
	out := *b
	out.Groups = make([]Group, len(b.Groups))
	for i := range b.Groups {
		if g := &b.Groups[i]; w.Shows(g) {
			out.Groups[i] = *g
		} else {
			out.Groups[i] = g.hide()
		}
	}
	if !w.scope.Everyone {
		out.First, out.Last = 0, 0
	}
	return &out
}

// Through says that a writer has signed checkpoints up to a number, whatever
// there was to be written.
func (w *Writer) Through(writer string, number uint64) {
	for i := range w.ranges {
		if r := &w.ranges[i]; r.Writer == writer {
			r.Last = max(r.Last, number)
			return
		}
	}
}

// Tombstones writes what was deleted.
func (w *Writer) Tombstones(all []*SignedTombstone) error {
	if err := w.begin(fileTombstones); err != nil {
		return err
	}
	for _, t := range all {
		if err := w.line(marshal(t)); err != nil {
			return err
		}
	}
	return nil
}

// Objects writes the timeline, of which the bundle shows what is of its namespace.
func (w *Writer) Objects(each func(yield func(*flow.Change) error) error) error {
	if err := w.begin(fileObjects); err != nil {
		return err
	}
	return each(func(c *flow.Change) error {
		if !w.scope.Everyone && !ofNamespace(c, w.scope.Namespace) {
			return nil
		}
		return w.line(marshal(&Object{
			c.Time.UnixMilli(), clean(c.Cluster), c.Kind.String(), clean(c.Namespace), clean(c.Name), clean(c.Author), c.Deleted, clean(string(c.Object)),
		}))
	})
}

// ofNamespace reports whether a change is of a namespace. An identity says its
// own in its object, or none if it is gone.
func ofNamespace(c *flow.Change, namespace string) bool {
	switch c.Kind {
	case flow.ChangeNamespace:
		return c.Name == namespace
	case flow.ChangeIdentity:
		return c.Namespace == namespace || strings.Contains(string(c.Object), `"namespace":`+string(appendString(nil, namespace)))
	}
	return c.Namespace == namespace
}

// Flows writes lines of flows, in the order of the leaves that the bundle
// shows: those of batches in their order, of their groups, and in each of these.
func (w *Writer) Flows(each func(yield func(line []byte) error) error) error {
	if err := w.begin(fileFlows); err != nil {
		return err
	}
	return each(w.line)
}

// Close writes the signed manifest and ends the bundle.
func (w *Writer) Close(now time.Time) error {
	w.end()
	m := manifestFile{Manifest: Manifest{
		Version: 1, Made: now.UnixMilli(), Until: w.scope.Until.UnixMilli(), Everyone: w.scope.Everyone, Namespace: w.scope.Namespace, Writers: w.ranges, Files: w.files,
	}}
	if !w.scope.Everyone {
		m.Proof = w.key.Tag(w.scope.Namespace).Proof
	}
	if !w.scope.Since.IsZero() {
		m.Since = w.scope.Since.UnixMilli()
	}
	m.Signature = w.key.sign(signedManifest, marshal(&m.Manifest))
	to, err := w.zip.Create(fileManifest)
	if err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	if _, err := to.Write(append(marshal(&m), '\n')); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	if err := w.zip.Close(); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	return nil
}
