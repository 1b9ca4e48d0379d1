package clickhouse

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/collector/store/columns"
	"github.com/flowaudit/flowaudit/flow"
)

// Edges are sums of an hour's flows, by the slice in which these arrived. Who
// asks for edges sums up the hours that got flows since the last sum: each time
// as a whole and under a new version, of which the newest counts. So sums stay
// exact whatever was written twice, and whoever sums up at the same time. What
// is summed up outlives the flows: a slice is frozen before it is dropped.

// versionBits of a version are random, so that no two sums have the same one.
const versionBits = 22

func newVersion() uint64 {
	return uint64(time.Now().UnixMilli())<<versionBits | uint64(rand.Uint32N(1<<versionBits))
}

// skew is what collectors' clocks may differ by: hours that got flows shortly
// before they were summed up are summed up again.
const skew = 60_000 << versionBits

func hourOf(t time.Time) uint32 { return uint32(max(0, t.Unix()) / int64(flow.EdgeHour/time.Second)) }

// monthOf is the partition of an hour, such as 202611.
func monthOf(hour uint32) uint32 {
	t := time.Unix(int64(hour)*3600, 0).UTC()
	return uint32(t.Year()*100 + int(t.Month()))
}

// touch notes that hours got flows.
func (s *Store) touch(ctx context.Context, parts []part) error {
	b := s.newInsert("touched", "month, slot, hour, version")
	version := newVersion()
	for _, p := range parts {
		b.row(monthOf(p.hour), p.slot, p.hour, version)
	}
	return b.send(ctx)
}

// touchAgain is how long a touch stands for what follows. It is well below skew,
// within which a sum is made again.
const touchAgain = 20 * time.Second

// touchSometimes touches the parts that this collector has not touched just now.
func (s *Store) touchSometimes(ctx context.Context, parts []part) error {
	now := time.Now()
	var due []part
	for _, p := range parts {
		if last, ok := s.touched[p]; !ok || now.Sub(last) > touchAgain {
			due = append(due, p)
		}
	}
	if err := s.touch(ctx, due); err != nil {
		return err
	}
	for p, last := range s.touched {
		if now.Sub(last) > touchAgain {
			delete(s.touched, p)
		}
	}
	for _, p := range due {
		s.touched[p] = now
	}
	return nil
}

// part is an hour of a slice.
type part struct{ slot, hour uint32 }

const (
	// cheapSum is what summing up may cost each question that reads edges.
	cheapSum = 100 * time.Millisecond
	// restFactor bounds the share of the time that goes into dearer sums.
	restFactor = 5
)

// sumUp sums up the hours that got flows. Where that is dear, the newest edges
// may be a little old.
func (s *Store) sumUp(ctx context.Context) error {
	s.edges.Lock()
	defer s.edges.Unlock()
	if !s.eager && s.sumCost > cheapSum && time.Since(s.summed) < restFactor*s.sumCost {
		return nil
	}
	began := time.Now()
	if err := s.sumParts(ctx, "slot NOT IN (SELECT slot FROM frozen)"); err != nil {
		return fmt.Errorf("sum up edges: %w", err)
	}
	s.summed, s.sumCost = time.Now(), time.Since(began)
	return nil
}

