package duckdb

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/collector/store/columns"
	"github.com/flowaudit/flowaudit/flow"
)

// mergeSlack is how far apart two nodes' reports of one connection may start:
// a window of ten seconds, and what clocks differ by.
const mergeSlack = 15 * time.Second

// Flows implements store.Store.
func (s *Store) Flows(ctx context.Context, req store.FlowsRequest, yield func(flow.Flow) bool) error {
	s.read.RLock()
	defer s.read.RUnlock()
	switch {
	case req.Last > s.inMemory:
		return s.manyLastFlows(ctx, req, yield)
	case req.Last > 0:
		return s.lastFlows(ctx, &req, yield)
	}
	given := 0
	return s.scan(ctx, &req, "start", 0, func(f flow.Flow) bool {
		given++
		return yield(f) && given != req.First
	})
}

// lastFlows gives the newest n. Reports of several nodes merge, so that more
// rows than flows are read; where that was not enough, more are.
func (s *Store) lastFlows(ctx context.Context, req *store.FlowsRequest, yield func(flow.Flow) bool) error {
	n := req.Last
	for limit := 2*n + 64; ; limit *= 4 {
		var all []flow.Flow
		rows := 0
		err := s.scanRows(ctx, req, "start DESC", limit, func(r flow.Flow) bool { all = append(all, r); rows++; return true })
		if err != nil {
			return err
		}
		more := rows == limit
		all = req.SeeAll(complete(req, all, more))
		if len(all) < n && more {
			continue
		}
		for _, r := range all[max(0, len(all)-n):] {
			if !yield(r) {
				break
			}
		}
		return nil
	}
}

// maxInMemory is how many of the newest flows are held at once.
const maxInMemory = 10_000

// manyLastFlows gives the newest n without holding them: it finds when they
// begin, counts the flows from there on, and then leaves out those too many.
func (s *Store) manyLastFlows(ctx context.Context, req store.FlowsRequest, yield func(flow.Flow) bool) error {
	f, n := &req.Filter, req.Last
	given := f.Since
	for limit := 2*n + 64; ; limit *= 4 {
		query, args, _ := s.rowsQuery(&req, "start DESC", limit)
		if query == "" {
			return nil
		}
		var rows, from int64
		if err := s.db.QueryRowContext(ctx, "SELECT count(*), coalesce(min(start), 0) FROM ("+query+")", args...).Scan(&rows, &from); err != nil {
			return fmt.Errorf("read flows: %w", err)
		}
		all := rows < int64(limit)
		if !all {
			// Each flow whose reports are complete begins mergeSlack later.
			f.Since = time.UnixMilli(from).Add(mergeSlack)
		}
		total := 0
		late := func(r *flow.Flow) bool { return all || !r.Start.Before(f.Since) }
		err := s.scan(ctx, &req, "start", 0, func(r flow.Flow) bool {
			if late(&r) {
				total++
			}
			return true
		})
		if err != nil {
			return err
		}
		if total < n && !all {
			f.Since = given
			continue
		}
		skip, left := max(0, total-n), n
		return s.scan(ctx, &req, "start", 0, func(r flow.Flow) bool {
			switch {
			case !late(&r):
				return true
			case skip > 0:
				skip--
				return true
			}
			left--
			return yield(r) && left > 0
		})
	}
}

// complete merges the newest reports. Where there are older ones, a reader who
// does not see everything is shown those flows only of which none is missing:
// where the reports end follows from flows that do not show.
func complete(req *store.FlowsRequest, reports []flow.Flow, more bool) []flow.Flow {
	var whole time.Time
	if n := len(reports); more && n > 0 && !req.Sight.All() {
		whole = reports[n-1].Start.Add(mergeSlack)
	}
	return slices.DeleteFunc(flow.Merge(reports, mergeSlack), func(f flow.Flow) bool { return f.Start.Before(whole) })
}

// scan gives merged flows in order of their start, as they show.
func (s *Store) scan(ctx context.Context, req *store.FlowsRequest, order string, limit int, yield func(flow.Flow) bool) error {
	m := flow.NewMerger(mergeSlack, func(r flow.Flow) bool {
		shown, ok := req.See(r)
		return !ok || yield(shown)
	})
	err := s.scanRows(ctx, req, order, limit, m.Add)
	if err == nil {
		m.Close()
	}
	return err
}

// scanRows gives reports as they are stored, those of partner nodes too.
func (s *Store) scanRows(ctx context.Context, req *store.FlowsRequest, order string, limit int, yield func(flow.Flow) bool) error {
	query, args, used := s.rowsQuery(req, order, limit)
	if query == "" {
		return nil
	}
	rows, err := s.db.QueryContext(ctx, query, args...)
	if err != nil {
		return fmt.Errorf("read flows: %w", err)
	}
	defer rows.Close()
	names := newNames(s.db, used)
	block := make([]row, 0, rowBlock)
	for more := true; more; {
		block = block[:0]
		for len(block) < rowBlock {
			if more = rows.Next(); !more {
				break
			}
			var r row
			if err := r.scan(rows); err != nil {
				return fmt.Errorf("read flows: %w", err)
			}
			block = append(block, r)
		}
		if err := names.learn(ctx, block); err != nil {
			return err
		}
		for i := range block {
			if !yield(names.flow(&block[i])) {
				return nil
			}
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read flows: %w", err)
	}
	return nil
}

// rowsQuery selects rows of all slices that may hold what is wanted.
func (s *Store) rowsQuery(req *store.FlowsRequest, order string, limit int) (query string, args []any, used []*slice) {
	f := &req.Filter
	var parts []string
	for _, sl := range s.holding() {
		held := sl.held.Load()
		if held.flows == 0 || !f.Since.IsZero() && held.end < f.Since.Add(-mergeSlack).UnixMilli() ||
			!f.Until.IsZero() && held.start > f.Until.Add(mergeSlack).UnixMilli() {
			continue
		}
		for _, table := range []string{"flow", "denied"} {
			part, partArgs := sl.rowsQuery(req, table, len(used))
			if limit > 0 {
				part = fmt.Sprintf("(%s ORDER BY %s LIMIT %d)", part, order, limit)
			}
			parts, args = append(parts, part), append(args, partArgs...)
		}
		used = append(used, sl)
	}
	if len(parts) == 0 {
		return "", nil, nil
	}
	query = "SELECT * FROM (" + strings.Join(parts, " UNION ALL ") + ") ORDER BY " + order
	if limit > 0 {
		query += fmt.Sprintf(" LIMIT %d", limit)
	}
	return query, args, used
}

const rowColumns = "key, start, duration, source_port, connections, counted, tcp_flags, packets_sent, bytes_sent, packets_received, bytes_received"

func dialect() *columns.Dialect {
	return &columns.Dialect{
		HasPrefix: "starts_with(%s, ?)", Contains: "contains(%s, ?)", HasAddr: "octet_length(%s) > 0", Addr: "?", Verdict: "k.verdict", SourceEnd: "s.", DestinationEnd: "d.",
	}
}

// rowsQuery selects rows of a slice's table whose key, or whose key's partner
// on another node, passes the filter.
func (sl *slice) rowsQuery(req *store.FlowsRequest, table string, number int) (query string, args []any) {
	f := &req.Filter
	query = fmt.Sprintf("SELECT %d AS slice, %s FROM %s.%s WHERE true", number, rowColumns, sl.name, table)
	if condition, bound := dialect().Condition(req.Sight, f); condition != "" {
		own := "<>"
		if table == "denied" {
			own = "="
		}
		query += fmt.Sprintf(" AND key IN (SELECT id FROM %s.key WHERE verdict %s %d AND id IN (%s))", sl.name, own, flow.VerdictDenied, sl.matchedKeys(condition))
		args = append(args, bound...)
	}
	if !f.Since.IsZero() {
		query += " AND start + duration >= ?"
		args = append(args, f.Since.Add(-mergeSlack).UnixMilli())
	}
	if !f.Until.IsZero() {
		query += " AND start <= ?"
		args = append(args, f.Until.Add(mergeSlack).UnixMilli())
	}
	return query, args
}

// matchedKeys selects the keys that meet a condition, and those that other
// nodes report of the same pairs.
func (sl *slice) matchedKeys(condition string) string {
	return fmt.Sprintf(`WITH m AS (SELECT k.id, k.pair FROM %[1]s.key k JOIN %[1]s.endpoint s ON k.src = s.id JOIN %[1]s.endpoint d ON k.dst = d.id WHERE true%[2]s)
		SELECT id FROM m UNION SELECT k.id FROM %[1]s.key k WHERE k.pair IN (SELECT pair FROM m) AND k.pair IN
		(SELECT pair FROM %[1]s.key GROUP BY pair HAVING count(DISTINCT node) > 1)`, sl.name, condition)
}

// Count implements store.Store.
func (s *Store) Count(ctx context.Context, sight flow.Sight, f flow.Filter) (flows, connections uint64, err error) {
	s.read.RLock()
	defer s.read.RUnlock()
	err = s.scan(ctx, &store.FlowsRequest{Sight: sight, Filter: f}, "start", 0, func(r flow.Flow) bool {
		flows++
		connections += r.Connections
		return true
	})
	return flows, connections, err
}

// rowBlock is how many rows are named at once.
const rowBlock = 2048

// row is a flow as it is stored.
type row struct {
	slice       int
	key         uint32
	start       int64
	duration    uint32
	sourcePort  uint16
	connections uint64
	counted     uint8
	tcpFlags    uint8
	counters    [4]uint64
}

func (r *row) scan(rows *sql.Rows) error {
	return rows.Scan(&r.slice, &r.key, &r.start, &r.duration, &r.sourcePort, &r.connections, &r.counted, &r.tcpFlags,
		&r.counters[0], &r.counters[1], &r.counters[2], &r.counters[3])
}

// names knows what keys of slices stand for, as far as an answer needs them.
type names struct {
	db     *sql.DB
	slices []*slice
	keys   []map[uint32]*flow.Flow // by slice: a flow without what a row says
}

func newNames(db *sql.DB, used []*slice) *names {
	n := &names{db: db, slices: used, keys: make([]map[uint32]*flow.Flow, len(used))}
	for i := range n.keys {
		n.keys[i] = make(map[uint32]*flow.Flow)
	}
	return n
}

// learn reads the keys of a block of rows that are not known yet.
func (n *names) learn(ctx context.Context, block []row) error {
	missing := make([][]string, len(n.slices))
	for i := range block {
		r := &block[i]
		if _, ok := n.keys[r.slice][r.key]; !ok {
			n.keys[r.slice][r.key] = nil
			missing[r.slice] = append(missing[r.slice], fmt.Sprint(r.key))
		}
	}
	for i, ids := range missing {
		if len(ids) == 0 {
			continue
		}
		if err := n.read(ctx, i, "k.id IN ("+strings.Join(ids, ",")+")"); err != nil {
			return fmt.Errorf("read keys of %s: %w", n.slices[i].path, err)
		}
	}
	return nil
}

func (n *names) read(ctx context.Context, i int, condition string) error {
	end := func(a string) string {
		return strings.ReplaceAll("?.addr, ?.kind, ?.namespace, ?.pod, ?.workload_kind, ?.workload, ?.node, ?.identity, ?.labels, ?.candidates", "?", a)
	}
	rows, err := n.db.QueryContext(ctx, fmt.Sprintf(`SELECT k.id, k.cluster, k.node, k.protocol, k.port, k.verdict, k.direction, k.reason, k.expected,
		k.assessment, k.caveat, k.sources, k.translated, k.service_addr, k.service_port, k.service_namespace, k.service, k.policies, %[2]s, %[3]s
		FROM %[1]s.key k JOIN %[1]s.endpoint s ON k.src = s.id JOIN %[1]s.endpoint d ON k.dst = d.id WHERE %[4]s`,
		n.slices[i].name, end("s"), end("d"), condition))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var id uint32
		f, err := scanKey(rows, &id)
		if err != nil {
			return err
		}
		n.keys[i][id] = f
	}
	return rows.Err()
}

// endColumns are an endpoint's columns as they are scanned.
type endColumns struct {
	addr               []byte
	labels, candidates string
	e                  flow.Endpoint
}

func (c *endColumns) targets() []any {
	return []any{&c.addr, &c.e.Kind, &c.e.Namespace, &c.e.Pod, &c.e.Workload.Kind, &c.e.Workload.Name, &c.e.Node, &c.e.Identity, &c.labels, &c.candidates}
}

// endpoint is nil where nothing but the address is known.
func (c *endColumns) endpoint() *flow.Endpoint {
	c.e.Labels = columns.LabelsOf(c.labels)
	if c.candidates != "" {
		c.e.Candidates = strings.Split(c.candidates, ",")
	}
	if c.e.Kind == flow.EndpointUnknown && c.e.Namespace == "" && c.e.Pod == "" && c.e.Node == "" {
		return nil
	}
	return &c.e
}

func scanKey(rows *sql.Rows, id *uint32) (*flow.Flow, error) {
	f := &flow.Flow{}
	var translated, serviceAddr []byte
	var service flow.Service
	var policies string
	var src, dst endColumns
	targets := []any{
		id, &f.Cluster, &f.Node, &f.Protocol, &f.Port, &f.Verdict, &f.Direction, &f.Reason, &f.Expected,
		&f.Assessment, &f.Caveat, &f.Sources, &translated, &serviceAddr, &service.Port, &service.Namespace, &service.Name, &policies,
	}
	if err := rows.Scan(append(append(targets, src.targets()...), dst.targets()...)...); err != nil {
		return nil, err
	}
	f.Src, f.Dst, f.TranslatedSrc = columns.AddrOf(src.addr), columns.AddrOf(dst.addr), columns.AddrOf(translated)
	f.Source, f.Destination = src.endpoint(), dst.endpoint()
	if service.Addr = columns.AddrOf(serviceAddr); service.Addr.IsValid() || service.Name != "" {
		f.Service = &service
	}
	f.Policies = columns.PoliciesOf(policies)
	return f, nil
}

// flow puts a row and its key together.
func (n *names) flow(r *row) flow.Flow {
	f := *n.keys[r.slice][r.key]
	f.Start, f.End = time.UnixMilli(r.start), time.UnixMilli(r.start+int64(r.duration))
	f.SourcePort, f.Connections, f.Counted, f.TCPFlags = r.sourcePort, r.connections, r.counted != 0, r.tcpFlags
	f.Sent = flow.Counters{Packets: r.counters[0], Bytes: r.counters[1]}
	f.Received = flow.Counters{Packets: r.counters[2], Bytes: r.counters[3]}
	return f
}
