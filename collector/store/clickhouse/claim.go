package clickhouse

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/flowaudit/flowaudit/flow"
)

// A batch counts once, also when a collector died while it wrote it and the
// agent sent it to another one, or when two collectors write it at the same
// time. Each writing of a batch is a copy with a number of its own, which its
// rows carry. Before the rows a collector claims the batch, and after them it
// says that they are stored:
//
//   - If a stored copy is there already, the batch is a duplicate.
//   - If another claim is there, also one that came while this collector was
//     claiming, the batch is contested: of its copies the stored one with the
//     smallest number counts, and no other. Both claim before they look, so
//     that one of them at least sees the other.
//   - Of two replicas of a cluster each may show its own claim only, until they
//     have replicated: what was missed so is noted later; see replicas.go.
//
// So flows of few contested batches are left out when reading, and everything
// else is read as it is.

// claim is this collector's writing of a batch.
type claim struct {
	batch *flow.Batch
	copy  uint64
}

// newCopies returns the first of n numbers that nobody else has: they grow with
// the time, so that they compress well and the older copy counts.
func (s *Store) newCopies(n int) uint64 {
	const randomBits = 22
	return uint64(s.o.Now().UnixMilli())<<randomBits | uint64(rand.Uint32N(max(1, 1<<randomBits-uint32(n))))
}

// durable are the settings with which rows are written: they are on a disk when
// the insert returns, in a cluster on one replica of their shard at least. Who
// wants more of them adds insert_quorum to the URL.
func (s *Store) durable(ctx context.Context) context.Context {
	more := clickhouse.Settings{}
	if s.cluster != "" {
		more["insert_distributed_sync"] = 1
	}
	if s.server.major >= 21 {
		more["async_insert"] = 0
	}
	return settings(ctx, more)
}

// copies are the claims of a batch that the database knows.
type copies struct {
	stored bool
	count  uint64
}

// lookUp reads the claims of batches.
func (s *Store) lookUp(ctx context.Context, batches []flow.BatchKey) (map[flow.BatchKey]copies, error) {
	out := make(map[flow.BatchKey]copies)
	const atOnce = 1000
	for len(batches) > 0 {
		n := min(atOnce, len(batches))
		keys := make([]string, n)
		for i, k := range batches[:n] {
			keys[i] = fmt.Sprintf("(%s, %s, %d, %d)", quote(k.Cluster), quote(k.Instance), k.Epoch, k.Sequence)
		}
		batches = batches[n:]
		rows, err := s.conn.Query(ctx, fmt.Sprintf(`SELECT cluster, instance, epoch, sequence, max(stored), uniqExact(copy) FROM batch
			WHERE (cluster, instance, epoch, sequence) IN (%s) GROUP BY cluster, instance, epoch, sequence`, strings.Join(keys, ", ")))
		if err != nil {
			return nil, fmt.Errorf("read claims of batches: %w", err)
		}
		for rows.Next() {
			var k flow.BatchKey
			var stored uint8
			var c copies
			if err := rows.Scan(&k.Cluster, &k.Instance, &k.Epoch, &k.Sequence, &stored, &c.count); err != nil {
				return nil, fmt.Errorf("read claims of batches: %w", err)
			}
			c.stored = stored != 0
			out[k] = c
		}
		if err := closing(rows); err != nil {
			return nil, fmt.Errorf("read claims of batches: %w", err)
		}
	}
	return out, nil
}

// newClaims makes claims of the batches that are not stored yet, and says which are.
func (s *Store) newClaims(ctx context.Context, batches []flow.Batch) (claims []claim, duplicate []bool, err error) {
	keys := make([]flow.BatchKey, len(batches))
	for i := range batches {
		keys[i] = batches[i].Key
	}
	known, err := s.lookUp(ctx, keys)
	if err != nil {
		return nil, nil, err
	}
	duplicate = make([]bool, len(batches))
	coming := make(map[flow.BatchKey]bool)
	first := s.newCopies(len(batches))
	for i := range batches {
		k := keys[i]
		if duplicate[i] = known[k].stored || coming[k]; duplicate[i] {
			continue
		}
		coming[k] = true
		claims = append(claims, claim{&batches[i], first + uint64(len(claims))})
	}
	return claims, duplicate, nil
}

// contest notes the batches that were claimed more than once. The own claims
// are written before.
func (s *Store) contest(ctx context.Context, claims []claim) error {
	keys := make([]flow.BatchKey, len(claims))
	for i, c := range claims {
		keys[i] = c.batch.Key
	}
	known, err := s.lookUp(ctx, keys)
	if err != nil {
		return err
	}
	slot := s.slot(s.o.Now())
	b := s.newInsert("contested", "slot, cluster, instance, epoch, sequence")
	for _, k := range keys {
		if known[k].count > 1 {
			b.row(slot, k.Cluster, k.Instance, k.Epoch, k.Sequence)
		}
	}
	return b.send(ctx)
}

func (s *Store) writeClaims(ctx context.Context, claims []claim, stored uint8) error {
	slot := s.slot(s.o.Now())
	b := s.newInsert("batch", "slot, cluster, instance, epoch, sequence, copy, stored")
	for _, c := range claims {
		k := c.batch.Key
		b.row(slot, k.Cluster, k.Instance, k.Epoch, k.Sequence, c.copy, stored)
	}
	return b.send(ctx)
}

// Stored implements store.Store.
func (s *Store) Stored(ctx context.Context, keys []flow.BatchKey) ([]bool, error) {
	known, err := s.lookUp(ctx, keys)
	if err != nil {
		return nil, err
	}
	stored := make([]bool, len(keys))
	for i, k := range keys {
		stored[i] = known[k].stored
	}
	return stored, nil
}
