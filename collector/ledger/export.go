package ledger

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/evidence"
	"github.com/flowaudit/flowaudit/flow"
)

// ErrTooMany says that an export would be of more flows than one bundle may hold.
var ErrTooMany = errors.New("too many flows for one bundle")

// maxExport bounds the memory of an export, some 100 bytes a flow.
const maxExport = 2_000_000

// Export writes a bundle of what was stored in a time. What is being stored
// meanwhile may or may not be in it.
func (l *Ledger) Export(ctx context.Context, w io.Writer, scope evidence.Scope) error {
	newest, through, err := l.newest(ctx)
	if err != nil {
		return err
	}
	current := false
	if now := l.o.Now(); scope.Until.IsZero() || !scope.Until.Before(now) {
		scope.Until, current = now, true
	}
	writers, err := l.writers(ctx, scope)
	if err != nil {
		return err
	}
	x := &export{ledger: l, scope: scope, newest: newest, through: through, current: current, writers: writers, out: l.o.Key.NewWriter(w, scope), found: make(map[evidence.Hash]record)}
	if x.lines, err = Temporary(l.o.Dir); err != nil {
		return fmt.Errorf("export evidence: %w", err)
	}
	defer x.lines.Close()
	for _, step := range []func(context.Context) error{x.expect, x.collect, x.write} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return x.out.Close(l.o.Now())
}

// newest is the section that no entry carries yet, if there is one, and the
// number of the newest checkpoint.
func (l *Ledger) newest(ctx context.Context) (*evidence.Section, uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.settle(ctx); err != nil {
		return nil, 0, err
	}
	if l.sealed == nil {
		return nil, l.last.Number, nil
	}
	return l.entry.section(l.sealed), l.last.Number, nil
}

