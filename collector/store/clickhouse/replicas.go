package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"golang.org/x/sync/errgroup"

	"github.com/flowaudit/flowaudit/flow"
)

const (
	// defineSeconds is how long a statement waits for all servers of a cluster.
	defineSeconds = 20
	// codeTimeout is TIMEOUT_EXCEEDED.
	codeTimeout = 159
	// reconcileEvery is how often copies are looked for that replicas hid, and
	// reconcileShare bounds the share of the time that it may take.
	reconcileEvery = 30 * time.Second
	reconcileShare = 50
)

// define executes a statement that changes what tables there are, or what is in
// them. A server of the cluster that is down executes it when it is back.
func (s *Store) define(ctx context.Context, conn driver.Conn, statement string) error {
	if s.cluster == "" {
		return conn.Exec(ctx, statement)
	}
	err := conn.Exec(settings(s.durable(ctx), clickhouse.Settings{"distributed_ddl_task_timeout": defineSeconds, "insert_distributed_sync": 1}), statement)
	var said *clickhouse.Exception
	if errors.As(err, &said) && said.Code == codeTimeout {
		s.o.Logger.Warn("a server of the ClickHouse cluster is away: it follows when it is back", "error", err)
		return nil
	}
	return err
}

// parts is the table of all parts, in a cluster those of one replica of each shard.
func (s *Store) parts() string {
	if s.cluster == "" {
		return "system.parts"
	}
	return fmt.Sprintf("cluster(`%s`, system, parts)", s.cluster)
}

// watchReplicas begins to look for what replicas hid, until Close.
func (s *Store) watchReplicas() {
	if s.cluster == "" {
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	s.replicas, s.stop = &errgroup.Group{}, stop
	s.replicas.Go(func() error {
		from := uint32(0) // at first all slots
		for {
			began := time.Now()
			now := s.slot(s.o.Now())
			switch found, err := s.reconcile(ctx, from); {
			case ctx.Err() != nil:
				return nil
			case err != nil:
				s.o.Logger.Error("batches that replicas have twice were not looked for", "error", err)
			case found > 0:
				s.o.Logger.Info("batches were stored twice, by different replicas: they count once from now on", "batches", found)
			default:
				from = max(1, now) - 1
			}
			select {
			case <-time.After(max(reconcileEvery, reconcileShare*time.Since(began))):
			case <-ctx.Done():
				return nil
			}
		}
	})
}

// reconcile notes the batches that were claimed more than once, as is seen only
// now that replicas have replicated, of the slots from a number on. The hours
// of their flows are summed up again.
func (s *Store) reconcile(ctx context.Context, from uint32) (found int, err error) {
	rows, err := s.conn.Query(settings(ctx, clickhouse.Settings{"max_bytes_before_external_group_by": 2_000_000_000}), s.global(fmt.Sprintf(
		`SELECT max(slot), cluster, instance, epoch, sequence, groupUniqArray(copy) FROM batch
			WHERE slot >= %d AND (cluster, instance, epoch, sequence) NOT IN (SELECT cluster, instance, epoch, sequence FROM contested)
			GROUP BY cluster, instance, epoch, sequence HAVING min(copy) < max(copy)`, from)))
	if err != nil {
		return 0, err
	}
	b := s.newInsert("contested", "slot, cluster, instance, epoch, sequence")
	var all []string
	for rows.Next() {
		var slot uint32
		var k flow.BatchKey
		var copies []uint64
		if err := rows.Scan(&slot, &k.Cluster, &k.Instance, &k.Epoch, &k.Sequence, &copies); err != nil {
			return 0, err
		}
		b.row(slot, k.Cluster, k.Instance, k.Epoch, k.Sequence)
		for _, c := range copies {
			all = append(all, strconv.FormatUint(c, 10))
		}
	}
	if err := closing(rows); err != nil || len(b.rows) == 0 {
		return 0, err
	}
	// Touched before: whoever sums up in between does it again, within skew.
	if err := s.touchCopies(ctx, from, all); err != nil {
		return 0, err
	}
	return len(b.rows), b.send(ctx)
}

// touchCopies notes that the hours change which copies have flows of.
func (s *Store) touchCopies(ctx context.Context, from uint32, copies []string) error {
	parts, err := s.readParts(ctx, fmt.Sprintf("SELECT DISTINCT slot, toUInt32(intDiv(start, %d)) FROM flow WHERE slot >= %d AND copy IN (%s)",
		flow.EdgeHour.Milliseconds(), from, strings.Join(copies, ", ")))
	if err != nil {
		return err
	}
	return s.touch(ctx, parts)
}
