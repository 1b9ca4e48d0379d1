// Package duckdb keeps flows in DuckDB files, one a time slice, inside the collector's process.
package duckdb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/duckdb/duckdb-go/v2"

	"github.com/flowaudit/flowaudit/collector/store"
)

// Options configure a Store.
type Options struct {
	Dir         string        // of the files; made if it is not there
	Slice       time.Duration // how much time one file holds; 0 takes 1 h
	Threads     int           // 0 takes DuckDB's default, one a core
	MemoryLimit string        // such as 2GB; empty takes DuckDB's default
	Logger      *slog.Logger
	// Now tells the time of arrival; nil takes time.Now.
	Now func() time.Time
}

const defaultSlice = time.Hour

// Store keeps flows in files of one directory.
type Store struct {
	o  Options
	db *sql.DB

	// write is held by the one who appends or changes the list of slices.
	write     sync.Mutex
	writer    *writer
	keys      batchKeys
	timeline  timeline
	documents bool                 // their file is open
	failed    bool                 // the last write to the open slice
	months    map[time.Time]*month // of edges, by the month's beginning

	// read guards the list: queries hold it shared while they use slices.
	read   sync.RWMutex
	slices []*slice // by arrival, the last takes writes
	// archives hold the refused flows of slices that are gone, by month.
	archives []*slice

	fresh    freshness
	defined  defined
	reported reported
	unsummed uint64 // how many flows wait to be summed up
	inMemory int    // how many flows an answer may hold
}

var _ store.Store = (*Store)(nil)

// fileSuffix of a slice; its name begins with the arrival's Unix milliseconds.
const fileSuffix = ".duckdb"

// Open opens or makes a store. A file that cannot be opened is named in the
// log and left alone; the others are used.
func Open(ctx context.Context, o Options) (*Store, error) {
	if o.Slice == 0 {
		o.Slice = defaultSlice
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Dir == "" || o.Logger == nil || o.Slice < time.Second {
		return nil, errors.New("open store: Dir and Logger must be set, and Slice be 1s at least")
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make store directory: %w", err)
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("find store directory: %w", err)
	}
	o.Dir = dir
	connector, err := duckdb.NewConnector("", nil)
	if err != nil {
		return nil, fmt.Errorf("start DuckDB: %w", err)
	}
	s := &Store{o: o, db: sql.OpenDB(connector), keys: make(batchKeys), unsummed: maxUnsummed, inMemory: maxInMemory, defined: defined{views: make(map[string]string)}}
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(err, s.db.Close())
	}
	return s, nil
}

func (s *Store) start(ctx context.Context) error {
	if err := s.configure(ctx); err != nil {
		return err
	}
	if err := s.attachAll(ctx); err != nil {
		return err
	}
	if err := s.openArchives(ctx); err != nil {
		return err
	}
	if err := s.keys.load(ctx, s.db, s.slices); err != nil {
		return err
	}
	if err := s.reported.load(ctx, s.db, s.slices); err != nil {
		return err
	}
	if err := s.openTimeline(ctx); err != nil {
		return err
	}
	if err := s.openDocuments(ctx); err != nil {
		return err
	}
	if len(s.slices) > 0 && !s.last().summed && !s.last().converted {
		if err := s.last().loadDictionary(ctx, s.db); err != nil {
			return err
		}
	} else if err := s.begin(ctx); err != nil {
		return err
	}
	var err error
	if s.writer, err = newWriter(ctx, s.db); err != nil {
		return err
	}
	s.openSums(ctx, s.last())
	if err := s.removeStraySums(); err != nil {
		return err
	}
	if err := s.defineMacros(ctx); err != nil {
		return err
	}
	return s.openMonths(ctx)
}

// configure locks DuckDB into the store's directory: no query, and no file
// that somebody puts there, can make it load code or read elsewhere.
func (s *Store) configure(ctx context.Context) error {
	settings := []string{
		"SET autoinstall_known_extensions = false",
		"SET autoload_known_extensions = false",
		fmt.Sprintf("SET allowed_directories = [%s]", quote(s.o.Dir+"/")),
		"SET preserve_insertion_order = true",
	}
	if s.o.Threads > 0 {
		settings = append(settings, fmt.Sprintf("SET threads = %d", s.o.Threads))
	}
	if s.o.MemoryLimit != "" {
		settings = append(settings, "SET memory_limit = "+quote(s.o.MemoryLimit))
	}
	settings = append(settings,
		"SET temp_directory = "+quote(filepath.Join(s.o.Dir, "tmp")),
		"ATTACH ':memory:' AS "+openEdges,
		"SET enable_external_access = false",
		"SET lock_configuration = true")
	for _, q := range settings {
		if _, err := s.db.ExecContext(ctx, q); err != nil {
			return fmt.Errorf("configure DuckDB: %s: %w", q, err)
		}
	}
	return nil
}

