package duckdb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

// sumsPrefix begins the names of the files with the sums of slices that take
// writes: what the flows of a key add up to that start in one minute. Questions
// about everything read these instead of the flows. The file goes when its
// slice is closed, which then has sums of whole hours; if it is lost it is made
// anew from the flows.
const sumsPrefix = "sums-"

const (
	minuteMS = 60_000
	hourMS   = 3_600_000
	// maxUnsummed is how many flows wait to be summed up. Those that wait are
	// read by every question; more often means more rows of sums.
	maxUnsummed = 1 << 21
)

type sums struct {
	name string // of the attached database
	path string
	upto uint64 // of the slice's flows, how many are in it or were tried last
}

// mark says which rows of a slice's tables its sums have: those before.
type mark struct{ flow, denied int64 }

// sumUp takes new flows into the sums of a slice when there are enough of
// them. Where that fails questions read the flows themselves.
func (s *Store) sumUp(ctx context.Context, sl *slice) {
	held := sl.held.Load().flows
	switch {
	case sl.sums == nil && held-sl.unsummed >= s.unsummed:
		s.openSums(ctx, sl)
	case sl.sums != nil && held-sl.sums.upto >= s.unsummed:
		if err := s.addSums(ctx, sl); err != nil && ctx.Err() == nil {
			s.o.Logger.Error("flows were not summed up, questions take longer", "file", sl.path, "error", errors.Join(err, s.dropSums(ctx, sl, false)))
			sl.unsummed = held
		}
	}
}

func (s *Store) addSums(ctx context.Context, sl *slice) error {
	sl.sums.upto = sl.held.Load().flows
	return s.writer.transaction(ctx, func() error {
		m, err := sl.sums.mark(ctx, s.writer.conn)
		if err != nil {
			return err
		}
		raw := sl.rawSums(fmt.Sprintf("rowid >= %d", m.flow), fmt.Sprintf("rowid >= %d", m.denied))
		_, err = s.writer.conn.ExecContext(ctx, fmt.Sprintf(`INSERT INTO %[1]s.minute %[2]s;
			INSERT INTO %[1]s.upto SELECT coalesce((SELECT max(rowid) + 1 FROM %[3]s.flow WHERE rowid >= %[4]d), %[4]d),
				coalesce((SELECT max(rowid) + 1 FROM %[3]s.denied WHERE rowid >= %[5]d), %[5]d)`,
			sl.sums.name, summed(raw, minuteMS), sl.name, m.flow, m.denied))
		return err
	})
}

// mark reads up to where the sums go, within the connection's transaction:
// that must read the slice only after it.
func (m *sums) mark(ctx context.Context, conn *sql.Conn) (upto mark, err error) {
	err = conn.QueryRowContext(ctx, fmt.Sprintf("SELECT coalesce(max(flow), 0), coalesce(max(denied), 0) FROM %s.upto", m.name)).Scan(&upto.flow, &upto.denied)
	if err != nil {
		return upto, fmt.Errorf("read sums: %w", err)
	}
	return upto, nil
}

// rawSums selects flows as sums of one flow each, by conditions on the two tables.
func (sl *slice) rawSums(flows, denied string) string {
	return fmt.Sprintf(rawSum, sl.name, "flow", flows) + " UNION ALL " + fmt.Sprintf(rawSum, sl.name, "denied", denied)
}

const rawSum = `SELECT key, start AS first, start + duration AS last, 1::UBIGINT AS flows, connections, bytes_sent AS sent, bytes_received AS received FROM %[1]s.%[2]s WHERE %[3]s`

// summed joins sums of a key that start in the same minute or hour. Flows that
// only go on, without a connection of their own, stay apart. What an agent
// counts may be nonsense, but its sum must have room.
func summed(from string, width int) string {
	return fmt.Sprintf(`SELECT key, min(first) AS first, max(last) AS last, sum(flows)::UBIGINT AS flows, %[1]s AS connections, %[2]s AS sent, %[3]s AS received
		FROM (%[4]s) GROUP BY key, first // %[5]d, connections = 0`, boundedSum("connections"), boundedSum("sent"), boundedSum("received"), from, width)
}

func boundedSum(column string) string {
	return fmt.Sprintf("least(sum(%s), 18446744073709551615)::UBIGINT", column)
}

// allSums selects what the flows of a slice add up to, in parts of minutes,
// hours or single flows; m is the mark of its sums, if it has any.
func (sl *slice) allSums(m mark) string {
	switch {
	case sl.summed:
		return "SELECT * FROM " + sl.name + ".hour"
	case sl.sums == nil:
		return sl.rawSums("true", "true")
	}
	return fmt.Sprintf("SELECT * FROM %s.minute UNION ALL ", sl.sums.name) + sl.rawSums(fmt.Sprintf("rowid >= %d", m.flow), fmt.Sprintf("rowid >= %d", m.denied))
}

// openSums opens or makes the sums of a slice that takes writes. Without them
// the store answers more slowly.
func (s *Store) openSums(ctx context.Context, sl *slice) {
	ms := strconv.FormatInt(sl.begin.UnixMilli(), 10)
	m := &sums{name: "sums_" + ms, path: filepath.Join(s.o.Dir, sumsPrefix+ms+fileSuffix)}
	err := s.attachSums(ctx, m, sl.held.Load().flows)
	if err != nil {
		if _, err = removeFile(m.path); err == nil {
			err = s.attachSums(ctx, m, sl.held.Load().flows)
		}
	}
	if err != nil {
		s.o.Logger.Error("flows are not summed up, questions take longer", "file", m.path, "error", err)
		sl.unsummed = sl.held.Load().flows
		return
	}
	s.read.Lock()
	sl.sums = m
	s.read.Unlock()
	s.sumUp(ctx, sl)
}

