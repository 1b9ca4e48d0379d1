package duckdb

import (
	"bytes"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// timelineFile holds the timeline. It is not cut into slices: what a policy
// was a year ago may still be what it is.
const (
	timelineFile = "timeline" + fileSuffix
	timelineName = "timeline"
)

// timeline knows of each object what its newest change says.
type timeline struct {
	open bool

	mu       sync.Mutex // guards what follows
	newest   map[changeKey]newestChange
	sequence uint64 // of the next change: orders changes of one millisecond
}

type changeKey struct {
	cluster, namespace, name string
	kind                     flow.ChangeKind
}

type newestChange struct {
	deleted bool
	object  []byte
}

func (s *Store) openTimeline(ctx context.Context) error {
	path := filepath.Join(s.o.Dir, timelineFile)
	if _, err := s.db.ExecContext(ctx, fmt.Sprintf("ATTACH %s AS %s", quote(path), timelineName)); err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	s.timeline.open, s.timeline.newest = true, make(map[changeKey]newestChange)
	if _, err := timelineSteps.migrate(ctx, s.db, timelineName); err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	err := s.changes(ctx, "SELECT "+changeColumns+" FROM timeline.change ORDER BY sequence", nil, func(sequence uint64, c flow.Change) bool {
		s.timeline.take(c)
		s.timeline.sequence = sequence + 1
		return true
	})
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

// take remembers a change as its object's newest. It reports whether the
// change says something that the one before did not.
func (t *timeline) take(c flow.Change) bool {
	k := changeKey{c.Cluster, c.Namespace, c.Name, c.Kind}
	before, known := t.newest[k]
	if known && before.deleted == c.Deleted && bytes.Equal(before.object, c.Object) || !known && c.Deleted {
		return false
	}
	t.newest[k] = newestChange{c.Deleted, c.Object}
	return true
}

// Record implements store.Store.
func (s *Store) Record(ctx context.Context, changes []flow.Change) error {
	s.write.Lock()
	defer s.write.Unlock()
	s.timeline.mu.Lock()
	defer s.timeline.mu.Unlock()
	before := make(map[changeKey]newestChange)
	var rows [][]driver.Value
	for _, c := range changes {
		k := changeKey{c.Cluster, c.Namespace, c.Name, c.Kind}
		if _, saved := before[k]; !saved {
			before[k] = s.timeline.newest[k]
		}
		if s.timeline.take(c) {
			rows = append(rows, []driver.Value{
				c.Time.UnixMilli(), s.timeline.sequence + uint64(len(rows)), c.Cluster, uint8(c.Kind), c.Namespace, c.Name, c.Author, boolByte(c.Deleted), c.Object,
			})
		}
	}
	if err := s.writer.insertRows(timelineName, "change", rows); err != nil {
		for k, n := range before {
			if s.timeline.newest[k] = n; !n.deleted && n.object == nil {
				delete(s.timeline.newest, k)
			}
		}
		return errors.Join(fmt.Errorf("record changes: %w", err), s.revive(ctx, err, timelineName, filepath.Join(s.o.Dir, timelineFile)))
	}
	s.timeline.sequence += uint64(len(rows))
	return nil
}

func boolByte(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

const changeColumns = "sequence, time, cluster, kind, namespace, name, author, deleted, object"

// Timeline implements store.Store.
func (s *Store) Timeline(ctx context.Context, sight flow.Sight, since, until time.Time, yield func(flow.Change) bool) error {
	s.read.RLock()
	defer s.read.RUnlock()
	from := int64(0)
	if !since.IsZero() {
		from = since.UnixMilli()
	}
	query := `SELECT ` + changeColumns + ` FROM (
		SELECT * FROM (SELECT * FROM timeline.change WHERE time < $1 QUALIFY row_number() OVER
			(PARTITION BY cluster, kind, namespace, name ORDER BY time DESC, sequence DESC) = 1) WHERE deleted = 0
		UNION ALL SELECT * FROM timeline.change WHERE time >= $1 AND time <= $2) ORDER BY time, sequence`
	if err := s.changes(ctx, query, []any{from, until.UnixMilli()}, func(_ uint64, c flow.Change) bool { return !sight.Change(&c) || yield(c) }); err != nil {
		return fmt.Errorf("read timeline: %w", err)
	}
	return nil
}

func (s *Store) changes(ctx context.Context, query string, args []any, yield func(sequence uint64, c flow.Change) bool) error {
	rows, err := s.db.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var c flow.Change
		var sequence uint64
		var ms int64
		var deleted uint8
		if err := rows.Scan(&sequence, &ms, &c.Cluster, &c.Kind, &c.Namespace, &c.Name, &c.Author, &deleted, &c.Object); err != nil {
			return err
		}
		c.Time, c.Deleted = time.UnixMilli(ms), deleted != 0
		if len(c.Object) == 0 {
			c.Object = nil
		}
		if !yield(sequence, c) {
			return nil
		}
	}
	return rows.Err()
}

// pruneTimeline deletes what no moment since before needs.
func (s *Store) pruneTimeline(ctx context.Context, before time.Time) error {
	if _, err := s.db.ExecContext(ctx, `DELETE FROM timeline.change WHERE time < $1 AND sequence NOT IN (
		SELECT sequence FROM (SELECT sequence, deleted FROM timeline.change WHERE time < $1 QUALIFY row_number() OVER
			(PARTITION BY cluster, kind, namespace, name ORDER BY time DESC, sequence DESC) = 1) WHERE deleted = 0)`, before.UnixMilli()); err != nil {
		return fmt.Errorf("delete old changes: %w", err)
	}
	return nil
}
