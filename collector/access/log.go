package access

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// Log keeps who asked what, as JSON lines. It never holds a token.
type Log struct {
	log    *slog.Logger
	count  func(answer any) uint64
	closer io.Closer
	fault  *fault
}

// fault remembers that a line could not be written.
type fault struct {
	w    io.Writer
	last atomic.Pointer[string]
}

func (f *fault) Write(b []byte) (int, error) {
	n, err := f.w.Write(b)
	if err != nil {
		text := err.Error()
		f.last.Store(&text)
	} else {
		f.last.Store(nil)
	}
	return n, err
}

// NewLog writes to w; count says how many rows an answer holds.
func NewLog(w io.Writer, count func(answer any) uint64) *Log {
	f := &fault{w: w}
	return &Log{log: slog.New(slog.NewJSONHandler(f, nil)), count: count, fault: f}
}

// OpenLog appends to a file, which may be cut or moved away; "-" is standard
// output.
func OpenLog(file string, count func(answer any) uint64) (*Log, error) {
	if file == "-" {
		return NewLog(os.Stdout, count), nil
	}
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log of queries: %w", err)
	}
	l := NewLog(f, count)
	l.closer = f
	return l, nil
}

// Close closes the file.
func (l *Log) Close() error {
	if l == nil || l.closer == nil {
		return nil
	}
	return l.closer.Close()
}

// Problem says why the last line was not written; empty if it was.
func (l *Log) Problem() string {
	if l == nil {
		return ""
	}
	if text := l.fault.last.Load(); text != nil {
		return "queries are not logged: " + *text
	}
	return ""
}

func (l *Log) rows(answer any) uint64 {
	if l == nil || l.count == nil || answer == nil {
		return 0
	}
	return l.count(answer)
}

// began tells of a call that has no end by itself.
func (l *Log) began(ctx context.Context, method string, request any) {
	if l != nil {
		l.log.LogAttrs(ctx, slog.LevelInfo, "follow begins", attributes(ctx, method, request)...)
	}
}

// ended tells of a call that is over.
func (l *Log) ended(ctx context.Context, method string, request any, began time.Time, rows uint64, err error) {
	if l == nil {
		return
	}
	out := append(attributes(ctx, method, request), slog.Uint64("rows", rows), slog.Duration("duration", time.Since(began)), slog.String("code", status.Code(err).String()))
	if err != nil {
		out = append(out, slog.String("error", status.Convert(err).Message()))
	}
	l.log.LogAttrs(ctx, slog.LevelInfo, "query", out...)
}

// attributes are who asks what, and what was decided.
func attributes(ctx context.Context, method string, request any) []slog.Attr {
	out := []slog.Attr{slog.String("method", path.Base(method))}
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		out = append(out, slog.String("from", p.Addr.String()))
	}
	if s := sessionOf(ctx); s == nil {
		out = append(out, slog.String("decision", "unknown reader"))
	} else {
		out = append(out, slog.String("reader", s.reader.Name), slog.String("proof", s.reader.Proof))
		if len(s.reader.Groups) > 0 {
			out = append(out, slog.Any("groups", s.reader.Groups))
		}
		switch {
		case s.sight.All():
			out = append(out, slog.String("decision", "everything"))
		case s.sight.Nothing():
			out = append(out, slog.String("decision", "nothing"))
		default:
			names := s.sight.Namespaces()
			if n := len(names); n > maxNamespaces {
				names = append(names[:maxNamespaces], fmt.Sprintf("and %d more", n-maxNamespaces))
			}
			out = append(out, slog.String("decision", "namespaces"), slog.Any("namespaces", names))
		}
	}
	if m, ok := request.(proto.Message); ok {
		out = append(out, slog.Any("arguments", arguments(m)))
	}
	return out
}

// maxNamespaces is how many namespaces a line names.
const maxNamespaces = 100

// maxArguments is how much of a request a line holds; manifests may be large.
const maxArguments = 4096

func arguments(m proto.Message) any {
	text, err := protojson.Marshal(m)
	switch {
	case err != nil:
		return err.Error()
	case len(text) > maxArguments:
		return string(text[:maxArguments]) + "…"
	}
	return json.RawMessage(text)
}
