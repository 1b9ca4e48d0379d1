package duckdb

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/flowaudit/flowaudit/collector/store/columns"
	"github.com/flowaudit/flowaudit/flow"
)

// edgePrefix begins the names of the files that hold edges, one a month: the
// flows of a slice become edges when the slice is closed, and outlive it.
const edgePrefix = "edges-"

// month is a file of edges.
type month struct {
	name  string // of the attached database
	path  string
	begin time.Time
	ids   map[flow.EdgeKey]uint32
	done  map[string]bool // slices whose edges are here
}

func monthOf(t time.Time) time.Time {
	t = t.UTC()
	return time.Date(t.Year(), t.Month(), 1, 0, 0, 0, 0, time.UTC)
}

// openMonths attaches the files of edges, and makes the edges of slices that
// were closed without them.
func (s *Store) openMonths(ctx context.Context) error {
	s.months = make(map[time.Time]*month)
	files, err := filepath.Glob(filepath.Join(s.o.Dir, edgePrefix+"*"+fileSuffix))
	if err != nil {
		return fmt.Errorf("list files of edges: %w", err)
	}
	for _, path := range files {
		begin, err := time.Parse("200601", strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), edgePrefix), fileSuffix))
		if err != nil {
			s.o.Logger.Warn("a file that is none of the store's was left alone", "file", path)
			continue
		}
		if _, err := s.openMonth(ctx, begin); errors.Is(err, errNewer) {
			return err
		} else if err != nil {
			s.o.Logger.Error("a month's edges cannot be read, they are missing from answers", "file", path, "error", err)
		}
	}
	for _, sl := range s.slices[:len(s.slices)-1] {
		if err := s.closeSlice(ctx, sl); err != nil {
			return err
		}
	}
	return nil
}

// openMonth opens or makes a month's file.
func (s *Store) openMonth(ctx context.Context, begin time.Time) (*month, error) {
	if m := s.months[begin]; m != nil {
		return m, nil
	}
	text := begin.Format("200601")
	m := &month{
		name: "edges_" + text, path: filepath.Join(s.o.Dir, edgePrefix+text+fileSuffix), begin: begin,
		ids: make(map[flow.EdgeKey]uint32), done: make(map[string]bool),
	}
	if _, err := s.db.ExecContext(ctx, fmt.Sprintf("ATTACH %s AS %s", quote(m.path), m.name)); err != nil {
		return nil, fmt.Errorf("open %s: %w", m.path, err)
	}
	if err := m.load(ctx, s.db); err != nil {
		_, detach := s.db.ExecContext(ctx, "DETACH "+m.name)
		return nil, errors.Join(fmt.Errorf("open %s: %w", m.path, err), detach)
	}
	s.read.Lock()
	defer s.read.Unlock()
	s.months[begin] = m
	return m, nil
}

func (m *month) load(ctx context.Context, db *sql.DB) error {
	if _, err := monthSteps.migrate(ctx, db, m.name); err != nil {
		return err
	}
	if _, err := db.ExecContext(ctx, "SELECT src_ip, dst_ip FROM "+m.name+".edge LIMIT 0"); err != nil {
		return fmt.Errorf("read edges that another version of flowaudit made: %w", err)
	}
	rows, err := db.QueryContext(ctx, "SELECT slice FROM "+m.name+".source")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var slice string
		if err := rows.Scan(&slice); err != nil {
			return err
		}
		m.done[slice] = true
	}
	if err := rows.Err(); err != nil {
		return err
	}
	return scanEdges(ctx, db, "SELECT "+edgeColumns+" FROM "+m.name+".edge e ORDER BY id", nil, func(id uint32, e *flow.Edge) error {
		m.ids[e.EdgeKey] = id
		return nil
	})
}

const edgeColumns = `e.id, e.cluster, e.protocol, e.port, e.direction, e.verdict, e.expected, e.assessment, e.caveat, e.exempt, e.seen,
	e.src_kind, e.src_identity, e.src_namespace, e.src_workload_kind, e.src_workload, e.src_node, e.src_addr, e.src_bits, e.src_labels,
	e.dst_kind, e.dst_identity, e.dst_namespace, e.dst_workload_kind, e.dst_workload, e.dst_node, e.dst_addr, e.dst_bits, e.dst_labels`

// edgeEndColumns are an end as it is scanned.
type edgeEndColumns struct {
	addr   []byte
	bits   int
	labels string
}

func (c *edgeEndColumns) targets(e *flow.EdgeEnd) []any {
	return []any{&e.Kind, &e.Identity, &e.Namespace, &e.Workload.Kind, &e.Workload.Name, &e.Node, &c.addr, &c.bits, &c.labels}
}

func (c *edgeEndColumns) prefix() netip.Prefix {
	if a := columns.AddrOf(c.addr); a.IsValid() {
		return netip.PrefixFrom(a, c.bits)
	}
	return netip.Prefix{}
}

