package clickhouse

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/collector/store/clickhouse/clickhousetest"
	"github.com/flowaudit/flowaudit/collector/store/storetest"
	"github.com/flowaudit/flowaudit/flow"
)

// startCluster starts a cluster for a test: a shard of two replicas, and one of one.
func startCluster(t *testing.T) *clickhousetest.Cluster {
	t.Helper()
	c, err := clickhousetest.StartCluster(t.TempDir(), 2, 1)
	if errors.Is(err, exec.ErrNotFound) {
		missing(t)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Kill)
	return c
}

// TestCluster: a cluster answers as a single server does. All of the suite is
// the soak's, for defining tables takes a cluster seconds.
func TestCluster(t *testing.T) {
	t.Parallel() // it waits most of the time
	c := startCluster(t)
	factory := suite(func(*testing.T) string { return c.URL(databaseName(), c.Shards[0][0]) })
	if os.Getenv("FLOWAUDIT_SOAK") != "" {
		storetest.Run(t, factory)
		return
	}
	storetest.RunSome(t, factory, "every field comes back", "a resend after a restart is known", "two nodes' reports are one flow",
		"refused flows are kept longer", "every question", "SQL does nothing else", "the timeline says how it was", "edges outlive their flows")
}

// TestCollectorsAtOnceInACluster: each goes through another server.
func TestCollectorsAtOnceInACluster(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	database := databaseName()
	collectorsAtOnce(t, time.Minute, func(s *Store) { settle(t, c, s) }, c.URL(database, c.Shards[0][0]), c.URL(database, c.Shards[0][1]), c.URL(database, c.Shards[1][0]))
}

// TestAReplicaGoesAndComesBack: batches are written while one replica is down,
// then while the other one is, each sent twice, through both where both are there.
func TestAReplicaGoesAndComesBack(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	database := databaseName()
	a, b, other := c.Shards[0][0], c.Shards[0][1], c.Shards[1][0]
	first, second := open(t, c.URL(database, a, b), now), open(t, c.URL(database, b, a), now)
	var want sums
	sequence := uint64(0)
	write := func() {
		t.Helper()
		for range 5 {
			sequence++
			batch := batchOf(sequence, 50)
			want.add(&batch)
			for _, s := range []*Store{first, second} {
				appendUntil(t, s, batch)
			}
		}
	}
	write()
	b.Kill()
	write()
	third := open(t, c.URL(database, other, a), now) // a collector can begin meanwhile
	if _, err := third.Retain(t.Context(), store.Retention{Since: storetest.T0.Add(-time.Hour)}); err != nil {
		t.Errorf("retention with a replica down: %v", err)
	}
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	write()
	settle(t, c, third)
	a.Kill()
	write()
	if got := sumsOf(t, second); got != want {
		t.Errorf("without the first replica: %+v, want %+v", got, want)
	}
	if err := a.Start(); err != nil {
		t.Fatal(err)
	}
	for i, s := range []*Store{first, second, third} {
		settle(t, c, s) // edges that the last one summed up are replicated, too
		if got := sumsOf(t, s); got != want {
			t.Errorf("collector %d: %+v, want %+v", i+1, got, want)
		}
	}
}

// TestReplicasHideACopy: two collectors write a batch through two replicas,
// neither of which shows the other's claim yet.
func TestReplicasHideACopy(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	database := databaseName()
	first, second := open(t, c.URL(database, c.Shards[0][0]), now), open(t, c.URL(database, c.Shards[0][1]), now)
	var want sums
	stopFetches := func(verb string) {
		for _, s := range []*Store{first, second} {
			for _, table := range tables {
				if err := s.conn.Exec(t.Context(), "SYSTEM "+verb+" FETCHES "+database+"."+s.local(table.name)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	stopFetches("STOP")
	for sequence := range uint64(6) {
		batch := batchOf(sequence+1, 50)
		want.add(&batch)
		for _, s := range []*Store{first, second} {
			if duplicate, err := s.Append(t.Context(), []flow.Batch{batch}); err != nil {
				t.Fatal(duplicate, err)
			}
		}
	}
	stopFetches("START")
	for i, s := range []*Store{first, second} {
		settle(t, c, s)
		if got := sumsOf(t, s); got != want {
			t.Errorf("collector %d: %+v, want %+v", i+1, got, want)
		}
	}
}

// appendUntil does what an agent does: it sends again until a batch is stored.
func appendUntil(t *testing.T, s *Store, b flow.Batch) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		_, err := s.Append(ctx, []flow.Batch{b})
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

// settle waits until the replicas have the same, and looks for what they hid.
func settle(t *testing.T, c *clickhousetest.Cluster, s *Store) {
	t.Helper()
	for _, shard := range c.Shards {
		for _, server := range shard {
			replica := open(t, c.URL(s.database, server), now)
			for _, table := range tables {
				if err := replica.conn.Exec(t.Context(), "SYSTEM SYNC REPLICA "+s.database+"."+s.local(table.name)); err != nil {
					t.Fatal(err)
				}
			}
			if err := replica.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := s.reconcile(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }
