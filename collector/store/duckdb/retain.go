package duckdb

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
)

// archivePrefix begins the names of the files that keep refused flows when
// their slice goes, one a month.
const archivePrefix = "denied-"

// archiveSchema is what an archive has beside the tables of a slice: which
// slices' flows are in it already, so that a crash in between repeats nothing.
const archiveSchema = "CREATE TABLE IF NOT EXISTS %[1]s.source (slice VARCHAR)"

// holding lists all that hold flows. The lists must not change.
func (s *Store) holding() []*slice { return slices.Concat(s.archives, s.slices) }

// openArchives attaches the archives, oldest first.
func (s *Store) openArchives(ctx context.Context) error {
	files, err := filepath.Glob(filepath.Join(s.o.Dir, archivePrefix+"*"+fileSuffix))
	if err != nil {
		return fmt.Errorf("list archives: %w", err)
	}
	for _, path := range files {
		begin, err := time.Parse("200601", strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), archivePrefix), fileSuffix))
		if err != nil {
			s.o.Logger.Warn("a file that is none of the store's was left alone", "file", path)
			continue
		}
		a := s.newArchive(begin)
		if err := s.attachArchive(ctx, a); errors.Is(err, errNewer) {
			return err
		} else if err != nil {
			s.o.Logger.Error("a month's refused flows cannot be read, they are missing from answers", "file", path, "error", err)
			continue
		}
		s.archives = append(s.archives, a)
	}
	return nil
}

func (s *Store) newArchive(begin time.Time) *slice {
	text := begin.Format("200601")
	return &slice{name: "denied_" + text, path: filepath.Join(s.o.Dir, archivePrefix+text+fileSuffix), begin: begin}
}

func (s *Store) attachArchive(ctx context.Context, a *slice) error {
	if err := s.attach(ctx, a); err != nil {
		return err
	}
	if _, err := s.db.ExecContext(ctx, fmt.Sprintf(archiveSchema, a.name)); err != nil {
		return fmt.Errorf("open %s: %w", a.path, err)
	}
	return nil
}

// Retain implements store.Store. A slice goes when all of it arrived before.
func (s *Store) Retain(ctx context.Context, keep store.Retention) (freed int64, err error) {
	s.write.Lock()
	defer s.write.Unlock()
	denied := keep.DeniedSince()
	for len(s.slices) > 1 && (s.old(keep.Since) || s.tooLarge(keep.Bytes)) {
		n, err := s.dropOldest(ctx, !s.old(denied))
		freed += n
		if err != nil {
			return freed, err
		}
	}
	for len(s.archives) > 0 && (!s.archives[0].begin.AddDate(0, 1, 0).After(denied) || s.tooLarge(keep.Bytes)) {
		n, err := s.dropArchive(ctx)
		freed += n
		if err != nil {
			return freed, err
		}
	}
	if denied.IsZero() {
		return freed, nil
	}
	return freed, s.pruneTimeline(ctx, denied)
}

// old reports whether all of the oldest slice arrived before.
func (s *Store) old(before time.Time) bool {
	return !before.IsZero() && !s.slices[1].begin.After(before)
}

// tooLarge reports whether the files take more than they may.
func (s *Store) tooLarge(limit uint64) bool {
	if limit == 0 {
		return false
	}
	var n uint64
	for _, sl := range s.holding() {
		n += uint64(sl.bytes())
	}
	for _, m := range s.months {
		n += uint64((&slice{path: m.path}).bytes())
	}
	return n > limit
}

// dropOldest deletes the oldest slice, and keeps its refused flows if it is told to.
func (s *Store) dropOldest(ctx context.Context, keepDenied bool) (freed int64, err error) {
	sl := s.slices[0]
	var a *slice
	if keepDenied {
		if a, err = s.archiveOf(ctx, sl); err != nil {
			return 0, err
		}
	}
	s.read.Lock() // waits for the queries that use it, and nobody sees a flow in both
	defer s.read.Unlock()
	if a != nil {
		if err := s.archive(ctx, sl, a); err != nil {
			return 0, err
		}
	}
	s.slices = s.slices[1:]
	return s.drop(ctx, sl)
}

func (s *Store) dropArchive(ctx context.Context) (freed int64, err error) {
	s.read.Lock() // waits for the queries that use it
	defer s.read.Unlock()
	a := s.archives[0]
	s.archives = s.archives[1:]
	return s.drop(ctx, a)
}

// drop deletes a file that is in no list any more.
func (s *Store) drop(ctx context.Context, sl *slice) (freed int64, err error) {
	s.reported.forget(sl)
	if _, err := s.db.ExecContext(ctx, "DETACH "+sl.name); err != nil {
		return 0, fmt.Errorf("close slice %s: %w", sl.path, err)
	}
	return removeFile(sl.path)
}

// archiveFlows copies what is refused from a slice, %[1]s, into an archive,
// %[2]s, whose numbers go on after those that it has.
var archiveFlows = [...]string{
	`INSERT INTO %[2]s.denied SELECT f.* REPLACE (f.key + (SELECT coalesce(max(id), 0) FROM %[2]s.key) AS key) FROM %[1]s.denied f`,
	`INSERT INTO %[2]s.key SELECT k.* REPLACE (
		k.id + (SELECT coalesce(max(id), 0) FROM %[2]s.key) AS id, k.pair + (SELECT coalesce(max(pair), 0) FROM %[2]s.key) AS pair,
		k.src + (SELECT coalesce(max(id), 0) FROM %[2]s.endpoint) AS src, k.dst + (SELECT coalesce(max(id), 0) FROM %[2]s.endpoint) AS dst)
		FROM %[1]s.key k WHERE k.verdict = %[3]d`,
	`INSERT INTO %[2]s.endpoint SELECT e.* REPLACE (e.id + (SELECT coalesce(max(id), 0) FROM %[2]s.endpoint) AS id) FROM %[1]s.endpoint e
		WHERE e.id IN (SELECT src FROM %[1]s.key WHERE verdict = %[3]d UNION SELECT dst FROM %[1]s.key WHERE verdict = %[3]d)`,
	`INSERT INTO %[2]s.source VALUES ('%[1]s')`,
}

// archiveOf is the archive of a slice's month.
func (s *Store) archiveOf(ctx context.Context, sl *slice) (*slice, error) {
	begin := monthOf(sl.begin)
	if i := slices.IndexFunc(s.archives, func(a *slice) bool { return a.begin.Equal(begin) }); i >= 0 {
		return s.archives[i], nil
	}
	a := s.newArchive(begin)
	if err := s.attachArchive(ctx, a); err != nil {
		return nil, err
	}
	s.read.Lock()
	defer s.read.Unlock()
	s.archives = append(s.archives, a)
	slices.SortFunc(s.archives, func(x, y *slice) int { return x.begin.Compare(y.begin) })
	return a, nil
}

// archive copies the refused flows of a slice; read must be held.
func (s *Store) archive(ctx context.Context, sl, a *slice) error {
	var done bool
	if err := s.db.QueryRowContext(ctx, fmt.Sprintf("SELECT count(*) > 0 FROM %s.source WHERE slice = ?", a.name), sl.name).Scan(&done); err != nil {
		return fmt.Errorf("read %s: %w", a.path, err)
	}
	if done {
		return nil
	}
	err := s.writer.transaction(ctx, func() error {
		for _, q := range archiveFlows {
			if _, err := s.writer.conn.ExecContext(ctx, fmt.Sprintf(q, sl.name, a.name, flow.VerdictDenied)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("keep refused flows of %s: %w", sl.path, err)
	}
	return a.load(ctx, s.db)
}