// scanEdges reads edges; more are the targets of columns after edgeColumns.
func scanEdges(ctx context.Context, db *sql.DB, query string, args []any, each func(id uint32, e *flow.Edge) error, more ...any) error {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var id uint32
		var seen []byte
		var src, dst edgeEndColumns
		e := &flow.Edge{}
		targets := []any{&id, &e.Cluster, &e.Protocol, &e.Port, &e.Direction, &e.Verdict, &e.Expected, &e.Assessment, &e.Caveat, &e.Exempt, &seen}
		targets = append(append(append(targets, src.targets(&e.Source)...), dst.targets(&e.Destination)...), more...)
		if err := rows.Scan(targets...); err != nil {
			return err
		}
		e.Seen, e.Source.Prefix, e.Destination.Prefix = columns.AddrOf(seen), src.prefix(), dst.prefix()
		e.SourceLabels, e.DestinationLabels = columns.LabelsOf(src.labels), columns.LabelsOf(dst.labels)
		if err := each(id, e); err != nil {
			return err
		}
	}
	return rows.Err()
}

// edgesOf makes the edges of a slice, by hour; n are the slice's names.
func (s *Store) edgesOf(ctx context.Context, sl *slice, n *names) (map[time.Time][]*flow.Edge, error) {
	if len(n.keys[0]) == 0 { // nearly all are needed, and by one query they come sooner
		if err := n.read(ctx, 0, "true"); err != nil {
			return nil, fmt.Errorf("read keys of %s: %w", sl.path, err)
		}
	}
	conn, end, err := s.reading(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	var m mark
	if sl.sums != nil {
		if m, err = sl.sums.mark(ctx, conn); err != nil {
			return nil, err
		}
	}
	rows, err := conn.QueryContext(ctx, fmt.Sprintf(`SELECT f.* FROM (SELECT hour, key, min(first), max(last), %[3]s, %[4]s, %[5]s
		FROM (SELECT first // %[6]d AS hour, * FROM (%[2]s)) GROUP BY hour, key) f JOIN %[1]s.key k ON f.key = k.id ORDER BY f.hour, k.pair, f.key`,
		sl.name, sl.allSums(m), boundedSum("connections"), boundedSum("sent"), boundedSum("received"), hourMS))
	if err != nil {
		return nil, fmt.Errorf("read flows of %s: %w", sl.path, err)
	}
	defer rows.Close()
	sums := hourSums{names: n, edges: make(map[time.Time][]*flow.Edge), builder: flow.NewEdgeBuilder()}
	block := make([]hourSum, 0, rowBlock)
	for more := true; more; {
		block = block[:0]
		for len(block) < rowBlock {
			if more = rows.Next(); !more {
				break
			}
			var h hourSum
			if err := rows.Scan(&h.hour, &h.key, &h.first, &h.last, &h.connections, &h.sent, &h.received); err != nil {
				return nil, fmt.Errorf("read flows of %s: %w", sl.path, err)
			}
			block = append(block, h)
		}
		if err := sums.add(ctx, block); err != nil {
			return nil, err
		}
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read flows of %s: %w", sl.path, err)
	}
	sums.endHour()
	return sums.edges, nil
}

// hourSum is what a slice's flows of one key add up to in an hour.
type hourSum struct {
	hour, first, last           int64
	key                         uint32
	connections, sent, received uint64
}

// hourSums turns sums, ordered by hour and pair, into edges.
type hourSums struct {
	names   *names
	builder *flow.EdgeBuilder
	edges   map[time.Time][]*flow.Edge
	pair    []flow.Flow // of the pair that is being read
	hour    int64
}

func (h *hourSums) add(ctx context.Context, block []hourSum) error {
	rows := make([]row, len(block))
	for i := range block {
		rows[i].key = block[i].key
	}
	if err := h.names.learn(ctx, rows); err != nil {
		return err
	}
	for i := range block {
		r := &block[i]
		f := *h.names.keys[0][r.key]
		f.Start, f.End, f.Connections = time.UnixMilli(r.first), time.UnixMilli(r.last), r.connections
		f.Sent.Bytes, f.Received.Bytes = r.sent, r.received
		if len(h.pair) > 0 && (r.hour != h.hour || f.Pair() != h.pair[0].Pair()) {
			h.endPair()
		}
		if r.hour != h.hour {
			h.endHour()
			h.hour = r.hour
		}
		h.pair = append(h.pair, f)
	}
	return nil
}

func (h *hourSums) endPair() {
	h.builder.Add(h.pair)
	h.pair = h.pair[:0]
}

func (h *hourSums) endHour() {
	if len(h.pair) > 0 {
		h.endPair()
	}
	if edges := h.builder.Edges(); len(edges) > 0 {
		h.edges[time.UnixMilli(h.hour*int64(flow.EdgeHour/time.Millisecond)).UTC()] = edges
	}
}

// closeEdges stores the edges of a slice that takes no more flows. The file of
// the month in which the slice began comes last: with it, all is done.
func (s *Store) closeEdges(ctx context.Context, sl *slice) error {
	own, err := s.openMonth(ctx, monthOf(sl.begin))
	if err != nil {
		return err
	}
	if own.done[sl.name] {
		return nil
	}
	edges, err := s.edgesOf(ctx, sl, newNames(s.db, []*slice{sl}))
	if err != nil {
		return err
	}
	byMonth := map[time.Time][]time.Time{own.begin: nil}
	for hour := range edges {
		byMonth[monthOf(hour)] = append(byMonth[monthOf(hour)], hour)
	}
	for begin, hours := range byMonth {
		if begin.Equal(own.begin) {
			continue
		}
		m, err := s.openMonth(ctx, begin)
		if err == nil {
			err = s.writeEdges(ctx, m, sl, hours, edges)
		}
		if err != nil {
			return err
		}
	}
	return s.writeEdges(ctx, own, sl, byMonth[own.begin], edges)
}

// writeEdges adds a slice's edges to a month in one transaction.
func (s *Store) writeEdges(ctx context.Context, m *month, sl *slice, hours []time.Time, edges map[time.Time][]*flow.Edge) (err error) {
	if m.done[sl.name] {
		return nil
	}
	var ends, counts [][]driver.Value
	var fresh []flow.EdgeKey
	for _, hour := range hours {
		for _, e := range edges[hour] {
			id, known := m.ids[e.EdgeKey]
			if !known {
				id = uint32(len(m.ids))
				m.ids[e.EdgeKey] = id
				fresh = append(fresh, e.EdgeKey)
				ends = append(ends, edgeRow(id, e))
			}
			counts = append(counts, hourRow(id, hour, e))
		}
	}
	defer func() {
		if err != nil {
			for _, k := range fresh {
				delete(m.ids, k)
			}
		}
	}()
	err = s.writer.transaction(ctx, func() error {
		for _, t := range []struct {
			name string
			rows [][]driver.Value
		}{{"edge", ends}, {"hour", counts}, {"source", [][]driver.Value{{sl.name}}}} {
			if err := s.writer.insertRows(m.name, t.name, t.rows); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return errors.Join(fmt.Errorf("store edges of %s: %w", sl.path, err), s.revive(ctx, err, m.name, m.path))
	}
	s.read.Lock()
	defer s.read.Unlock()
	m.done[sl.name] = true
	return nil
}

func hourRow(id uint32, hour time.Time, e *flow.Edge) []driver.Value {
	return []driver.Value{id, uint32(hourNumber(hour)), e.First.UnixMilli(), e.Last.UnixMilli(), e.Connections, e.Sent, e.Received}
}

func edgeRow(id uint32, e *flow.Edge) []driver.Value {
	row := []driver.Value{
		id, e.Cluster, uint8(e.Protocol), e.Port, uint8(e.Direction), uint8(e.Verdict), uint8(e.Expected), uint8(e.Assessment), uint8(e.Caveat), uint8(e.Exempt), columns.AddrBytes(e.Seen),
	}
	for _, end := range []struct {
		flow.EdgeEnd
		labels map[string]string
	}{{e.Source, e.SourceLabels}, {e.Destination, e.DestinationLabels}} {
		row = append(row, uint8(end.Kind), end.Identity, end.Namespace, end.Workload.Kind, end.Workload.Name, end.Node,
			columns.AddrBytes(end.Prefix.Addr()), uint8(max(0, end.Prefix.Bits())), columns.LabelText(end.labels), columns.PrefixText(end.Prefix))
	}
	return row
}

// RetainEdges implements store.Store.
func (s *Store) RetainEdges(ctx context.Context, before time.Time) (freed int64, err error) {
	s.write.Lock()
	defer s.write.Unlock()
	s.read.Lock()
	defer s.read.Unlock()
	for begin, m := range s.months {
		if begin.AddDate(0, 1, 0).After(before) {
			continue
		}
		delete(s.months, begin)
		if _, err := s.db.ExecContext(ctx, "DETACH "+m.name); err != nil {
			return freed, fmt.Errorf("close %s: %w", m.path, err)
		}
		n, err := removeFile(m.path)
		freed += n
		if err != nil {
			return freed, err
		}
	}
	return freed, nil
}

// removeFile deletes a database file and its log, and says what that freed.
func removeFile(path string) (freed int64, err error) {
	for _, p := range []string{path, path + ".wal"} {
		info, err := os.Stat(p)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			err = os.Remove(p)
		}
		if err != nil {
			return freed, fmt.Errorf("delete file of the store: %w", err)
		}
		freed += info.Size()
	}
	return freed, nil
}
