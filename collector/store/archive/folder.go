package archive

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/parquet-go/parquet-go"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
)

// Folder is a directory with a folder of Parquet files for each day, named as
// the day, and the timeline beside them. A day that is there is whole.
type Folder struct{ Dir string }

// The files of a day, and the timeline's.
const (
	flowsFile    = "flows.parquet"
	watchedFile  = "watched.parquet"
	gapsFile     = "gaps.parquet"
	timelineFile = "timeline.parquet"
)

// watchedRow and gapRow are rows of their files.
type watchedRow struct {
	Node     string    `parquet:"node,dict"`
	Instance string    `parquet:"instance,dict"`
	Scope    int32     `parquet:"scope"`
	Start    time.Time `parquet:"start,timestamp(millisecond)"`
	End      time.Time `parquet:"end,timestamp(millisecond)"`
	Limits   []string  `parquet:"limits,list"`
}

type gapRow struct {
	Node   string    `parquet:"node,dict"`
	Source string    `parquet:"source,dict"`
	Kind   int32     `parquet:"kind"`
	Start  time.Time `parquet:"start,timestamp(millisecond)"`
	End    time.Time `parquet:"end,timestamp(millisecond)"`
	Lost   uint64    `parquet:"lost"`
	Detail string    `parquet:"detail"`
}

type changeRow struct {
	Time      time.Time `parquet:"time,timestamp(millisecond)"`
	Cluster   string    `parquet:"cluster,dict"`
	Kind      int32     `parquet:"kind"`
	Namespace string    `parquet:"namespace,dict"`
	Name      string    `parquet:"name"`
	Author    string    `parquet:"author,dict"`
	Deleted   bool      `parquet:"deleted"`
	Object    string    `parquet:"object"`
}

// Days lists the days that are there.
func (f Folder) Days() ([]time.Time, error) {
	entries, err := os.ReadDir(f.Dir)
	if err != nil {
		return nil, fmt.Errorf("list days: %w", err)
	}
	var days []time.Time
	for _, e := range entries {
		if day, err := time.Parse(time.DateOnly, e.Name()); err == nil && e.IsDir() {
			days = append(days, day)
		}
	}
	slices.SortFunc(days, time.Time.Compare)
	return days, nil
}

func (f Folder) day(day time.Time) string { return filepath.Join(f.Dir, day.Format(time.DateOnly)) }

// Export writes the days of a store that are not there yet, and the timeline.
func (f Folder) Export(ctx context.Context, from store.Store, days []time.Time, log *slog.Logger) error {
	if err := os.MkdirAll(f.Dir, 0o700); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	for _, day := range days {
		if _, err := os.Stat(f.day(day)); err == nil {
			continue
		}
		if err := f.exportDay(ctx, from, day, log); err != nil {
			return fmt.Errorf("export %s: %w", day.Format(time.DateOnly), err)
		}
	}
	if len(days) == 0 {
		return nil
	}
	return f.exportTimeline(ctx, from, days[len(days)-1].Add(Day))
}

func (f Folder) exportDay(ctx context.Context, from store.Store, day time.Time, log *slog.Logger) error {
	dir, err := os.MkdirTemp(f.Dir, ".export-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // after a rename there is nothing
	w, err := newFiles(dir)
	if err != nil {
		return err
	}
	if err := read(ctx, from, day, w); err != nil {
		return errors.Join(err, w.abandon())
	}
	if err := os.Rename(dir, f.day(day)); err != nil {
		return err
	}
	log.Info("exported", "day", day.Format(time.DateOnly), "flows", w.count)
	return nil
}

func (f Folder) exportTimeline(ctx context.Context, from store.Store, until time.Time) error {
	var rows []changeRow
	err := from.Timeline(ctx, flow.SeeAll(), time.Time{}, until, func(c flow.Change) bool {
		rows = append(rows, changeRow{c.Time, c.Cluster, int32(c.Kind), c.Namespace, c.Name, c.Author, c.Deleted, string(c.Object)})
		return true
	})
	if err == nil {
		path := filepath.Join(f.Dir, timelineFile)
		if err = parquet.WriteFile(path+".new", rows, parquet.Compression(&parquet.Zstd)); err == nil {
			err = os.Rename(path+".new", path)
		}
	}
	if err != nil {
		return fmt.Errorf("export timeline: %w", err)
	}
	return nil
}

// Import stores the days that are there, and the timeline where the store has
// none. It can be done again after a break.
func (f Folder) Import(ctx context.Context, to store.Store, log *slog.Logger) error {
	days, err := f.Days()
	if err != nil {
		return err
	}
	for _, day := range days {
		w := newWriter(to, day)
		if err := read(ctx, f, day, w); err != nil {
			return fmt.Errorf("import %s: %w", day.Format(time.DateOnly), err)
		}
		log.Info("imported", "day", day.Format(time.DateOnly), "flows", w.flows, "there already", w.duplicates)
	}
	return f.importTimeline(ctx, to)
}

func (f Folder) importTimeline(ctx context.Context, to store.Store) error {
	var changes []flow.Change
	err := rowsOf(ctx, filepath.Join(f.Dir, timelineFile), func(r changeRow) (bool, error) {
		c := flow.Change{Time: r.Time, Cluster: r.Cluster, Kind: flow.ChangeKind(r.Kind), Namespace: r.Namespace, Name: r.Name, Author: r.Author, Deleted: r.Deleted}
		if r.Object != "" {
			c.Object = []byte(r.Object)
		}
		changes = append(changes, c)
		return true, nil
	})
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("import timeline: %w", err)
	}
	return recordInto(ctx, to, changes)
}

