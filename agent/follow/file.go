package follow

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"syscall"
	"time"
)

const (
	// headLength is how much of a file's beginning tells it from another that
	// has its inode. Log lines begin with a time.
	headLength = 256
	// maxLine bounds a line. A longer one is skipped.
	maxLine  = 64 << 10
	readSize = 64 << 10
)

var errLong = errors.New("the line is longer than 64 KiB")

// fileID names a file on this machine until it is removed.
type fileID struct {
	Device, Inode uint64
}

// file is an open log and how far it was read.
type file struct {
	f       *os.File
	id      fileID
	offset  int64  // of the first byte that is not part of a line that was given out
	pending []byte // what follows offset without a line's end yet
	head    []byte // the first bytes
	skip    bool   // inside of a line that is too long
	buf     []byte
}

func openFile(path string) (*file, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("open %s: not a file", path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &file{f: f, id: idOf(info), buf: make([]byte, readSize)}, nil
}

func idOf(info os.FileInfo) fileID {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return fileID{s.Dev, s.Ino}
	}
	return fileID{}
}

// seek goes to a place; whole lines end there.
func (f *file) seek(offset int64) { f.offset, f.pending, f.skip = offset, f.pending[:0], false }

// seekEnd goes behind the last whole line: what comes now is new.
func (f *file) seekEnd() error {
	info, err := f.f.Stat()
	if err != nil {
		return err
	}
	end := info.Size()
	for end > 0 {
		n := min(end, readSize)
		if _, err := f.f.ReadAt(f.buf[:n], end-n); err != nil {
			return err
		}
		if i := bytes.LastIndexByte(f.buf[:n], '\n'); i >= 0 {
			end += int64(i) + 1 - n
			break
		}
		end -= n
	}
	f.seek(end)
	return nil
}

// read gives out all whole lines up to the file's end. A line that is too
// long is given as nil.
func (f *file) read(line func([]byte)) error {
	for {
		n, err := f.f.ReadAt(f.buf, f.offset+int64(len(f.pending)))
		f.lines(f.buf[:n], line)
		if errors.Is(err, io.EOF) {
			return f.rehead()
		}
		if err != nil {
			return err
		}
	}
}

func (f *file) lines(b []byte, line func([]byte)) {
	for {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			break
		}
		whole := b[:i]
		if len(f.pending) > 0 {
			f.pending = append(f.pending, whole...)
			whole = f.pending
		}
		f.offset += int64(len(whole)) + 1
		if !f.skip {
			line(bytes.TrimSuffix(whole, []byte("\r")))
		}
		f.pending, f.skip = f.pending[:0], false
		b = b[i+1:]
	}
	f.pending = append(f.pending, b...)
	if len(f.pending) <= maxLine {
		return
	}
	if !f.skip {
		line(nil)
	}
	f.offset += int64(len(f.pending))
	f.pending, f.skip = f.pending[:0], true
}

// rest gives out what is left without a line's end in a file that is over.
func (f *file) rest(line func([]byte)) {
	if len(f.pending) > 0 && !f.skip {
		line(f.pending)
	}
	f.seek(f.offset + int64(len(f.pending)))
}

// rehead remembers the file's beginning as far as it was read.
func (f *file) rehead() error {
	want := int(min(headLength, f.offset))
	if len(f.head) >= want {
		return nil
	}
	head := make([]byte, want)
	if _, err := f.f.ReadAt(head, 0); err != nil {
		return fmt.Errorf("read the beginning: %w", err)
	}
	f.head = head
	return nil
}

// begins reports whether the file at path begins as a head does.
func begins(path string, head []byte) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	b := make([]byte, len(head))
	_, err = io.ReadFull(f, b)
	return err == nil && bytes.Equal(b, head)
}

// begun reports whether the open file still begins as it did. If not, or if it
// is shorter than what was read, somebody emptied it.
func (f *file) begun() (bool, error) {
	info, err := f.f.Stat()
	if err != nil {
		return false, err
	}
	if info.Size() < f.offset+int64(len(f.pending)) {
		return false, nil
	}
	b := make([]byte, len(f.head))
	if _, err := f.f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	return bytes.Equal(b, f.head), nil
}

// changed is when the file was written to last.
func (f *file) changed() time.Time {
	info, err := f.f.Stat()
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// mark tells files apart also when an inode is used again.
func mark(f io.ReaderAt, id fileID) uint64 {
	const beginning = 64
	b := binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint64(make([]byte, 0, 16+beginning), id.Device), id.Inode)
	n, _ := f.ReadAt(b[16:16+beginning], 0)
	h := fnv.New64a()
	_, _ = h.Write(b[:16+n]) // never fails
	return h.Sum64()
}

func markOf(c candidate) uint64 {
	f, err := os.Open(c.path)
	if err != nil {
		return 0
	}
	defer f.Close()
	return mark(f, c.id)
}
