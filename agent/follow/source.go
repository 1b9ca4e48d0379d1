// Package follow reads the log of a network plugin as it grows, across rotation and restarts.
package follow

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// Parser reads a line, which is without its end and not to be kept, into an
// observation that is empty but for Time. ok is false where the line is about
// something else; err says that it should tell a verdict and cannot be read.
type Parser interface {
	Parse(line []byte, o *flow.Observation) (ok bool, err error)
}

// Options configure a Source.
type Options struct {
	Name   string // of the source
	Node   string // who reports gaps
	Path   string // the log, or a pattern whose newest file is read
	Parser Parser
	// Hint says how the plugin is made to write the log.
	Hint string
	// StateDir is where the place is kept over a restart; empty for nowhere.
	StateDir string
	Memory   *Memory
	// Deliver takes a filled slice and returns an empty one to fill next.
	Deliver func([]flow.Observation) []flow.Observation
	// Lost is told what was not seen.
	Lost   func(flow.Gap)
	Logger *slog.Logger
}

// Validate names what is missing.
func (o *Options) Validate() error {
	if o.Name == "" || o.Path == "" || o.Parser == nil || o.Memory == nil || o.Deliver == nil || o.Lost == nil || o.Logger == nil {
		return errors.New("follow a log: Name, Path, Parser, Memory, Deliver, Lost and Logger must be set")
	}
	return nil
}

// pollInterval is how often the file is looked at. Asking costs two
// microseconds, and works on every file system; being told does neither.
const pollInterval = 250 * time.Millisecond

// Stats counts what a Source has read.
type Stats struct {
	Lines, Records, Malformed uint64
}

// Source reads one log.
type Source struct {
	o    Options
	file *file
	path string          // of file, when it was opened
	done map[uint64]bool // files that were read to their end, by id and beginning
	good time.Time       // when the log was last read without loss
	out  []flow.Observation
	told bool // that nothing was understood
	// unkept says that the place could not be written, and that this was told.
	unkept bool

	lines, records, malformed atomic.Uint64
}

// Open finds the log and the place in it: where the last reading ended, or its
// end. It fails if there is no log, or none that may be read.
func Open(o Options) (*Source, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	s := &Source{o: o, done: make(map[uint64]bool), good: time.Now()}
	p, err := o.loadPlace()
	if err != nil {
		o.Logger.Error("the log's place is not taken over, it is read from its end", "source", o.Name, "error", err)
	}
	all, err := candidates(o.Path)
	if err != nil {
		return nil, fmt.Errorf("find log %s: %w", o.Path, err)
	}
	if len(all) == 0 {
		o.Memory.missing = true
		_, err := os.Stat(o.Path)
		if err == nil || isPattern(o.Path) {
			err = fs.ErrNotExist
		}
		return nil, s.explain(err)
	}
	if p != nil {
		err = s.resume(p, all)
	} else {
		err = s.begin(all)
	}
	if err != nil {
		return nil, s.explain(err)
	}
	return s, nil
}

// explain says what one can do.
func (s *Source) explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("open log %s: there is no such file: %s", s.o.Path, s.o.Hint)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("open log %s: %w: run the agent as a user who may read it, or with CAP_DAC_READ_SEARCH", s.o.Path, fs.ErrPermission)
	}
	return fmt.Errorf("open log %s: %w", s.o.Path, err)
}

// begin opens the newest file at its end; at its beginning if the log did not
// exist before.
func (s *Source) begin(all []candidate) error {
	newest := all[len(all)-1]
	for _, c := range all {
		if c.main {
			newest = c
		}
	}
	for _, c := range all {
		if c.id != newest.id {
			s.finished(markOf(c))
		}
	}
	if err := s.open(newest.path); err != nil {
		return err
	}
	if s.o.Memory.missing {
		return nil
	}
	return s.file.seekEnd()
}

// resume finds the place again. The file may have been rotated since, and
// others after it.
func (s *Source) resume(p *place, all []candidate) error {
	s.good = p.Saved
	for _, c := range all {
		if c.id == p.ID && c.size >= p.Offset && begins(c.path, p.Head) {
			if err := s.open(c.path); err != nil {
				return err
			}
			s.file.seek(p.Offset)
			return s.file.rehead()
		}
	}
	now := time.Now()
	s.gap(now, "the log was rotated away before it was read to its end")
	next := all[len(all)-1]
	for _, c := range all {
		if c.changed.After(p.Saved) {
			next = c
			break
		}
	}
	s.good = now
	return s.open(next.path)
}

func (s *Source) open(path string) (err error) {
	f, err := openFile(path)
	if err != nil {
		return err
	}
	if s.file != nil {
		_ = s.file.f.Close() // it was only read
	}
	s.file, s.path = f, path
	return nil
}

// Name returns the source's name.
func (s *Source) Name() string { return s.o.Name }

// Stats may be called at any time.
func (s *Source) Stats() Stats {
	return Stats{s.lines.Load(), s.records.Load(), s.malformed.Load()}
}

// Malformed counts the lines that should tell a verdict and could not be read.
func (s *Source) Malformed() uint64 { return s.malformed.Load() }

// Run reads until ctx ends, and closes the source.
func (s *Source) Run(ctx context.Context) error {
	defer func() { _ = s.file.f.Close() }()
	s.out = s.o.Deliver(nil)
	for {
		if err := s.look(); err != nil {
			return fmt.Errorf("read log %s: %w", s.path, err)
		}
		select {
		case <-time.After(pollInterval):
		case <-ctx.Done():
			return nil
		}
	}
}

