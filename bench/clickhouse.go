package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/flowaudit/flowaudit/collector/store/clickhouse/clickhousetest"
	"github.com/flowaudit/flowaudit/collector/store/storetest"
	"github.com/flowaudit/flowaudit/flow"
)

// sendersAtOnce are agents that send at the same time.
const sendersAtOnce = 4

// bareRows are an insert of the driver alone, as large as a busy collector's.
const bareRows = 200_000

// benchClickHouse sends flows to a collector that keeps them in ClickHouse, and
// inserts such rows with the driver alone. Server, collector and sender share
// the processors.
func benchClickHouse(ctx context.Context, o options) (all []result, err error) {
	dir, err := os.MkdirTemp(o.dir, "flowaudit-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	server, err := clickhousetest.Start(clickhousetest.Options{Dir: dir})
	if errors.Is(err, exec.ErrNotFound) {
		return []result{{"ClickHouse", "", []string{"clickhouse-server is not installed: make test installs it"}}}, nil
	}
	if err != nil {
		return nil, err
	}
	defer server.Kill()
	options, err := clickhouse.ParseDSN(server.URL("bench"))
	if err != nil {
		return nil, err
	}
	conn, err := clickhouse.Open(options)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	through, err := spending(server, o.flows, func() (result, error) { return throughCollector(ctx, dir, server.URL("bench"), o.flows) })
	if err != nil {
		return nil, err
	}
	bare, err := spending(server, o.flows, func() (result, error) { return insertBare(ctx, conn, o.flows) })
	if err != nil {
		return nil, err
	}
	disk, err := diskOf(ctx, conn)
	return []result{through, bare, {"disk", "ClickHouse", []string{fmt.Sprintf("%.1f bytes a flow", disk)}}}, err
}

// throughCollector sends flows to a collector with a store of that URL.
func throughCollector(ctx context.Context, dir, url string, flows int) (result, error) {
	c, err := startCollector(ctx, dir, sendersAtOnce, "--data", filepath.Join(dir, "unused"), "--store", url, "--retain", "0")
	if err != nil {
		return result{}, err
	}
	r, err := c.ingest(ctx, flows, "ClickHouse")
	if err != nil {
		return r, err
	}
	_, err = c.stop(ctx)
	return r, err
}

// spending adds to a result what it cost the server.
func spending(server *clickhousetest.Server, flows int, f func() (result, error)) (result, error) {
	before, err := processTime(server.PID())
	if err != nil {
		return result{}, err
	}
	r, err := f()
	if err != nil {
		return r, err
	}
	after, err := processTime(server.PID())
	r.figures = append(r.figures, perEvent(after-before, uint64(flows))+" in the server")
	return r, err
}

// bareColumns are what a row of flow has, without what names its key.
const bareColumns = `slot UInt32, key UInt64, verdict Enum8('unknown' = 0, 'allowed' = 1, 'denied' = 2, 'unanswered' = 3), start Int64, duration UInt32, source_port UInt16,
	connections UInt64, counted UInt8, tcp_flags UInt8, packets_sent UInt64, bytes_sent UInt64, packets_received UInt64, bytes_received UInt64, copy UInt64`

// insertBare inserts rows into a table like the store's, from columns that are
// there already.
func insertBare(ctx context.Context, conn driver.Conn, rows int) (result, error) {
	if err := conn.Exec(ctx, "CREATE TABLE bare ("+bareColumns+") ENGINE = MergeTree PARTITION BY (slot, verdict = 'denied', start < 0) ORDER BY (key, start)"); err != nil {
		return result{}, err
	}
	columns := bareOf(storetest.NewGenerator(1).Flows(bareRows, time.Now(), 10*time.Second))
	rounds := max(1, rows/bareRows)
	began := time.Now()
	for range rounds {
		batch, err := conn.PrepareBatch(ctx, `INSERT INTO bare (slot, key, verdict, start, duration, source_port, connections, counted, tcp_flags, packets_sent, bytes_sent,
			packets_received, bytes_received, copy)`)
		if err != nil {
			return result{}, err
		}
		for i, c := range columns {
			if err := batch.Column(i).Append(c); err != nil {
				return result{}, errors.Join(err, batch.Abort())
			}
		}
		if err := batch.Send(); err != nil {
			return result{}, err
		}
	}
	return result{"the same columns, with the driver alone", "clickhouse-go", []string{
		fmt.Sprintf("%.0f flows/s", float64(rounds*bareRows)/time.Since(began).Seconds()), "",
	}}, nil
}

func bareOf(flows []flow.Flow) []any {
	n := len(flows)
	slot, duration := make([]uint32, n), make([]uint32, n)
	key, connections, number := make([]uint64, n), make([]uint64, n), make([]uint64, n)
	verdict, start, port := make([]int8, n), make([]int64, n), make([]uint16, n)
	counted, flags := make([]uint8, n), make([]uint8, n)
	var counters [4][]uint64
	for i := range counters {
		counters[i] = make([]uint64, n)
	}
	for i := range flows {
		f := &flows[i]
		s, d := f.Src.As4(), f.Dst.As4()
		key[i] = (uint64(s[1])<<48 | uint64(s[2])<<40 | uint64(s[3])<<32 | uint64(d[1])<<16 | uint64(d[2])<<8 | uint64(d[3])) * 0x9e3779b97f4a7c15 // as spread as a hash
		verdict[i], start[i], duration[i] = int8(f.Verdict), f.Start.UnixMilli(), uint32(f.End.Sub(f.Start).Milliseconds())
		port[i], connections[i], counted[i], flags[i], number[i] = f.SourcePort, f.Connections, 1, f.TCPFlags, 1
		for j, v := range [...]uint64{f.Sent.Packets, f.Sent.Bytes, f.Received.Packets, f.Received.Bytes} {
			counters[j][i] = v
		}
	}
	return []any{slot, key, verdict, start, duration, port, connections, counted, flags, counters[0], counters[1], counters[2], counters[3], number}
}

// diskOf is what a flow of the collector's takes, its key included.
func diskOf(ctx context.Context, conn driver.Conn) (float64, error) {
	for _, table := range []string{"flow", "key"} {
		if err := conn.Exec(ctx, "OPTIMIZE TABLE "+table+" FINAL"); err != nil {
			return 0, err
		}
	}
	var bytes, rows uint64
	err := conn.QueryRow(ctx, `SELECT sum(bytes_on_disk), sumIf(rows, table = 'flow') FROM system.parts
		WHERE active AND database = currentDatabase() AND table IN ('flow', 'key', 'batch', 'covered')`).Scan(&bytes, &rows)
	return float64(bytes) / float64(max(1, rows)), err
}
