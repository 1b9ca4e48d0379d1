package evidence

import (
	"archive/zip"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Summary says what a bundle proves.
type Summary struct {
	Manifest    Manifest
	Checkpoints uint64
	Batches     uint64
	Agents      int
	Flows       uint64 // that are there as they were
	Deleted     uint64 // that retention deleted
	Objects     uint64
	Gaps        uint64
}

// Verify checks a bundle. A Fault says what was altered, removed, inserted or
// brought out of order, and where; other errors, that it cannot be read.
func Verify(r io.ReaderAt, size int64, public ed25519.PublicKey) (*Summary, error) {
	files, err := openBundle(r, size)
	if err != nil {
		return nil, err
	}
	v := &verifier{public: public, files: files, agents: make(map[string]Link), links: make(map[string]uint64)}
	for _, step := range []func() error{v.readManifest, v.readTombstones, v.readBatches, v.readObjects} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	v.Agents = len(v.agents)
	return &v.Summary, nil
}

type verifier struct {
	Summary
	public      ed25519.PublicKey
	files       map[string]*zip.File
	tombstones  []Tombstone
	agents      map[string]Link   // the newest link of each agent and writer
	links       map[string]uint64 // line of it
	checkpoints *lines
	batches     *lines
	flows       *lines
	tag         Hash // of the bundle's namespace
}

func (v *verifier) readManifest() error {
	f, err := v.files[fileManifest].Open()
	if err != nil {
		return &Fault{File: fileManifest, Text: "it cannot be read: " + err.Error()}
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxManifest))
	if err != nil {
		return &Fault{File: fileManifest, Text: "it cannot be read: " + err.Error()}
	}
	var m manifestFile
	if err := strict(text, &m); err != nil {
		return &Fault{File: fileManifest, Line: 1, Text: "it is no manifest: " + err.Error()}
	}
	if !signed(v.public, signedManifest, marshal(&m.Manifest), m.Signature) {
		return &Fault{File: fileManifest, Line: 1, Text: "the signature is none of this key: the manifest was altered, or the key is another one"}
	}
	if m.Version != 1 {
		return fmt.Errorf("verify bundle: it has version %d, this flowaudit knows 1: use a newer one", m.Version)
	}
	v.Manifest = m.Manifest
	if m.Everyone {
		return nil
	}
	if v.tag = hashOf(prefixNamespace, m.Proof); !signed(v.public, signedNamespace, []byte(m.Namespace), m.Proof) {
		return &Fault{File: fileManifest, Line: 1, Text: fmt.Sprintf("it does not prove which groups are of namespace %q", m.Namespace)}
	}
	return nil
}

// each gives the lines of a file that stands for itself.
func (v *verifier) each(name string, f func(l *lines, line []byte) error) (err error) {
	l, err := openLines(v.files[name])
	if err != nil {
		return err
	}
	defer l.file.Close()
	for {
		line, err := l.next()
		if errors.Is(err, io.EOF) {
			return l.finish(&v.Manifest)
		}
		if err != nil {
			return err
		}
		if err := f(l, line); err != nil {
			return err
		}
	}
}

func (v *verifier) readTombstones() error {
	return v.each(fileTombstones, func(l *lines, line []byte) error {
		var t SignedTombstone
		if err := strict(line, &t); err != nil {
			return l.fault(0, "it is no tombstone: "+err.Error())
		}
		if !t.valid(v.public) {
			return l.fault(0, "the tombstone's signature is none of this key: it was altered or invented")
		}
		v.tombstones = append(v.tombstones, t.Tombstone)
		return nil
	})
}

func (v *verifier) readObjects() error {
	return v.each(fileObjects, func(l *lines, line []byte) error {
		var o Object
		if err := strict(line, &o); err != nil {
			return l.fault(0, "it is no object: "+err.Error())
		}
		v.Objects++
		return nil
	})
}

// readBatches goes through checkpoints, batches and flows, which are in one order.
func (v *verifier) readBatches() (err error) {
	for _, f := range []struct {
		name string
		to   **lines
	}{{fileCheckpoints, &v.checkpoints}, {fileBatches, &v.batches}, {fileFlows, &v.flows}} {
		if *f.to, err = openLines(v.files[f.name]); err != nil {
			return err
		}
		defer (*f.to).file.Close()
	}
	for _, w := range v.Manifest.Writers {
		if err := v.writer(w); err != nil {
			return err
		}
	}
	for _, l := range []*lines{v.checkpoints, v.batches, v.flows} {
		if _, err := l.next(); err == nil {
			return l.fault(0, "the line belongs to no checkpoint: it was inserted")
		} else if !errors.Is(err, io.EOF) {
			return err
		}
		if err := l.finish(&v.Manifest); err != nil {
			return err
		}
	}
	return nil
}

