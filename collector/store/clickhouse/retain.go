package clickhouse

import (
	"context"
	"fmt"
	"time"

	"github.com/flowaudit/flowaudit/collector/store"
)

// Retain implements store.Store. A slice goes when all of it arrived before.
func (s *Store) Retain(ctx context.Context, keep store.Retention) (freed int64, err error) {
	denied := keep.DeniedSince()
	if !keep.Since.IsZero() {
		if freed, err = s.dropBefore(ctx, s.slot(keep.Since), s.slot(denied)); err != nil {
			return freed, err
		}
	}
	if keep.Bytes > 0 {
		n, err := s.shrink(ctx, keep.Bytes)
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

// Conditions on the partitions of a table: the slot is the first number of a
// partition's name, and whether its flows were refused the second.
const (
	slotBefore = "toUInt32OrZero(extract(partition, '[0-9]+')) < %d"
	notDenied  = " AND extract(partition, '[0-9]+,([01])') = '0'"
)

// dropBefore drops the slots before one, and refused flows before another one,
// which is not later.
func (s *Store) dropBefore(ctx context.Context, slot, denied uint32) (freed int64, err error) {
	if err := s.freeze(ctx, slot); err != nil {
		return 0, fmt.Errorf("keep edges of old flows: %w", err)
	}
	older, oldest := fmt.Sprintf(slotBefore, slot), fmt.Sprintf(slotBefore, denied)
	for _, t := range []struct{ table, condition string }{
		{"flow", older + notDenied},
		{"key", older + notDenied},
		{"flow", oldest},
		{"key", oldest},
		{"covered", older},
		{"gap", older},
		{"batch", older},
		{"contested", older},
		{"voided", oldest},
	} {
		n, err := s.dropPartitions(ctx, t.table, t.condition)
		freed += n
		if err != nil {
			return freed, err
		}
	}
	return freed, nil
}

// shrink drops the oldest slots but the newest until what is left takes no
// more than it may: first all but the refused flows, then these.
func (s *Store) shrink(ctx context.Context, limit uint64) (freed int64, err error) {
	for _, keepDenied := range []bool{true, false} {
		for {
			var total, slots uint64
			var first uint32
			condition := "table = " + quote(s.local("flow"))
			if keepDenied {
				condition += notDenied
			}
			if err := s.conn.QueryRow(ctx, fmt.Sprintf(`SELECT sum(bytes_on_disk), uniqExactIf(toUInt32OrZero(extract(partition, '[0-9]+')), %[1]s),
				minIf(toUInt32OrZero(extract(partition, '[0-9]+')), %[1]s) FROM %[2]s WHERE active AND database = %[3]s`, condition, s.parts(), quote(s.database))).
				Scan(&total, &slots, &first); err != nil {
				return freed, fmt.Errorf("read size of ClickHouse: %w", err)
			}
			if total <= limit {
				return freed, nil
			}
			if slots < 2 {
				break
			}
			denied := first + 1
			if keepDenied {
				denied = 0
			}
			n, err := s.dropBefore(ctx, first+1, denied)
			freed += n
			if err != nil {
				return freed, err
			}
		}
	}
	return freed, nil
}

// freeze sums up the edges of the slices before slot for the last time.
func (s *Store) freeze(ctx context.Context, slot uint32) error {
	var old uint64
	if err := s.conn.QueryRow(ctx, s.global(fmt.Sprintf("SELECT count() FROM (SELECT DISTINCT slot FROM touched WHERE slot < %d AND slot NOT IN (SELECT slot FROM frozen))", slot))).Scan(&old); err != nil || old == 0 {
		return err
	}
	s.edges.Lock()
	defer s.edges.Unlock()
	condition := fmt.Sprintf("slot < %d AND slot NOT IN (SELECT slot FROM frozen)", slot)
	if err := s.sumParts(ctx, condition); err != nil {
		return err
	}
	// Who wrote a batch twice is forgotten with its slot; which copies do not count must be known longer.
	if err := s.conn.Exec(s.durable(ctx), fmt.Sprintf("INSERT INTO voided (slot, copy) SELECT slot, copy FROM contested_copies WHERE slot < %d", slot)); err != nil {
		return err
	}
	return s.conn.Exec(s.durable(ctx), s.global("INSERT INTO frozen (slot) SELECT DISTINCT slot FROM touched WHERE "+condition))
}

// RetainEdges implements store.Store.
func (s *Store) RetainEdges(ctx context.Context, before time.Time) (freed int64, err error) {
	month := monthOf(hourOf(before))
	for _, table := range []string{"edge", "summed", "touched"} {
		n, err := s.dropPartitions(ctx, table, fmt.Sprintf("toUInt32OrZero(partition) < %d", month))
		freed += n
		if err != nil {
			return freed, err
		}
	}
	return freed, nil
}

// dropPartitions drops the partitions of a table that meet a condition, and
// returns what they took on the disk, of one replica of each shard.
func (s *Store) dropPartitions(ctx context.Context, table, condition string) (freed int64, err error) {
	table = s.local(table)
	rows, err := s.conn.Query(ctx, fmt.Sprintf(`SELECT partition_id, sum(bytes_on_disk) FROM %s
		WHERE active AND database = %s AND table = %s AND %s GROUP BY partition_id ORDER BY partition_id`, s.parts(), quote(s.database), quote(table), condition))
	if err != nil {
		return 0, fmt.Errorf("list partitions of %s: %w", table, err)
	}
	type partition struct {
		id    string
		bytes uint64
	}
	var all []partition
	for rows.Next() {
		var p partition
		if err := rows.Scan(&p.id, &p.bytes); err != nil {
			return 0, fmt.Errorf("list partitions of %s: %w", table, err)
		}
		all = append(all, p)
	}
	if err := closing(rows); err != nil {
		return 0, fmt.Errorf("list partitions of %s: %w", table, err)
	}
	for _, p := range all {
		if err := s.define(ctx, s.conn, fmt.Sprintf("ALTER TABLE %s.%s%s DROP PARTITION ID %s", s.database, table, s.onCluster(), quote(p.id))); err != nil {
			return freed, fmt.Errorf("drop partition %s of %s: %w", p.id, table, err)
		}
		freed += int64(p.bytes)
	}
	return freed, nil
}

// pruneTimeline deletes what no moment since before needs.
func (s *Store) pruneTimeline(ctx context.Context, before time.Time) error {
	ms := before.UnixMilli()
	var old uint64
	condition := fmt.Sprintf("time < %d AND (deleted = 1 OR (cluster, kind, namespace, name, time, sequence) NOT IN (%s))", ms, newestBefore(ms))
	if err := s.conn.QueryRow(ctx, s.global("SELECT count() FROM change WHERE "+condition)).Scan(&old); err != nil || old == 0 {
		return err
	}
	if err := s.define(ctx, s.conn, fmt.Sprintf("ALTER TABLE %s.%s%s DELETE WHERE %s", s.database, s.local("change"), s.onCluster(), condition)); err != nil {
		return fmt.Errorf("delete old changes: %w", err)
	}
	return s.mutated(ctx, "change")
}

// mutated waits until the deletions from a table are done: old servers do
// them later.
func (s *Store) mutated(ctx context.Context, table string) error {
	for {
		var open uint64
		if err := s.conn.QueryRow(ctx, fmt.Sprintf("SELECT count() FROM system.mutations WHERE database = currentDatabase() AND table = %s AND is_done = 0",
			quote(s.local(table)))).Scan(&open); err != nil || open == 0 {
			return err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