// sumParts sums up the parts that meet a condition and got flows.
func (s *Store) sumParts(ctx context.Context, condition string) error {
	parts, err := s.readParts(ctx, s.global(fmt.Sprintf(`SELECT slot, hour FROM (SELECT slot, hour, max(version) AS touch FROM touched WHERE %s GROUP BY slot, hour) AS t
		ANY LEFT JOIN (SELECT slot, hour, max(version) AS last_sum FROM summed GROUP BY slot, hour) AS s USING (slot, hour) WHERE touch + %d > last_sum ORDER BY slot, hour`, condition, uint64(skew))))
	if err != nil {
		return err
	}
	for _, p := range parts {
		if err := s.sumPart(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// readParts reads the slots and hours of an answer.
func (s *Store) readParts(ctx context.Context, query string) ([]part, error) {
	rows, err := s.conn.Query(ctx, query)
	if err != nil {
		return nil, err
	}
	var parts []part
	for rows.Next() {
		var p part
		if err := rows.Scan(&p.slot, &p.hour); err != nil {
			return nil, err
		}
		parts = append(parts, p)
	}
	return parts, closing(rows)
}

// sumPart sums up an hour of a slice anew.
func (s *Store) sumPart(ctx context.Context, p part) error {
	version := newVersion() // before reading: what comes later is not in it
	edges, err := s.edgesOf(ctx, p)
	if err != nil {
		return err
	}
	b := s.newInsert("edge", strings.Replace(edgeColumns, "hour,", "month, slot, hour, version,", 1))
	for _, e := range edges {
		b.row(edgeRow(p, version, e)...)
	}
	if err := b.send(ctx); err != nil {
		return err
	}
	done := s.newInsert("summed", "month, slot, hour, version")
	done.row(monthOf(p.hour), p.slot, p.hour, version)
	return done.send(ctx)
}

// edgesOf makes the edges of an hour of a slice.
func (s *Store) edgesOf(ctx context.Context, p part) ([]*flow.Edge, error) {
	const hourMs = int64(flow.EdgeHour / time.Millisecond)
	rows, err := s.conn.Query(ctx, s.global(fmt.Sprintf(`SELECT key, pair, first, last, seen, sent, received FROM (
		SELECT key, min(start) AS first, max(start + duration) AS last, sum(connections) AS seen, sum(bytes_sent) AS sent, sum(bytes_received) AS received
		FROM flow WHERE slot = %d AND start >= %d AND start < %d AND copy NOT IN (SELECT copy FROM excluded) GROUP BY key
		) AS f ANY LEFT JOIN (SELECT id AS key, pair FROM key WHERE slot = %[1]d) AS k USING key ORDER BY pair, key`,
		p.slot, int64(p.hour)*hourMs, (int64(p.hour)+1)*hourMs)))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	sums := pairSums{names: newNames(s), builder: flow.NewEdgeBuilder()}
	block := make([]keySum, 0, rowBlock)
	for more := true; more; {
		block = block[:0]
		for len(block) < rowBlock {
			if more = rows.Next(); !more {
				break
			}
			var k keySum
			if err := rows.Scan(&k.key, &k.pair, &k.first, &k.last, &k.connections, &k.sent, &k.received); err != nil {
				return nil, err
			}
			block = append(block, k)
		}
		if err := sums.add(ctx, block); err != nil {
			return nil, err
		}
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	sums.endPair()
	return sums.builder.Edges(), nil
}

// keySum is what flows of one key add up to.
type keySum struct {
	key, pair                   uint64
	first, last                 int64
	connections, sent, received uint64
}

// pairSums turns sums, ordered by pair, into edges.
type pairSums struct {
	names   *names
	builder *flow.EdgeBuilder
	pair    uint64
	reports []flow.Flow // of the pair that is being read
}

func (p *pairSums) add(ctx context.Context, block []keySum) error {
	keys := make([]row, len(block))
	for i := range block {
		keys[i].key = block[i].key
	}
	if err := p.names.learn(ctx, keys); err != nil {
		return err
	}
	for i := range block {
		k := &block[i]
		if k.pair != p.pair {
			p.endPair()
			p.pair = k.pair
		}
		f := *p.names.keys[k.key]
		f.Start, f.End, f.Connections = time.UnixMilli(k.first), time.UnixMilli(k.last), k.connections
		f.Sent.Bytes, f.Received.Bytes = k.sent, k.received
		p.reports = append(p.reports, f)
	}
	return nil
}

func (p *pairSums) endPair() {
	if len(p.reports) > 0 {
		p.builder.Add(p.reports)
	}
	p.reports = p.reports[:0]
}

// edgeColumns are those of an edge without its part and version.
const edgeColumns = `hour, id, first, last, connections, sent, received, cluster, protocol, port, direction, verdict, expected, assessment, caveat, exempt, seen,
	src_kind, src_identity, src_namespace, src_workload_kind, src_workload, src_node, src_addr, src_bits, src_labels, src_ip,
	dst_kind, dst_identity, dst_namespace, dst_workload_kind, dst_workload, dst_node, dst_addr, dst_bits, dst_labels, dst_ip`

func edgeRow(p part, version uint64, e *flow.Edge) []any {
	row := []any{
		monthOf(p.hour), p.slot, p.hour, version, edgeID(&e.EdgeKey), e.First.UnixMilli(), e.Last.UnixMilli(), e.Connections, e.Sent, e.Received,
		e.Cluster, uint8(e.Protocol), e.Port, uint8(e.Direction), uint8(e.Verdict), uint8(e.Expected), uint8(e.Assessment), uint8(e.Caveat), uint8(e.Exempt), addrText16(e.Seen),
	}
	for _, end := range []struct {
		flow.EdgeEnd
		labels map[string]string
	}{{e.Source, e.SourceLabels}, {e.Destination, e.DestinationLabels}} {
		row = append(row, uint8(end.Kind), end.Identity, end.Namespace, end.Workload.Kind, end.Workload.Name, end.Node,
			addrText16(end.Prefix.Addr()), uint8(max(0, end.Prefix.Bits())), columns.LabelText(end.labels), columns.PrefixText(end.Prefix))
	}
	return row
}

// edgeID is a hash of what tells edges apart.
func edgeID(k *flow.EdgeKey) uint64 {
	h := mix(textHash(k.Cluster), uint64(k.Protocol)|uint64(k.Port)<<8|uint64(k.Direction)<<24|uint64(k.Verdict)<<32|uint64(k.Expected)<<40|uint64(k.Assessment)<<48|uint64(k.Caveat)<<56)
	h = mix(mix(h, uint64(k.Exempt)), addrHash(k.Seen))
	for _, e := range []*flow.EdgeEnd{&k.Source, &k.Destination} {
		h = mix(mix(mix(h, uint64(e.Kind)), e.Identity), addrHash(e.Prefix.Addr()))
		h = mix(mix(h, uint64(e.Prefix.Bits()+1)), textHash(e.Namespace, e.Workload.Kind, e.Workload.Name, e.Node))
	}
	return h
}

// Edges implements store.Store.
func (s *Store) Edges(ctx context.Context, req store.EdgesRequest, yield func(*flow.Edge) bool) error {
	if err := s.sumUp(ctx); err != nil {
		return err
	}
	seen := flow.NewSeenEdges(req.Sight, yield)
	if err := s.readEdges(ctx, req, "id", edgeCondition(req.Sight), func(_ uint64, e *flow.Edge) bool { return seen.Add(e) }); err != nil {
		return err
	}
	seen.Close()
	return nil
}

// edgeCondition leaves out what does not show.
func edgeCondition(sight flow.Sight) string {
	switch {
	case sight.All():
		return "1"
	case sight.Nothing():
		return "0"
	}
	names := sight.Namespaces()
	for i, n := range names {
		names[i] = quote(n)
	}
	list := strings.Join(names, ", ")
	return fmt.Sprintf("cluster = %s AND (src_namespace IN (%s) OR dst_namespace IN (%[2]s))", quote(sight.Cluster()), list)
}

// EdgeHours implements store.Store.
func (s *Store) EdgeHours(ctx context.Context, req store.EdgesRequest, keep, yield func(*flow.Edge) bool) error {
	if !req.Sight.All() {
		return store.ErrSight
	}
	if err := s.sumUp(ctx); err != nil {
		return err
	}
	var ids strings.Builder
	err := s.readEdges(ctx, req, "id", "1", func(id uint64, e *flow.Edge) bool {
		if keep(e) {
			fmt.Fprintf(&ids, "%d,", id)
		}
		return true
	})
	if err != nil || ids.Len() == 0 {
		return err
	}
	condition := fmt.Sprintf("id IN (%s)", strings.TrimSuffix(ids.String(), ","))
	return s.readEdges(settings(ctx, clickhouse.Settings{"max_query_size": ids.Len() + 1<<20}), req, "hour, id", condition, func(_ uint64, e *flow.Edge) bool { return yield(e) })
}

// readEdges reads the sums of edges that meet a condition, in the order of what
// they are grouped by.
func (s *Store) readEdges(ctx context.Context, req store.EdgesRequest, group, condition string, yield func(uint64, *flow.Edge) bool) error {
	since := uint32(0)
	if !req.Since.IsZero() {
		since = hourOf(req.Since)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // a reader that has seen enough ends the query
	rows, err := s.conn.Query(ctx, fmt.Sprintf(`SELECT id, uniqExact(hour), min(first), max(last), sum(connections), sum(sent), sum(received), %s FROM edge_now
		WHERE hour BETWEEN %d AND %d AND %s GROUP BY %s ORDER BY %[5]s`, anyEdgeColumns(), since, hourOf(req.Until), condition, group))
	if err != nil {
		return fmt.Errorf("read edges: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var e flow.Edge
		var id, hours uint64
		var first, last int64
		var protocol, direction, verdict, expected, assessment, caveat, exempt uint8
		var seen string
		var src, dst edgeEndColumns
		targets := []any{&id, &hours, &first, &last, &e.Connections, &e.Sent, &e.Received, &e.Cluster, &protocol, &e.Port, &direction, &verdict, &expected, &assessment, &caveat, &exempt, &seen}
		if err := rows.Scan(append(append(targets, src.targets()...), dst.targets()...)...); err != nil {
			return fmt.Errorf("read edges: %w", err)
		}
		e.Hours, e.First, e.Last = int(hours), time.UnixMilli(first), time.UnixMilli(last)
		e.Protocol, e.Direction, e.Verdict, e.Expected = flow.Protocol(protocol), flow.Direction(direction), flow.Verdict(verdict), flow.Verdict(expected)
		e.Assessment, e.Caveat, e.Seen = flow.Assessment(assessment), flow.Caveat(caveat), addrOf(seen)
		e.Exempt = flow.Exemption(exempt)
		e.Source, e.SourceLabels = src.end()
		e.Destination, e.DestinationLabels = dst.end()
		if !yield(id, &e) {
			return nil
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read edges: %w", err)
	}
	return nil
}

// anyEdgeColumns are the columns that are the same in all rows of an edge.
func anyEdgeColumns() string {
	out := []string{"any(cluster)", "any(protocol)", "any(port)", "any(direction)", "any(verdict)", "any(expected)", "any(assessment)", "any(caveat)", "any(exempt)", "any(seen)"}
	for _, side := range []string{"src", "dst"} {
		for _, c := range []string{"kind", "identity", "namespace", "workload_kind", "workload", "node", "addr", "bits", "labels"} {
			out = append(out, "any("+side+"_"+c+")")
		}
	}
	return strings.Join(out, ", ")
}

// edgeEndColumns are an end as it is scanned.
type edgeEndColumns struct {
	kind, bits   uint8
	addr, labels string
	e            flow.EdgeEnd
}

func (c *edgeEndColumns) targets() []any {
	return []any{&c.kind, &c.e.Identity, &c.e.Namespace, &c.e.Workload.Kind, &c.e.Workload.Name, &c.e.Node, &c.addr, &c.bits, &c.labels}
}

func (c *edgeEndColumns) end() (flow.EdgeEnd, map[string]string) {
	c.e.Kind = flow.EndpointKind(c.kind)
	if a := addrOf(c.addr); a.IsValid() {
		c.e.Prefix = netip.PrefixFrom(a, int(c.bits))
	}
	return c.e, columns.LabelsOf(c.labels)
}
