package spool

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Options configure a spool.
type Options struct {
	Dir      string        // made if it does not exist
	Epoch    uint64        // of this run: random, so that no run's records have the keys of another's
	MaxBytes int64         // beyond it the oldest files are dropped, those of Low first
	MaxAge   time.Duration // what waits for longer is dropped
	Lost     func(Loss)    // told what was dropped or is damaged; it must not call the spool
	Log      *slog.Logger
}

// MinBytes is the least that a spool may be bounded to.
const MinBytes = 8 * segmentBytes

// segmentBytes is when a file is full. It is dropped, and read, as a whole.
const segmentBytes = 2 << 20

// Loss is what the spool could not keep.
type Loss struct {
	Start, End time.Time // that its batches tell of; zero if that cannot be known
	Flows      uint64    // 0 if that cannot be known
	Records    int       // at least
	Damaged    bool      // else it was dropped because of a bound
	Detail     string
}

// Spool is a directory of segments. Its methods may be called concurrently.
type Spool struct {
	Options
	lock *os.File

	mu       sync.Mutex
	segments []*segment // oldest first
	active   [lanes]*active
	bytes    int64
	number   uint64    // of the newest segment
	covered  time.Time // up to when batches were put, by this run or an earlier one
	unacked  int       // records of this run
	cursor   struct {
		*segment
		data []byte // of its file
	}
	buffer  []byte
	created bool // a file, since the directory was last synchronized
}

// ErrLocked says that another process uses the directory.
var ErrLocked = errors.New("another agent uses this spool")

// Open opens a directory for one process. What an earlier run left there is
// given by Next, with torn tails cut off.
func Open(o Options) (*Spool, error) {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(o.Dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	s := &Spool{Options: o, lock: lock}
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrLocked
	}
	if err == nil {
		err = s.takeOver()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open spool %s: %w", o.Dir, err), lock.Close())
	}
	return s, nil
}

// takeOver finds what earlier runs left.
func (s *Spool) takeOver() (err error) {
	if s.segments, err = list(s.Dir); err != nil {
		return err
	}
	newest := make(map[Lane]*segment)
	for _, g := range s.segments {
		newest[g.lane] = g
		s.number = max(s.number, g.number)
		s.bytes += g.size
	}
	for _, g := range newest {
		b, err := readSegment(g.path, 0, g.size)
		if err != nil {
			return err
		}
		s.covered = later(s.covered, readHeader(b))
		end := s.examine(b)
		if end >= len(b) {
			continue
		}
		s.Log.Warn("the end of a spool file is torn and was cut off", "file", g.path, "bytes", len(b)-end)
		if err := os.Truncate(g.path, int64(end)); err != nil {
			return fmt.Errorf("cut a torn end: %w", err)
		}
		s.bytes -= g.size - int64(end)
		g.size = int64(end)
	}
	return nil
}

// examine looks through a segment: up to when its batches tell, and where its
// last whole record ends.
func (s *Spool) examine(b []byte) (end int) {
	for at := 0; ; {
		f, ok := find(b, at)
		if !ok {
			return max(end, min(headerSize, len(b)))
		}
		s.covered = later(s.covered, f.Covered)
		if f.torn {
			s.lose(Loss{Start: f.Start, End: f.End, Flows: uint64(f.Flows), Records: 1, Damaged: true, Detail: "a batch was not written to its end"})
			return max(end, min(headerSize, len(b)))
		}
		at, end = f.next, f.next
	}
}

// Covered is up to when batches were put by the last run, or by this one.
func (s *Spool) Covered() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.covered
}

