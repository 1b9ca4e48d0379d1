package evidence

import (
	"archive/zip"
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
)

// Bounds of what is read of a bundle at once.
const (
	maxLine     = 64 << 20 // a batch of a million flows
	maxManifest = 4 << 20
)

// Fault is what is wrong with a bundle: the first thing that is found.
type Fault struct {
	File  string
	Line  uint64 // from 1; 0 is the file
	Batch string // of an agent, if it is one's
	Text  string
}

// Error names the place and the fault.
func (f *Fault) Error() string {
	where := f.File
	if f.Line > 0 {
		where = fmt.Sprintf("%s line %d", f.File, f.Line)
	}
	if f.Batch != "" {
		where += ", " + f.Batch
	}
	return where + ": " + f.Text
}

func batchName(b *Batch) string {
	return fmt.Sprintf("batch %d of agent %s (epoch %x, sequence %d)", b.Number, b.Agent, b.Epoch, b.Sequence)
}

// openBundle finds the files of a bundle: each once, and no other.
func openBundle(r io.ReaderAt, size int64) (map[string]*zip.File, error) {
	z, err := zip.NewReader(r, size)
	if err != nil {
		return nil, fmt.Errorf("open bundle: %w: it is no bundle, or was cut", err)
	}
	files := make(map[string]*zip.File)
	known := []string{fileCheckpoints, fileBatches, fileTombstones, fileObjects, fileFlows, fileManifest}
	for _, f := range z.File {
		switch {
		case !slices.Contains(known, f.Name):
			return nil, &Fault{File: f.Name, Text: "a bundle has no such file: it was added"}
		case files[f.Name] != nil:
			return nil, &Fault{File: f.Name, Text: "the bundle has it twice"}
		}
		files[f.Name] = f
	}
	for _, name := range known {
		if files[name] == nil {
			return nil, &Fault{File: name, Text: "it is missing"}
		}
	}
	return files, nil
}

// lines reads a file of a bundle by line.
type lines struct {
	name   string
	file   io.ReadCloser
	buffer *bufio.Reader
	sum    hash.Hash
	n      uint64 // of the newest line
	bytes  uint64
}

func openLines(f *zip.File) (*lines, error) {
	r, err := f.Open()
	if err != nil {
		return nil, &Fault{File: f.Name, Text: "it cannot be read: " + err.Error()}
	}
	return &lines{name: f.Name, file: r, buffer: bufio.NewReaderSize(r, 1<<16), sum: sha256.New()}, nil
}

// next gives the next line without its end, which is valid until the next call.
// io.EOF says that there is none.
func (l *lines) next() (line []byte, err error) {
	for {
		part, err := l.buffer.ReadSlice('\n')
		l.sum.Write(part)
		l.bytes += uint64(len(part))
		if err == nil && line == nil {
			l.n++
			return part[:len(part)-1], nil
		}
		line = append(line, part...)
		switch {
		case err == nil:
			l.n++
			return line[:len(line)-1], nil
		case len(line) > maxLine:
			return nil, l.fault(1, "the line is longer than a bundle's may be")
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(line) == 0:
			return nil, io.EOF
		case errors.Is(err, io.EOF):
			return nil, l.fault(1, "the line was cut")
		default:
			return nil, l.fault(1, "it cannot be read: "+err.Error())
		}
	}
}

// fault is at the newest line, or so many after it.
func (l *lines) fault(after uint64, text string) *Fault {
	return &Fault{File: l.name, Line: l.n + after, Text: text}
}

// finish compares what was read with the manifest.
func (l *lines) finish(m *Manifest) error {
	want := m.Files[l.name]
	switch {
	case l.n < want.Lines:
		return l.fault(1, fmt.Sprintf("the file ends, though it had %d lines: the rest is missing", want.Lines))
	case l.n > want.Lines:
		return &Fault{File: l.name, Line: want.Lines + 1, Text: fmt.Sprintf("the file had %d lines: this one was inserted", want.Lines)}
	case l.bytes != want.Bytes || Hash(l.sum.Sum(nil)) != want.SHA256:
		return &Fault{File: l.name, Text: "it is not the file that was signed: it was altered or swapped"}
	}
	return nil
}
