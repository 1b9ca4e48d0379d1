package clickhouse

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flowaudit/flowaudit/collector/store/columns"
	"github.com/flowaudit/flowaudit/flow"
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
	claims, duplicate, err := s.newClaims(ctx, batches)
	if err != nil || len(claims) == 0 {
		return duplicate, err
	}
	slot := s.slot(s.o.Now())
	var claiming errgroup.Group
	claiming.Go(func() error { return s.writeClaims(ctx, claims, 0) })
	rows := s.rowsOf(slot, claims)
	if err := claiming.Wait(); err != nil {
		return nil, err
	}
	if err := s.appendAll(ctx, slot, claims, rows); err != nil {
		return nil, err
	}
	if err := s.writeClaims(ctx, claims, 1); err != nil {
		return nil, err
	}
	return duplicate, nil
}

// appendAll writes what makes claims count, in no order: nothing of it counts
// until the claims say that it is stored. A group with a context of its own
// would not do: the driver may close a connection whose context ends just after
// the insert, and give it to the next one.
func (s *Store) appendAll(ctx context.Context, slot uint32, claims []claim, rows *flowRows) error {
	var group errgroup.Group
	group.Go(func() error { return s.contest(ctx, claims) })
	group.Go(func() error { return s.appendKeys(ctx, slot, rows) })
	group.Go(func() error { return s.appendFlows(ctx, rows) })
	group.Go(func() error { return s.appendRest(ctx, slot, claims) })
	// Hours are touched before their flows count: whoever sums them up in
	// between does it again.
	group.Go(func() error { return s.touchSometimes(ctx, rows.parts) })
	return group.Wait()
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

// flowRows are flows by column, and what else they tell.
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

	fresh map[uint64]*flow.Flow // by keys that this collector has not written
	parts []part                // that the flows are of
}

const flowColumns = `slot, key, verdict, start, duration, source_port, connections, counted, tcp_flags, packets_sent, bytes_sent, packets_received, bytes_received, copy`

// reset makes the rows empty, with room for n.
func (r *flowRows) reset(n int) {
	r.slot, r.duration, r.key, r.verdict = slices.Grow(r.slot[:0], n), slices.Grow(r.duration[:0], n), slices.Grow(r.key[:0], n), slices.Grow(r.verdict[:0], n)
	r.start, r.sourcePort, r.connections = slices.Grow(r.start[:0], n), slices.Grow(r.sourcePort[:0], n), slices.Grow(r.connections[:0], n)
	r.counted, r.flags, r.copy = slices.Grow(r.counted[:0], n), slices.Grow(r.flags[:0], n), slices.Grow(r.copy[:0], n)
	for i := range r.counters {
		r.counters[i] = slices.Grow(r.counters[i][:0], n)
	}
	r.fresh, r.parts = make(map[uint64]*flow.Flow), nil
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

// rowsOf turns the flows of claims into rows, which are the store's until the
// next ones.
func (s *Store) rowsOf(slot uint32, claims []claim) *flowRows {
	total := 0
	for _, c := range claims {
		total += len(c.batch.Flows)
	}
	rows, known := &s.rows, s.known.of(slot)
	rows.reset(total)
	for _, c := range claims {
		s.hasher.reset()
		for i := range c.batch.Flows {
			f := &c.batch.Flows[i]
			id := s.hasher.id(f)
			if _, ok := known[id]; !ok {
				rows.fresh[id] = f
			}
			rows.add(slot, id, c.copy, f)
			if p := (part{slot, hourOf(f.Start)}); !slices.Contains(rows.parts, p) {
				rows.parts = append(rows.parts, p)
			}
		}
	}
	return rows
}

// appendKeys writes what keys stand for that this collector has not written yet.
func (s *Store) appendKeys(ctx context.Context, slot uint32, rows *flowRows) error {
	keys := s.newInsert("key", keyColumns)
	for id, f := range rows.fresh {
		keys.row(keyRow(slot, id, f)...)
	}
	if err := keys.send(ctx); err != nil {
		return err
	}
	known := s.known.of(slot)
	for id := range rows.fresh {
		known[id] = struct{}{}
	}
	return nil
}

func (s *Store) appendFlows(ctx context.Context, rows *flowRows) error {
	if len(rows.slot) == 0 {
		return nil
	}
	batch, err := s.prepareInsert(ctx, "flow", flowColumns)
	if err != nil {
		return err
	}
	for i, column := range rows.columns() {
		if err := batch.Column(i).Append(column); err != nil {
			_ = batch.Abort() // the error is told
			return fmt.Errorf("insert into flow: %w", err)
		}
	}
	return sendBatch(batch, "flow")
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