// writer checks a run of checkpoints.
func (v *verifier) writer(w Range) error {
	var before Link
	for n := w.First; n <= w.Last && w.First > 0; n++ {
		line, err := v.checkpoints.next()
		if errors.Is(err, io.EOF) {
			return v.checkpoints.fault(1, fmt.Sprintf("the file ends: checkpoints %d to %d of %s are missing", n, w.Last, w.Writer))
		}
		if err != nil {
			return err
		}
		s := &Section{}
		if err := strict(line, &s.Signed); err != nil {
			return v.checkpoints.fault(0, "it is no checkpoint: "+err.Error())
		}
		if !s.valid(v.public) {
			return v.checkpoints.fault(0, fmt.Sprintf("the signature of checkpoint %d is none of this key: it was altered", s.Number))
		}
		switch {
		case s.Writer != w.Writer || s.Number > n:
			return v.checkpoints.fault(0, fmt.Sprintf("checkpoint %d of %s is missing, here is %d of %s", n, w.Writer, s.Number, s.Writer))
		case s.Number < n:
			return v.checkpoints.fault(0, fmt.Sprintf("checkpoint %d stands where %d belongs: it is repeated or out of order", s.Number, n))
		case n == w.First && n > 1 && !v.begins(s):
			return v.checkpoints.fault(0, fmt.Sprintf("the checkpoints of %s before %d are missing, and no retention deleted them", w.Writer, n))
		case n > w.First && s.Prev != before.Hash:
			return v.checkpoints.fault(0, fmt.Sprintf("checkpoint %d does not follow the one before: the chain was cut and begun anew", n))
		}
		before = s.Link()
		v.Checkpoints++
		if err := v.section(s); err != nil {
			return err
		}
	}
	return nil
}

// begins reports whether the bundle may begin with a checkpoint: the one before
// was of an earlier time, or retention deleted it.
func (v *verifier) begins(s *Section) bool {
	if s.PrevTime < v.Manifest.Since {
		return true
	}
	return slices.ContainsFunc(v.tombstones, func(t Tombstone) bool { return t.covers(s.PrevTime, true) })
}

// maxSection bounds what is held of a checkpoint's batches, in bytes of their lines.
const maxSection = 512 << 20

// section checks the batches of a checkpoint, and then their flows: a batch
// that is missing explains flows that are none of the next one.
func (v *verifier) section(s *Section) error {
	first, size := v.batches.n+1, 0
	var roots []Hash
	for range s.Batches {
		line, err := v.batches.next()
		if errors.Is(err, io.EOF) {
			return v.batches.fault(1, fmt.Sprintf("the file ends: checkpoint %d had %d batches", s.Number, s.Batches))
		}
		if err != nil {
			return err
		}
		if size += len(line); size > maxSection {
			return v.batches.fault(0, "the checkpoint has more than can be verified")
		}
		b := &Batch{}
		if err := strict(line, b); err != nil {
			return v.batches.fault(0, "it is no batch: "+err.Error())
		}
		if err := v.batch(s, b); err != nil {
			return err
		}
		s.Links, roots = append(s.Links, b), append(roots, b.BatchHead.Hash())
	}
	if Root(roots) != s.Root {
		return &Fault{File: fileBatches, Line: first, Text: fmt.Sprintf("the %d batches from here on are not those of checkpoint %d: one was altered, swapped or inserted", s.Batches, s.Number)}
	}
	for i, b := range s.Links {
		for j := range b.Groups {
			if err := v.records(s, b, &b.Groups[j], first+uint64(i)); err != nil {
				return err
			}
		}
	}
	return nil
}

// batch checks a link and its groups.
func (v *verifier) batch(s *Section, b *Batch) error {
	fail := func(text string) error {
		f := v.batches.fault(0, text)
		f.Batch = batchName(b)
		return f
	}
	chain := s.Writer + " " + b.Agent
	before, known := v.agents[chain]
	switch {
	case !known && v.first(s) && (b.Number != 1 || b.Prev != Hash{}):
		return fail(fmt.Sprintf("the chain begins with batch %d: the ones before are missing", b.Number))
	case known && b.Number > before.Number+1:
		return fail(fmt.Sprintf("batch %d of the agent is missing", before.Number+1))
	case known && b.Number <= before.Number:
		return fail(fmt.Sprintf("it comes after batch %d of the agent (line %d): it is repeated or out of order", before.Number, v.links[chain]))
	case known && b.Prev != before.Hash:
		return fail(fmt.Sprintf("it does not follow the batch before (line %d): one of the two was altered", v.links[chain]))
	}
	if rootOf(b.Groups) != b.Root {
		return fail("its groups are not those of its root: one was altered, removed or inserted")
	}
	v.agents[chain], v.links[chain] = Link{Number: b.Number, Hash: b.BatchHead.Hash()}, v.batches.n
	v.Batches++
	v.Gaps += uint64(len(b.Gaps))
	if !slices.IsSortedFunc(b.Groups, func(x, y Group) int { return slices.Compare(x.Tag[:], y.Tag[:]) }) {
		return fail("its groups are out of order")
	}
	for i := range b.Groups {
		if err := v.group(&b.Groups[i], fail); err != nil {
			return err
		}
	}
	return nil
}

