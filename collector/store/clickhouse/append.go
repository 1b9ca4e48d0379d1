package clickhouse

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/flowaudit/flowaudit/flow"

	"github.com/flowaudit/flowaudit/collector/store/columns"
)

// Append implements store.Store. ClickHouse has no transactions: see claim.go
// for how a batch counts once, or not at all, whatever happens in between.
func (s *Store) Append(ctx context.Context, batches []flow.Batch) (duplicate []bool, err error) {
	s.write.Lock()
	defer s.write.Unlock()
	if len(batches) == 0 {
		return nil, ctx.Err()
	}
	if err := s.pace(ctx); err != nil {
		return nil, err
	}
	claims, duplicate, err := s.claimAll(ctx, batches)
	if err != nil || len(claims) == 0 {
		return duplicate, err
	}
	slot := s.slot(s.o.Now())
	touched, err := s.appendFlows(ctx, slot, claims)
	if err != nil {
		return nil, err
	}
	if err := s.appendRest(ctx, slot, claims); err != nil {
		return nil, err
	}
	// Hours are touched before their flows count: whoever sums them up in
	// between does it again.
	if err := s.touch(ctx, touched); err != nil {
		return nil, err
	}
	if err := s.writeClaims(ctx, claims, 1); err != nil {
		return nil, err
	}
	return duplicate, nil
}

// pace waits until the next write may begin.
func (s *Store) pace(ctx context.Context) error {
	if wait := time.Until(s.began.Add(s.o.Pace)); s.o.Pace > 0 && wait > 0 {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s.began = time.Now()
	return ctx.Err()
}

// flowRows are flows by column.
type flowRows struct {
	slot, duration []uint32
	key            []uint64
	verdict        []int8
	start          []int64
	sourcePort     []uint16
	connections    []uint64
	counted, flags []uint8
	counters       [4][]uint64
	copy           []uint64
}

const flowColumns = `slot, key, verdict, start, duration, source_port, connections, counted, tcp_flags, packets_sent, bytes_sent, packets_received, bytes_received, copy`

func newFlowRows(n int) *flowRows {
	r := &flowRows{
		slot: make([]uint32, 0, n), duration: make([]uint32, 0, n), key: make([]uint64, 0, n), verdict: make([]int8, 0, n), start: make([]int64, 0, n),
		sourcePort: make([]uint16, 0, n), connections: make([]uint64, 0, n), counted: make([]uint8, 0, n), flags: make([]uint8, 0, n), copy: make([]uint64, 0, n),
	}
	for i := range r.counters {
		r.counters[i] = make([]uint64, 0, n)
	}
	return r
}

func (r *flowRows) add(slot uint32, key, number uint64, f *flow.Flow) {
	start := f.Start.UnixMilli()
	var counted uint8
	if f.Counted {
		counted = 1
	}
	r.slot, r.key, r.verdict, r.start = append(r.slot, slot), append(r.key, key), append(r.verdict, int8(f.Verdict)), append(r.start, start)
	r.duration = append(r.duration, uint32(min(max(0, f.End.UnixMilli()-start), 1<<32-1)))
	r.sourcePort, r.connections = append(r.sourcePort, f.SourcePort), append(r.connections, f.Connections)
	r.counted, r.flags, r.copy = append(r.counted, counted), append(r.flags, f.TCPFlags), append(r.copy, number)
	for i, n := range [...]uint64{f.Sent.Packets, f.Sent.Bytes, f.Received.Packets, f.Received.Bytes} {
		r.counters[i] = append(r.counters[i], n)
	}
}

func (r *flowRows) columns() []any {
	return []any{
		r.slot, r.key, r.verdict, r.start, r.duration, r.sourcePort, r.connections, r.counted, r.flags,
		r.counters[0], r.counters[1], r.counters[2], r.counters[3], r.copy,
	}
}

// appendFlows writes the flows, and before them what their keys stand for. It
// returns the hours that they are of.
func (s *Store) appendFlows(ctx context.Context, slot uint32, claims []claim) (touched []part, err error) {
	total := 0
	for _, c := range claims {
		total += len(c.batch.Flows)
	}
	if total == 0 {
		return nil, nil
	}
	rows := newFlowRows(total)
	fresh := make(map[uint64]*flow.Flow)
	for _, c := range claims {
		hasher := newKeyHasher()
		for i := range c.batch.Flows {
			f := &c.batch.Flows[i]
			id := hasher.id(f)
			if !s.known.has(slot, id) {
				fresh[id] = f
			}
			rows.add(slot, id, c.copy, f)
			if p := (part{slot, hourOf(f.Start)}); !slices.Contains(touched, p) {
				touched = append(touched, p)
			}
		}
	}
	keys := s.newInsert("key", keyColumns)
	for id, f := range fresh {
		keys.row(keyRow(slot, id, f)...)
	}
	if err := keys.send(ctx); err != nil {
		return nil, err
	}
	batch, err := s.prepareInsert(ctx, "flow", flowColumns)
	if err != nil {
		return nil, err
	}
	for i, column := range rows.columns() {
		if err := batch.Column(i).Append(column); err != nil {
			_ = batch.Abort() // the error is told
			return nil, fmt.Errorf("insert into flow: %w", err)
		}
	}
	if err := sendBatch(batch, "flow"); err != nil {
		return nil, err
	}
	s.known.add(slot, fresh)
	return touched, nil
}

// appendRest writes the batches' coverage and gaps.
func (s *Store) appendRest(ctx context.Context, slot uint32, claims []claim) error {
	coverage := s.newInsert("covered", "slot, node, instance, scope, start, stop, limits, copy")
	gaps := s.newInsert("gap", "slot, node, source, kind, start, stop, lost, detail, copy")
	for _, c := range claims {
		b := c.batch
		if b.End.After(b.Start) {
			coverage.row(slot, b.Node, b.Key.Instance, uint8(b.Scope), b.Start.UnixMilli(), b.End.UnixMilli(), columns.LimitsText(b.Agent.Limits), c.copy)
		}
		for _, g := range b.Gaps {
			gaps.row(slot, g.Node, g.Source, uint8(g.Kind), g.Start.UnixMilli(), g.End.UnixMilli(), g.Lost, g.Detail, c.copy)
		}
	}
	if err := coverage.send(ctx); err != nil {
		return err
	}
	return gaps.send(ctx)
}
