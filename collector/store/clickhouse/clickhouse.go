// Package clickhouse keeps flows in a ClickHouse server or cluster, which any number of collectors share.
package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"golang.org/x/sync/errgroup"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
)

// Options configure a Store.
type Options struct {
	// URL names the server, the database and how to get there:
	// clickhouse://user:password@host:9000,host2:9000/flowaudit?secure=true,
	// or http:// and https:// for its HTTP port. The parameters are the
	// driver's, and cluster=NAME for a cluster of that name.
	URL         string
	Credentials Credentials
	Slice       time.Duration // how much time one partition holds, by arrival; 0 takes a day
	// Pace is how far apart writes begin at least, so that a server gets few
	// large ones rather than many small ones; 0 takes 250 ms, negative none.
	Pace   time.Duration
	Logger *slog.Logger
	// Now tells the time of arrival; nil takes time.Now.
	Now func() time.Time
}

const (
	defaultSlice    = 24 * time.Hour
	defaultPace     = 250 * time.Millisecond
	defaultDatabase = "flowaudit"
	openTimeout     = 30 * time.Second
)

// Store keeps flows in a database of a server.
type Store struct {
	o        Options
	conn     driver.Conn
	database string
	cluster  string // empty for a single server
	server   server

	// write is held by the one who appends.
	write   sync.Mutex
	began   time.Time // of the last write
	known   knownKeys
	hasher  *keyHasher
	rows    flowRows
	touched map[part]time.Time // when parts were touched last

	// edges is held by the one who sums up hours.
	edges   sync.Mutex
	eager   bool // sums up whatever it costs
	summed  time.Time
	sumCost time.Duration

	// replicas is the work of replicas.go; nil for a single server.
	replicas *errgroup.Group
	stop     context.CancelFunc
}

var _ store.Store = (*Store)(nil)

// Open connects to the server, and makes or migrates the database.
func Open(ctx context.Context, o Options) (*Store, error) {
	if o.Slice == 0 {
		o.Slice = defaultSlice
	}
	if o.Pace == 0 {
		o.Pace = defaultPace
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil || o.Slice < time.Minute {
		return nil, errors.New("open store: Logger must be set, and Slice be 1m at least")
	}
	options, cluster, err := parseURL(o.URL)
	if err != nil {
		return nil, err
	}
	if err := o.Credentials.add(options); err != nil {
		return nil, err
	}
	s := &Store{o: o, database: options.Auth.Database, cluster: cluster, known: make(knownKeys), hasher: newKeyHasher(), touched: make(map[part]time.Time)}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if err := s.prepare(ctx, *options); err != nil {
		return nil, fmt.Errorf("open ClickHouse at %s: %w", strings.Join(options.Addr, ","), err)
	}
	if s.conn, err = clickhouse.Open(options); err != nil {
		return nil, fmt.Errorf("open ClickHouse at %s: %w", strings.Join(options.Addr, ","), err)
	}
	if err := s.migrate(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open ClickHouse at %s: %w", strings.Join(options.Addr, ","), explain(err, options.TLS != nil)), s.conn.Close())
	}
	s.watchReplicas()
	return s, nil
}

// onCluster ends the head of a statement that defines something.
func (s *Store) onCluster() string {
	if s.cluster == "" {
		return ""
	}
	return " ON CLUSTER `" + s.cluster + "`"
}

// settings adds settings to what is asked within ctx.
func settings(ctx context.Context, more clickhouse.Settings) context.Context {
	return clickhouse.Context(ctx, clickhouse.WithSettings(more))
}

// slot numbers the partition of what arrives at a time.
func (s *Store) slot(t time.Time) uint32 { return uint32(t.UnixMilli() / s.o.Slice.Milliseconds()) }

// Stats implements store.Store.
func (s *Store) Stats(ctx context.Context) (store.Stats, error) {
	out := store.Stats{Kind: "clickhouse"}
	var oldest int64
	var others uint64
	var slot uint32
	query := fmt.Sprintf("SELECT count(), min(start), countIf(toInt8(verdict) <> %[1]d), minIf(slot, toInt8(verdict) <> %[1]d) FROM flow WHERE copy NOT IN (SELECT copy FROM excluded)", flow.VerdictDenied)
	if err := s.conn.QueryRow(ctx, s.global(query)).Scan(&out.Flows, &oldest, &others, &slot); err != nil {
		return out, fmt.Errorf("read size of ClickHouse: %w", err)
	}
	if out.Flows > 0 {
		out.Oldest = time.UnixMilli(oldest)
	}
	if others > 0 {
		out.Arrived = time.UnixMilli(int64(slot) * s.o.Slice.Milliseconds())
	}
	var slices uint64
	if err := s.conn.QueryRow(ctx, `SELECT sum(bytes_on_disk), uniqExact(partition) FROM `+s.parts()+` WHERE active AND database = `+quote(s.database)+`
		AND table = `+quote(s.local("flow"))).Scan(&out.Bytes, &slices); err != nil {
		return out, fmt.Errorf("read size of ClickHouse: %w", err)
	}
	out.Slices = int(slices)
	return out, nil
}

// Close implements store.Store.
func (s *Store) Close() error {
	if s.replicas != nil {
		s.stop()
		_ = s.replicas.Wait() // it tells its errors itself
	}
	s.write.Lock()
	defer s.write.Unlock()
	return s.conn.Close()
}