// first reports whether a checkpoint is its writer's very first.
func (v *verifier) first(s *Section) bool {
	return slices.ContainsFunc(v.Manifest.Writers, func(w Range) bool { return w.Writer == s.Writer && w.First == 1 })
}

// group checks what a batch has of a namespace.
func (v *verifier) group(g *Group, fail func(string) error) error {
	if !g.Shown() {
		if v.Manifest.Everyone || g.Tag == v.tag {
			return fail("the flows of a namespace that the bundle is of are withheld")
		}
		return nil
	}
	if !v.Manifest.Everyone && g.Tag != v.tag {
		return fail(fmt.Sprintf("it shows namespace %q, which the bundle is not of", g.Namespace))
	}
	if hashOf(prefixNamespace, g.Proof) != g.Tag || !signed(v.public, signedNamespace, []byte(g.Namespace), g.Proof) {
		return fail(fmt.Sprintf("the group of namespace %q is not proven to be its", g.Namespace))
	}
	if len(g.Leaves)%len(Hash{}) != 0 || g.Denied < 0 || g.Denied > g.Len() {
		return fail(fmt.Sprintf("the leaves of namespace %q are cut", g.Namespace))
	}
	if groupRoot(g.hashes(), g.Denied) != g.Root {
		return fail(fmt.Sprintf("the leaves of namespace %q are not those of its root: one was altered, removed or inserted", g.Namespace))
	}
	return nil
}

// records compares the lines of flows with the leaves of a group, which is in a
// line of batches.
func (v *verifier) records(s *Section, b *Batch, g *Group, at uint64) error {
	gone := make(map[int]bool, len(g.Gone))
	for _, i := range g.Gone {
		gone[i] = true
	}
	for i := range g.Len() {
		if gone[i] {
			if !v.deleted(s, i < g.Denied) {
				return &Fault{fileBatches, at, batchName(b), fmt.Sprintf("flow %d of namespace %q is missing from the store, or altered there, and no retention deleted it", i+1, g.Namespace)}
			}
			v.Deleted++
			continue
		}
		line, err := v.flows.next()
		if errors.Is(err, io.EOF) {
			return v.missing(b, g, 1, "the file ends: this record and what follows is missing")
		}
		if err != nil {
			return err
		}
		if LeafHash(line) != g.Leaf(i) {
			return v.explain(b, g, i, line, gone)
		}
		v.Flows++
	}
	return nil
}

func (v *verifier) deleted(s *Section, denied bool) bool {
	return slices.ContainsFunc(v.tombstones, func(t Tombstone) bool { return t.covers(s.Time, denied) })
}

func (v *verifier) missing(b *Batch, g *Group, after uint64, text string) error {
	f := v.flows.fault(after, text)
	f.Batch = fmt.Sprintf("namespace %q of %s", g.Namespace, batchName(b))
	return f
}

// elsewhere reports whether a leaf is of another group of the batch.
func elsewhere(b *Batch, g *Group, leaf Hash) bool {
	return slices.ContainsFunc(b.Groups, func(o Group) bool { return o.Tag != g.Tag && slices.Contains(o.hashes(), leaf) })
}

// explain says what became of the flow whose leaf is the i-th: here is another line.
func (v *verifier) explain(b *Batch, g *Group, i int, line []byte, gone map[int]bool) error {
	at, here := v.flows.n, LeafHash(line)
	next, err := v.flows.next()
	var follows Hash
	if err == nil {
		follows = LeafHash(next)
	}
	v.flows.n = at
	rest := g.hashes()[i+1:]
	switch {
	case follows == g.Leaf(i) && slices.Contains(rest, here):
		return v.missing(b, g, 0, "the record and the next one are swapped: they are out of order")
	case follows == g.Leaf(i) && elsewhere(b, g, here):
		return v.missing(b, g, 0, "the record is of another namespace of the batch: it is out of order")
	case follows == g.Leaf(i):
		return v.missing(b, g, 0, "the record is none of the batch: it was inserted, or stands before its batch")
	case slices.Contains(rest, here) && i+1 < g.Len() && !gone[i+1] && here == rest[0] && (len(rest) == 1 || follows == rest[1]):
		return v.missing(b, g, 0, "the record that belongs here is missing")
	case slices.Contains(rest, here):
		return v.missing(b, g, 0, "the record belongs further down: it is out of order, or the ones before it are missing")
	case elsewhere(b, g, here):
		return v.missing(b, g, 0, "the record is of another namespace of the batch: it is out of order")
	case slices.Contains(g.hashes()[:i], here):
		return v.missing(b, g, 0, "the record was there before: it is repeated or out of order")
	case i+1 == g.Len() || len(rest) > 0 && follows == rest[0]:
		return v.missing(b, g, 0, "the record was altered, or another one stands in its place")
	}
	return v.missing(b, g, 0, "the record was altered, or the ones that belong here are missing")
}