// attachSums opens sums of a slice that holds so many flows.
func (s *Store) attachSums(ctx context.Context, m *sums, flows uint64) error {
	if _, err := s.db.ExecContext(ctx, fmt.Sprintf("ATTACH %s AS %s", quote(m.path), m.name)); err != nil {
		return fmt.Errorf("open %s: %w", m.path, err)
	}
	_, err := sumsSteps.migrate(ctx, s.db, m.name)
	if err == nil {
		var last mark
		err = s.db.QueryRowContext(ctx, fmt.Sprintf(`SELECT (SELECT coalesce(sum(flows), 0)::UBIGINT FROM %[1]s.minute), coalesce(max(flow), 0), coalesce(max(denied), 0)
			FROM %[1]s.upto`, m.name)).Scan(&m.upto, &last.flow, &last.denied)
		if err == nil && (m.upto > flows || int64(m.upto) != last.flow+last.denied) {
			err = fmt.Errorf("sums of %d flows do not fit the slice's %d", m.upto, flows)
		}
	}
	if err != nil {
		_, detach := s.db.ExecContext(ctx, "DETACH "+m.name)
		return errors.Join(fmt.Errorf("open %s: %w", m.path, err), detach)
	}
	return nil
}

// closeSums gives a slice that takes no more flows its sums of hours.
func (s *Store) closeSums(ctx context.Context, sl *slice) error {
	if sl.summed || sl.held.Load().flows == 0 {
		return s.dropSums(ctx, sl, sl.summed)
	}
	err := s.writer.transaction(ctx, func() error {
		var m mark
		if sl.sums != nil {
			var err error
			if m, err = sl.sums.mark(ctx, s.writer.conn); err != nil {
				return err
			}
		}
		_, err := s.writer.conn.ExecContext(ctx, fmt.Sprintf("INSERT INTO %s.hour %s", sl.name, summed(sl.allSums(m), hourMS)))
		return err
	})
	if err != nil {
		return fmt.Errorf("sum up %s: %w", sl.path, err)
	}
	return s.dropSums(ctx, sl, true)
}

// dropSums deletes the file of sums of a slice that has those of hours.
func (s *Store) dropSums(ctx context.Context, sl *slice, summed bool) error {
	s.read.Lock() // waits for the questions that use them
	defer s.read.Unlock()
	sl.summed = summed
	m := sl.sums
	if m == nil {
		return nil
	}
	sl.sums = nil
	if _, err := s.db.ExecContext(ctx, "DETACH "+m.name); err != nil {
		return fmt.Errorf("close %s: %w", m.path, err)
	}
	_, err := removeFile(m.path)
	return err
}

// removeStraySums deletes the sums of slices that were closed when the store
// ended in between.
func (s *Store) removeStraySums() error {
	files, err := filepath.Glob(filepath.Join(s.o.Dir, sumsPrefix+"*"+fileSuffix))
	if err != nil {
		return fmt.Errorf("list sums: %w", err)
	}
	for _, path := range files {
		if m := s.last().sums; m != nil && m.path == path {
			continue
		}
		if _, err := removeFile(path); err != nil {
			return err
		}
	}
	return nil
}

// totals is what stands in a question for queries.Totals: the sums of all
// flows that start at a time or later, in Unix milliseconds. conn must be in a
// transaction, and the list of slices must not change.
func (s *Store) totals(ctx context.Context, conn *sql.Conn, since int64) (string, error) {
	var parts []string
	for _, sl := range s.holding() {
		held := sl.held.Load()
		if held.flows == 0 || held.end < since {
			continue
		}
		var m mark
		if sl.sums != nil {
			var err error
			if m, err = sl.sums.mark(ctx, conn); err != nil {
				return "", err
			}
		}
		parts = append(parts, sl.totals(m, since, held.start >= since)...)
	}
	if len(parts) == 0 {
		parts = []string{totalsOf(s.last().name, "SELECT * FROM "+s.last().name+".hour", "false")}
	}
	return "(" + strings.Join(parts, " UNION ALL ") + ")", nil
}

// totals are the parts of a slice: its sums, and the flows that are in none,
// or in one that begins before since. whole says that none starts before.
func (sl *slice) totals(m mark, since int64, whole bool) []string {
	cells, width := "", int64(1)
	switch {
	case sl.summed:
		cells, width = sl.name+".hour", hourMS
	case sl.sums != nil:
		cells, width = sl.sums.name+".minute", minuteMS
	}
	from := since
	if whole {
		from = 0
	}
	full := (from + width - 1) / width * width // where the first sum begins that is needed as it is
	var parts []string
	if cells != "" {
		parts = append(parts, totalsOf(sl.name, fmt.Sprintf("SELECT * FROM %s WHERE first >= %d", cells, full), "true"))
	}
	for _, t := range []struct {
		name    string
		after   int64
		verdict string
	}{{"flow", m.flow, "k.verdict <> 2"}, {"denied", m.denied, "k.verdict = 2"}} {
		if !sl.summed {
			parts = append(parts, totalsOf(sl.name, fmt.Sprintf(rawSum, sl.name, t.name, fmt.Sprintf("rowid >= %d AND start >= %d", t.after, from)), t.verdict))
		}
		if cells != "" && full > from {
			condition := fmt.Sprintf("start >= %d AND start < %d", from, full)
			if !sl.summed {
				condition += fmt.Sprintf(" AND rowid < %d", t.after)
			}
			parts = append(parts, totalsOf(sl.name, fmt.Sprintf(rawSum, sl.name, t.name, condition), t.verdict))
		}
	}
	return parts
}