// Put writes a record of this run, sequences growing. When it returns, the
// record outlasts the process; Sync makes it outlast the machine.
func (s *Spool) Put(r *Record) error {
	if len(r.Payload) > maxPayload {
		return fmt.Errorf("write to spool: a batch has %d bytes, more than %d", len(r.Payload), maxPayload)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r.Epoch = s.Epoch
	s.buffer = appendRecord(s.buffer[:0], r)
	s.age()
	s.makeRoom(int64(len(s.buffer)))
	a, err := s.open(r.Lane)
	if err != nil {
		return err
	}
	if err := a.write(s.buffer); err != nil {
		s.close(r.Lane) // it may end within a record
		return err
	}
	s.bytes += int64(len(s.buffer))
	s.unacked++
	if a.records == 0 {
		a.first, a.began = r.Sequence, time.Now()
	}
	a.last, a.used = r.Sequence, time.Now()
	a.records++
	s.covered = later(s.covered, r.Covered)
	if a.size >= segmentBytes {
		s.close(r.Lane)
	}
	return nil
}

// open gives the segment to write to.
func (s *Spool) open(l Lane) (*active, error) {
	if a := s.active[l]; a != nil {
		return a, nil
	}
	g := &segment{number: s.number + 1, lane: l, own: true, used: time.Now()}
	g.path = filepath.Join(s.Dir, g.name())
	a, err := createSegment(g, s.covered)
	if err != nil {
		return nil, err
	}
	s.number++
	s.bytes += g.size
	s.active[l] = a
	s.segments = append(s.segments, g)
	s.created = true
	for _, old := range slices.Clone(s.segments) {
		if !old.own && old.size <= headerSize {
			s.remove(old) // it told up to when batches were put, which g does now
		}
	}
	return a, nil
}

// close ends the segment that is written to.
func (s *Spool) close(l Lane) {
	a := s.active[l]
	if a == nil {
		return
	}
	s.active[l] = nil
	if a.dirty {
		s.warn("spool file may not outlast a crash of the machine", a.file.Sync())
	}
	s.warn("spool file is not closed", a.file.Close())
	if a.unacked() == 0 {
		s.remove(a.segment)
	}
}

// Ack forgets a record. One that is not here is no error.
func (s *Spool) Ack(r *Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := r.segment
	if g == nil {
		g = s.holder(r)
	}
	if g == nil || !slices.Contains(s.segments, g) {
		return nil
	}
	if _, twice := g.acked[r.Sequence]; twice {
		return nil
	}
	if g.acked == nil {
		g.acked = make(map[uint64]struct{})
	}
	g.acked[r.Sequence] = struct{}{}
	if g.own {
		s.unacked--
	}
	return s.clear(g)
}

// holder finds the segment of a record of this run.
func (s *Spool) holder(r *Record) *segment {
	for _, g := range slices.Backward(s.segments) {
		if g.own && g.lane == r.Lane && g.records > 0 && g.first <= r.Sequence && r.Sequence <= g.last {
			return g
		}
	}
	return nil
}

// clear deletes a segment, or empties the one that is written to, when nothing
// of it waits.
func (s *Spool) clear(g *segment) error {
	if !g.own && !g.ended || g.unacked() > 0 {
		return nil
	}
	if a := s.active[g.lane]; a != nil && a.segment == g {
		before := a.size
		if err := a.reset(s.covered); err != nil {
			return err
		}
		s.bytes -= before - a.size
		s.drop(g)
		return nil
	}
	s.remove(g)
	return nil
}

// remove deletes a segment.
func (s *Spool) remove(g *segment) {
	if !slices.Contains(s.segments, g) {
		return
	}
	s.warn("spool file is not deleted", os.Remove(g.path))
	s.bytes -= g.size
	s.segments = slices.DeleteFunc(s.segments, func(x *segment) bool { return x == g })
	s.drop(g)
}

// drop lets the cursor go of a segment.
func (s *Spool) drop(g *segment) {
	if s.cursor.segment == g {
		s.cursor.segment, s.cursor.data = nil, nil
	}
}

// Sync makes what was put outlast a crash of the machine.
func (s *Spool) Sync() error {
	s.mu.Lock()
	var files []*os.File
	for _, a := range s.active {
		if a != nil && a.dirty {
			a.dirty = false
			files = append(files, a.file)
		}
	}
	created := s.created
	s.created = false
	s.mu.Unlock()
	var errs []error
	if created {
		dir, err := os.Open(s.Dir)
		if err != nil {
			return fmt.Errorf("sync spool: %w", err)
		}
		defer dir.Close()
		files = append(files, dir)
	}
	for _, f := range files {
		if err := f.Sync(); err != nil && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, fmt.Errorf("sync spool: %w", err))
		}
	}
	return errors.Join(errs...)
}

// Bytes is what the files hold.
func (s *Spool) Bytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes
}

// Oldest is when the oldest record was put that waits, as far as is known
// without reading files; zero if none waits.
func (s *Spool) Oldest() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.segments {
		if g.own && g.unacked() > 0 || !g.own && g.size > headerSize {
			return g.began
		}
	}
	return time.Time{}
}

// Close ends the use of the directory. What waits is for the next run.
func (s *Spool) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range lanes {
		if a := s.active[l]; a != nil && a.unacked() == 0 {
			s.active[l] = nil // an empty file tells the next run up to when batches were put
			s.warn("spool file does not tell up to when batches were put", a.reset(s.covered))
			s.warn("spool file is not closed", a.file.Close())
			continue
		}
		s.close(l)
	}
	if err := s.lock.Close(); err != nil {
		return fmt.Errorf("close spool: %w", err)
	}
	return nil
}

func (s *Spool) lose(l Loss) {
	if s.Lost != nil {
		s.Lost(l)
	}
}

func (s *Spool) warn(what string, err error) {
	if err != nil {
		s.Log.Warn(what, "error", err)
	}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
