package spool

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// segment is one file. It is deleted when all of its records are acknowledged.
type segment struct {
	number uint64 // in order of creation
	lane   Lane
	path   string
	size   int64
	own    bool      // of this run, so that its records are known without reading it
	began  time.Time // when its first record was put; of an earlier run's, when its last was
	used   time.Time // when it was last written to

	records     int                 // of an own one, or of one that was read to its end
	acked       map[uint64]struct{} // sequences that are acknowledged, while others are not
	first, last uint64              // sequences of an own one
	pos         int                 // up to where Next has given its records
	read        int                 // how many records were found up to pos
	until       time.Time           // the end of the last of them
	ended       bool                // read to its end at least once
}

func (g *segment) unacked() int { return g.records - len(g.acked) }

const (
	suffix = ".spool"
	// maxSegment bounds what is read of a file that this package did not write.
	maxSegment = segmentBytes + recordSize + maxPayload
)

// readSegment reads a part of a file.
func readSegment(path string, from, to int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read spool: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, from, to-from))
	if err != nil {
		return nil, fmt.Errorf("read spool: %w", err)
	}
	return b, nil
}

func (g *segment) name() string { return fmt.Sprintf("%016x-%c%s", g.number, g.lane.letter(), suffix) }

// parseName reads a file's name back.
func parseName(name string) (number uint64, lane Lane, ok bool) {
	base, ok := strings.CutSuffix(name, suffix)
	if !ok || len(base) != 18 || base[16] != '-' {
		return 0, 0, false
	}
	number, err := strconv.ParseUint(base[:16], 16, 64)
	for lane = range lanes {
		if lane.letter() == base[17] {
			return number, lane, err == nil
		}
	}
	return 0, 0, false
}

// list finds what earlier runs left in a directory, oldest first.
func list(dir string) ([]*segment, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list spool: %w", err)
	}
	var all []*segment
	for _, e := range entries {
		number, lane, ok := parseName(e.Name())
		if !ok {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list spool: %w", err)
		}
		all = append(all, &segment{number: number, lane: lane, path: filepath.Join(dir, e.Name()), size: min(info.Size(), maxSegment), began: info.ModTime(), used: info.ModTime()})
	}
	slices.SortFunc(all, func(a, b *segment) int { return strings.Compare(a.path, b.path) })
	return all, nil
}

// active is the segment of a lane that is written to.
type active struct {
	*segment
	file  *os.File
	dirty bool // written to since it was last synchronized
}

func createSegment(g *segment, covered time.Time) (*active, error) {
	f, err := os.OpenFile(g.path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create spool file: %w", err)
	}
	if _, err := f.Write(header(covered)); err != nil {
		return nil, errors.Join(fmt.Errorf("write spool file: %w", err), f.Close(), os.Remove(g.path))
	}
	g.size = headerSize
	return &active{segment: g, file: f}, nil
}

// write appends a record. What is written in part is taken back.
func (a *active) write(b []byte) error {
	if _, err := a.file.WriteAt(b, a.size); err != nil {
		return errors.Join(fmt.Errorf("write spool file: %w", err), a.file.Truncate(a.size))
	}
	a.size += int64(len(b))
	a.dirty = true
	return nil
}

// reset empties the file: all that it held is acknowledged.
func (a *active) reset(covered time.Time) error {
	if err := a.file.Truncate(headerSize); err != nil {
		return fmt.Errorf("empty spool file: %w", err)
	}
	if _, err := a.file.WriteAt(header(covered), 0); err != nil {
		return fmt.Errorf("write spool file: %w", err)
	}
	a.size, a.records, a.acked, a.pos, a.read, a.dirty = headerSize, 0, nil, 0, 0, false
	return nil
}