// quote makes a text an SQL literal.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// attachAll opens the files of the directory, oldest first.
func (s *Store) attachAll(ctx context.Context) error {
	files, err := filepath.Glob(filepath.Join(s.o.Dir, "*"+fileSuffix))
	if err != nil {
		return fmt.Errorf("list store files: %w", err)
	}
	for _, path := range files {
		if name := filepath.Base(path); name == timelineFile || name == documentsFile || strings.HasPrefix(name, edgePrefix) || strings.HasPrefix(name, archivePrefix) || strings.HasPrefix(name, sumsPrefix) {
			continue
		}
		ms, err := strconv.ParseInt(strings.TrimSuffix(filepath.Base(path), fileSuffix), 10, 64)
		if err != nil {
			s.o.Logger.Warn("a file that is none of the store's was left alone", "file", path)
			continue
		}
		sl := &slice{name: sliceName(ms), path: path, begin: time.UnixMilli(ms)}
		if err := s.attach(ctx, sl); errors.Is(err, errNewer) {
			return err
		} else if err != nil {
			s.o.Logger.Error("a slice of the store cannot be read, its flows are missing from answers", "file", path, "error", err)
			continue
		}
		s.slices = append(s.slices, sl)
	}
	slices.SortFunc(s.slices, func(a, b *slice) int { return a.begin.Compare(b.begin) })
	return nil
}

func sliceName(ms int64) string { return fmt.Sprintf("slice_%d", ms) }

func (s *Store) attach(ctx context.Context, sl *slice) error {
	if _, err := s.db.ExecContext(ctx, fmt.Sprintf("ATTACH %s AS %s", quote(sl.path), sl.name)); err != nil {
		return fmt.Errorf("open %s: %w", sl.path, err)
	}
	had, err := sliceSteps.migrate(ctx, s.db, sl.name)
	if err == nil {
		sl.converted = had > 0 && had < len(sliceSteps)
		err = sl.load(ctx, s.db)
	}
	if err != nil {
		_, detach := s.db.ExecContext(ctx, "DETACH "+sl.name)
		return errors.Join(fmt.Errorf("open %s: %w", sl.path, err), detach)
	}
	return nil
}

func (s *Store) last() *slice { return s.slices[len(s.slices)-1] }

// begin starts a new slice, which takes the writes from now on.
func (s *Store) begin(ctx context.Context) error {
	ms := s.o.Now().UnixMilli()
	if len(s.slices) > 0 {
		ms = max(ms, s.last().begin.UnixMilli()+1)
	}
	sl := &slice{
		name: sliceName(ms), path: filepath.Join(s.o.Dir, strconv.FormatInt(ms, 10)+fileSuffix),
		begin: time.UnixMilli(ms), dict: newDictionary(),
	}
	if err := s.attach(ctx, sl); err != nil {
		return err
	}
	s.read.Lock()
	defer s.read.Unlock()
	s.slices = append(s.slices, sl)
	return nil
}

// roll begins a new slice when the last one's time is over or it holds too
// many distinct keys.
func (s *Store) roll(ctx context.Context) error {
	last := s.last()
	if s.o.Now().Sub(last.begin) < s.o.Slice && !last.dict.full() {
		return nil
	}
	if err := s.closeSlice(ctx, last); err != nil {
		return err
	}
	if err := s.begin(ctx); err != nil {
		return err
	}
	last.dict = nil
	s.openSums(ctx, s.last())
	return nil
}

// closeSlice makes of a slice that takes no more flows what questions read
// instead of these.
func (s *Store) closeSlice(ctx context.Context, sl *slice) error {
	if err := s.closeSums(ctx, sl); err != nil {
		return err
	}
	if _, err := s.db.ExecContext(ctx, "CHECKPOINT "+sl.name); err != nil {
		return fmt.Errorf("close slice %s: %w", sl.path, err)
	}
	return s.closeEdges(ctx, sl)
}

// Stats implements store.Store.
func (s *Store) Stats(context.Context) (store.Stats, error) {
	s.read.RLock()
	defer s.read.RUnlock()
	out := store.Stats{Kind: "duckdb", Slices: len(s.slices)}
	if len(s.slices) > 0 {
		out.Arrived = s.slices[0].begin
	}
	for _, sl := range s.holding() {
		out.Flows += sl.held.Load().flows
		out.Bytes += uint64(sl.bytes())
		if b := sl.held.Load().start; b != 0 && (out.Oldest.IsZero() || time.UnixMilli(b).Before(out.Oldest)) {
			out.Oldest = time.UnixMilli(b)
		}
	}
	return out, nil
}

// bytes is what the slice takes on disk, its log and sums included.
func (sl *slice) bytes() int64 {
	paths := []string{sl.path, sl.path + ".wal"}
	if sl.sums != nil {
		paths = append(paths, sl.sums.path, sl.sums.path+".wal")
	}
	var n int64
	for _, path := range paths {
		if info, err := os.Stat(path); err == nil {
			n += info.Size()
		}
	}
	return n
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.write.Lock()
	defer s.write.Unlock()
	s.read.Lock()
	defer s.read.Unlock()
	var errs []error
	if s.writer != nil {
		errs = append(errs, s.writer.close())
		s.writer = nil
	}
	for _, sl := range s.holding() {
		_, err := s.db.Exec("DETACH " + sl.name) // writes its log into the file
		errs = append(errs, err)
		if sl.sums != nil {
			_, err := s.db.Exec("DETACH " + sl.sums.name)
			errs = append(errs, err)
		}
	}
	s.slices, s.archives = nil, nil
	for _, m := range s.months {
		_, err := s.db.Exec("DETACH " + m.name)
		errs = append(errs, err)
	}
	s.months = nil
	if s.timeline.open {
		_, err := s.db.Exec("DETACH " + timelineName)
		errs = append(errs, err)
	}
	if s.documents {
		_, err := s.db.Exec("DETACH " + documentsName)
		errs = append(errs, err)
	}
	return errors.Join(append(errs, s.db.Close())...)
}