// look reads what is new, goes on to the next file where there is one, and
// keeps the place.
func (s *Source) look() error {
	before, was := s.file.offset, s.file.id
	for again := true; again; {
		var err error
		if again, err = s.advance(); err != nil {
			return err
		}
	}
	now := time.Now()
	s.good = now
	s.out = s.o.Deliver(s.out)
	if s.file.offset == before && s.file.id == was && s.o.Memory.place != nil {
		return nil
	}
	err := s.o.keep(&place{Path: s.path, ID: s.file.id, Offset: s.file.offset, Head: s.file.head, Saved: now})
	if err != nil && !s.unkept {
		s.o.Logger.Error("the log's place is not kept, a restart goes on at its end", "source", s.o.Name, "error", err)
	}
	s.unkept = err != nil
	return nil
}

// advance reads the file to its end. again says that there is more: in the
// next file, or in this one from its beginning.
func (s *Source) advance() (again bool, err error) {
	same, err := s.file.begun()
	if err != nil {
		return false, err
	}
	if !same {
		return false, s.emptied()
	}
	if err := s.file.read(s.line); err != nil {
		return false, err
	}
	if !isPattern(s.o.Path) {
		if info, err := os.Stat(s.o.Path); err == nil && idOf(info) == s.file.id {
			return false, nil
		}
	}
	next, ok, err := s.next()
	if err != nil || !ok {
		return false, err
	}
	// What was written between the last reading and the rotation.
	if err := s.file.read(s.line); err != nil {
		return false, err
	}
	s.file.rest(s.line)
	s.finished(mark(s.file.f, s.file.id))
	return true, s.open(next.path)
}

// next finds the file that follows. An empty one does not count yet: after
// "rename and create" the writer goes on with the old file until it opens the
// new one.
func (s *Source) next() (c candidate, ok bool, err error) {
	all, err := candidates(s.o.Path)
	if err != nil {
		return c, false, err
	}
	changed := s.file.changed()
	for _, c := range all {
		if c.id == s.file.id || c.size == 0 || c.changed.Before(changed) || s.done[markOf(c)] {
			continue
		}
		if len(s.file.head) > 0 && begins(c.path, s.file.head) {
			continue // a copy: this file is about to be emptied
		}
		return c, true, nil
	}
	return c, false, nil
}

// finished remembers a file that holds nothing new.
func (s *Source) finished(m uint64) {
	const maxDone = 1024
	if len(s.done) >= maxDone {
		clear(s.done)
	}
	s.done[m] = true
}

// emptied goes on with a file that was emptied. Where somebody made a copy
// first (copytruncate), what was not read of it is read there.
func (s *Source) emptied() error {
	f := s.file
	copied, err := s.copyOf(f)
	if err != nil {
		return err
	}
	if copied == nil {
		s.gap(time.Now(), "the log was emptied before it was read to its end")
	} else {
		defer func() { _ = copied.f.Close() }()
		copied.seek(f.offset)
		if err := copied.read(s.line); err != nil {
			return err
		}
		copied.rest(s.line)
	}
	f.seek(0)
	f.head = nil
	return f.read(s.line)
}

func (s *Source) copyOf(f *file) (*file, error) {
	if len(f.head) == 0 {
		return nil, nil
	}
	all, err := candidates(s.o.Path)
	if err != nil {
		return nil, err
	}
	for _, c := range all {
		if c.id != f.id && c.size >= f.offset && begins(c.path, f.head) {
			s.finished(markOf(c))
			return openFile(c.path)
		}
	}
	return nil, nil
}

func (s *Source) gap(now time.Time, why string) {
	s.o.Lost(flow.Gap{Node: s.o.Node, Source: s.o.Name, Kind: flow.GapSource, Start: s.good, End: now, Detail: why})
	s.o.Logger.Warn("lines of a log are lost", "source", s.o.Name, "log", s.o.Path, "why", why)
}

// line gives a line to the parser.
func (s *Source) line(b []byte) {
	s.lines.Add(1)
	if b == nil {
		s.fault(b, errLong)
		return
	}
	if len(b) == 0 {
		return
	}
	if len(s.out) == cap(s.out) {
		s.out = s.o.Deliver(s.out)
	}
	o := flow.Observation{Time: time.Now().UnixNano()}
	ok, err := s.o.Parser.Parse(b, &o)
	switch {
	case err != nil:
		s.fault(b, err)
	case ok:
		s.records.Add(1)
		s.out = append(s.out, o)
	default:
		s.silent()
	}
}

// fault counts a line that cannot be read, and shows the first.
func (s *Source) fault(line []byte, err error) {
	if s.malformed.Add(1) == 1 {
		s.o.Logger.Warn("a line of a log cannot be read, further ones are only counted", "source", s.o.Name, "log", s.path,
			"error", err, "line", fmt.Sprintf("%.200s", line))
	}
	s.silent()
}

// manyLines are enough to tell that a log is another's.
const manyLines = 1000

// silent says, once, that nothing in the log was understood.
func (s *Source) silent() {
	if s.told || s.records.Load() > 0 || s.lines.Load() < manyLines {
		return
	}
	s.told = true
	s.o.Logger.Warn("no line of a log tells a verdict: is it the right file, and is logging switched on?", "source", s.o.Name, "log", s.path,
		"lines", s.lines.Load(), "malformed", s.malformed.Load(), "hint", s.o.Hint)
}