// Reports implements Source.
func (f Folder) Reports(ctx context.Context, since, _ time.Time, yield func(flow.Flow) bool) error {
	return rowsOf(ctx, filepath.Join(f.day(since), flowsFile), func(r flowRow) (bool, error) {
		fl, err := r.flow()
		return err == nil && yield(fl), err
	})
}

// Watched implements Source.
func (f Folder) Watched(ctx context.Context, since, _ time.Time, yield func(store.Watched) bool) error {
	return rowsOf(ctx, filepath.Join(f.day(since), watchedFile), func(r watchedRow) (bool, error) {
		return yield(store.Watched{Node: r.Node, Instance: r.Instance, Scope: flow.Scope(r.Scope), Start: r.Start, End: r.End, Limits: r.Limits}), nil
	})
}

// Gaps implements Source.
func (f Folder) Gaps(ctx context.Context, since, _ time.Time, yield func(flow.Gap) bool) error {
	return rowsOf(ctx, filepath.Join(f.day(since), gapsFile), func(r gapRow) (bool, error) {
		return yield(flow.Gap{Node: r.Node, Source: r.Source, Kind: flow.GapKind(r.Kind), Start: r.Start, End: r.End, Lost: r.Lost, Detail: r.Detail}), nil
	})
}

// rowsOf reads a file row by row, until each has seen enough.
func rowsOf[T any](ctx context.Context, path string, each func(T) (bool, error)) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	opened, err := parquet.OpenFile(file, info.Size())
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	r := parquet.NewGenericReader[T](opened)
	defer r.Close()
	rows := make([]T, 1024)
	for ctx.Err() == nil {
		n, err := r.Read(rows)
		for i := range rows[:n] {
			if more, err := each(rows[i]); !more {
				return err
			}
		}
		clear(rows)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
	}
	return ctx.Err()
}

// files are a day being written.
type files struct {
	flows *file[flowRow]
	spans *file[watchedRow]
	holes *file[gapRow]
	count int
}

func newFiles(dir string) (w *files, err error) {
	w = &files{}
	if w.flows, err = newFile[flowRow](filepath.Join(dir, flowsFile)); err != nil {
		return nil, err
	}
	if w.spans, err = newFile[watchedRow](filepath.Join(dir, watchedFile)); err != nil {
		return nil, errors.Join(err, w.flows.close())
	}
	if w.holes, err = newFile[gapRow](filepath.Join(dir, gapsFile)); err != nil {
		return nil, errors.Join(err, w.flows.close(), w.spans.close())
	}
	return w, nil
}

func (w *files) flow(_ context.Context, f *flow.Flow) error {
	w.count++
	return w.flows.write(rowOf(f))
}

func (w *files) watched(_ context.Context, c store.Watched) error {
	return w.spans.write(watchedRow{c.Node, c.Instance, int32(c.Scope), c.Start, c.End, c.Limits})
}

func (w *files) gap(_ context.Context, g flow.Gap) error {
	return w.holes.write(gapRow{g.Node, g.Source, int32(g.Kind), g.Start, g.End, g.Lost, g.Detail})
}

func (w *files) close(context.Context) error { return w.abandon() }

func (w *files) abandon() error {
	return errors.Join(w.flows.close(), w.spans.close(), w.holes.close())
}

// file is a Parquet file being written.
type file[T any] struct {
	f *os.File
	w *parquet.GenericWriter[T]
}

func newFile[T any](path string) (*file[T], error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	return &file[T]{f, parquet.NewGenericWriter[T](f, parquet.Compression(&parquet.Zstd), parquet.MaxRowsPerRowGroup(500_000))}, nil
}

func (f *file[T]) write(row T) error {
	_, err := f.w.Write([]T{row})
	return err
}

// close makes the file whole and durable.
func (f *file[T]) close() error { return errors.Join(f.w.Close(), f.f.Sync(), f.f.Close()) }

// labelsText is labels as JSON; empty for none.
func labelsText(labels map[string]string) string {
	if labels == nil {
		return ""
	}
	b, _ := json.Marshal(labels) // texts only: it cannot fail
	return string(b)
}