// Temporary makes a file without a name: it goes with the process.
func Temporary(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "evidence-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// writers are those with evidence of the time, of this key.
func (l *Ledger) writers(ctx context.Context, scope evidence.Scope) (all []string, err error) {
	err = l.o.Store.Documents(ctx, kindEntry, scope.Since, func(d store.Document) bool {
		_, w, _ := strings.Cut(d.ID, "/")
		if strings.HasSuffix(w, suffix(l.o.Key)) && !d.Time.After(scope.Until) && !slices.Contains(all, w) {
			all = append(all, w)
		}
		return true
	})
	slices.Sort(all)
	return all, err
}

// export is one on its way.
type export struct {
	ledger      *Ledger
	scope       evidence.Scope
	newest      *evidence.Section // of the ledger's own; what is sealed meanwhile is not in it
	through     uint64            // its number, also where it is kept with another entry
	current     bool              // it is of all that there is, up to now
	writers     []string
	out         *evidence.Writer
	found       map[evidence.Hash]record
	first, last int64 // starts of the flows
	lines       *os.File
}

// record is where a flow's line is; its length is 0 until the store has given it.
type record struct {
	offset int64
	length int32
}

// sections gives the sections of the time, by writer and number.
func (x *export) sections(ctx context.Context, yield func(*evidence.Section) error) error {
	until := x.scope.Until.UnixMilli()
	for _, w := range x.writers {
		own := w == x.ledger.writer
		err := x.ledger.sections(ctx, x.scope.Since, w, nil, func(s *evidence.Section) error {
			if s.Time > until || own && (s.Number > x.through || x.newest != nil && s.Number >= x.newest.Number) {
				return nil
			}
			return yield(s)
		})
		if err == nil && own && x.newest != nil && x.newest.Time <= until && x.newest.Time >= x.scope.Since.UnixMilli() {
			err = yield(x.newest)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// expect notes which flows the bundle is to have.
func (x *export) expect(ctx context.Context) error {
	return x.sections(ctx, func(s *evidence.Section) error {
		for _, b := range s.Links {
			any := false
			for i := range b.Groups {
				g := &b.Groups[i]
				for j := range g.Len() {
					if x.out.Shows(g) {
						x.found[g.Leaf(j)] = record{}
						any = true
					}
				}
			}
			if len(x.found) > maxExport {
				return fmt.Errorf("%w: more than %d: export less time at once, or a namespace", ErrTooMany, maxExport)
			}
			if any {
				if x.first == 0 || b.First < x.first {
					x.first = b.First
				}
				x.last = max(x.last, b.Last)
			}
		}
		return nil
	})
}

// collect finds the flows in the store.
func (x *export) collect(ctx context.Context) error {
	if len(x.found) == 0 {
		return nil
	}
	to := bufio.NewWriter(x.lines)
	var offset int64
	var line []byte
	var failed error
	err := x.ledger.o.Store.Reports(ctx, time.UnixMilli(x.first), time.UnixMilli(x.last+1), func(f flow.Flow) bool {
		line = evidence.AppendFlow(line[:0], &f)
		h := evidence.LeafHash(line)
		if r, wanted := x.found[h]; !wanted || r.length > 0 {
			return true
		}
		x.found[h] = record{offset, int32(len(line))}
		offset += int64(len(line))
		_, failed = to.Write(line)
		return failed == nil
	})
	if err := errors.Join(failed, err, to.Flush()); err != nil {
		return fmt.Errorf("export flows: %w", err)
	}
	return nil
}

// write writes the bundle.
func (x *export) write(ctx context.Context) error {
	err := x.out.Sections(func(yield func(*evidence.Section) error) error {
		return x.sections(ctx, func(s *evidence.Section) error {
			x.markGone(s)
			return yield(s)
		})
	})
	if err != nil {
		return err
	}
	if x.current {
		x.out.Through(x.ledger.writer, x.through)
	}
	tombstones, err := x.ledger.tombstones(ctx)
	if err != nil {
		return err
	}
	if err := x.out.Tombstones(tombstones); err != nil {
		return err
	}
	if err := x.objects(ctx); err != nil {
		return err
	}
	return x.out.Flows(func(yield func([]byte) error) error { return x.flows(ctx, yield) })
}

// markGone notes the leaves whose flows the store does not have.
func (x *export) markGone(s *evidence.Section) {
	for _, b := range s.Links {
		for i := range b.Groups {
			g := &b.Groups[i]
			if g.Gone = nil; !x.out.Shows(g) {
				continue
			}
			for j := range g.Len() {
				if x.found[g.Leaf(j)].length == 0 {
					g.Gone = append(g.Gone, j)
				}
			}
		}
	}
}

func (x *export) objects(ctx context.Context) error {
	return x.out.Objects(func(yield func(*flow.Change) error) error {
		var failed error
		err := x.ledger.o.Store.Timeline(ctx, flow.SeeAll(), x.scope.Since, x.scope.Until, func(c flow.Change) bool {
			failed = yield(&c)
			return failed == nil
		})
		return errors.Join(failed, err)
	})
}

func (x *export) flows(ctx context.Context, yield func([]byte) error) error {
	return x.sections(ctx, func(s *evidence.Section) error {
		for _, b := range s.Links {
			for i := range b.Groups {
				if err := x.group(&b.Groups[i], yield); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

func (x *export) group(g *evidence.Group, yield func([]byte) error) error {
	if !x.out.Shows(g) {
		return nil
	}
	for j := range g.Len() {
		r := x.found[g.Leaf(j)]
		if r.length == 0 {
			continue
		}
		line := make([]byte, r.length, r.length+1)
		if _, err := x.lines.ReadAt(line, r.offset); err != nil {
			return fmt.Errorf("export flows: %w", err)
		}
		if err := yield(line); err != nil {
			return err
		}
	}
	return nil
}

// tombstones are those of all writers of the key.
func (l *Ledger) tombstones(ctx context.Context) (all []*evidence.SignedTombstone, err error) {
	var failed error
	err = l.o.Store.Documents(ctx, kindTombstone, time.Time{}, func(d store.Document) bool {
		if !strings.HasSuffix(d.ID, suffix(l.o.Key)) {
			return true
		}
		var t *evidence.SignedTombstone
		if t, failed = evidence.ParseTombstone(d.Body); failed == nil {
			all = append(all, t)
		}
		return failed == nil
	})
	return all, errors.Join(failed, err)
}
