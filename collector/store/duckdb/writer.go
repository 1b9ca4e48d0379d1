package duckdb

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"reflect"
	"unsafe"

	"github.com/duckdb/duckdb-go/v2"
	"github.com/duckdb/duckdb-go/v2/mapping"

	"github.com/flowaudit/flowaudit/flow"
)

// writer is the one connection that writes. Flows go in by column: a chunk is
// filled in DuckDB's own memory and appended whole. The driver's row appender
// takes about ten times as long, for each value travels as an interface.
type writer struct {
	conn  *sql.Conn
	raw   mapping.Connection
	types []mapping.LogicalType
	// One chunk for each table that flows go into.
	allowed, denied chunk
}

// chunk is filled, appended and filled again.
type chunk struct {
	mapping.DataChunk
	vectors
}

// vectors are those of a chunk, in the order of the flow table.
type vectors struct {
	key         []uint32
	start       []int64
	duration    []uint32
	sourcePort  []uint16
	connections []uint64
	counted     []uint8
	tcpFlags    []uint8
	counters    [4][]uint64 // packets and bytes sent, packets and bytes received
}

// vectorSize is STANDARD_VECTOR_SIZE, what a chunk holds.
const vectorSize = 2048

func newWriter(ctx context.Context, db *sql.DB) (*writer, error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, fmt.Errorf("open writing connection: %w", err)
	}
	w := &writer{conn: conn}
	if err := conn.Raw(func(c any) (err error) { w.raw, err = handleOf(c); return err }); err != nil {
		return nil, errors.Join(fmt.Errorf("open writing connection: %w", err), conn.Close())
	}
	for _, t := range []mapping.Type{
		mapping.TypeUInteger, mapping.TypeBigInt, mapping.TypeUInteger, mapping.TypeUSmallInt, mapping.TypeUBigInt, mapping.TypeUTinyInt,
		mapping.TypeUTinyInt, mapping.TypeUBigInt, mapping.TypeUBigInt, mapping.TypeUBigInt, mapping.TypeUBigInt,
	} {
		w.types = append(w.types, mapping.CreateLogicalType(t))
	}
	w.allowed, w.denied = newChunk(w.types), newChunk(w.types)
	return w, nil
}

func newChunk(types []mapping.LogicalType) chunk {
	c := mapping.CreateDataChunk(types)
	v := vectors{
		key: vector[uint32](c, 0), start: vector[int64](c, 1), duration: vector[uint32](c, 2),
		sourcePort: vector[uint16](c, 3), connections: vector[uint64](c, 4), counted: vector[uint8](c, 5),
		tcpFlags: vector[uint8](c, 6),
	}
	for i := range v.counters {
		v.counters[i] = vector[uint64](c, 7+i)
	}
	return chunk{c, v}
}

// handleOf gets DuckDB's handle out of the driver's connection. The driver has
// no exported way to append chunks of one's own; its field is checked by name
// and type, so that a new version of it fails here and not in memory.
func handleOf(c any) (mapping.Connection, error) {
	conn, ok := c.(*duckdb.Conn)
	if !ok {
		return mapping.Connection{}, fmt.Errorf("connection is a %T", c)
	}
	field := reflect.ValueOf(conn).Elem().FieldByName("conn")
	if !field.IsValid() || field.Type() != reflect.TypeFor[mapping.Connection]() {
		return mapping.Connection{}, errors.New("the DuckDB driver has changed its connection: this version cannot be used")
	}
	return *(*mapping.Connection)(field.Addr().UnsafePointer()), nil
}

// vector gives a column's memory. It stays where it is while the chunk lives.
func vector[T any](chunk mapping.DataChunk, i int) []T {
	v := mapping.DataChunkGetVector(chunk, mapping.IdxT(i))
	return unsafe.Slice((*T)(mapping.VectorGetData(v)), vectorSize)
}

func (w *writer) close() error {
	mapping.DestroyDataChunk(&w.allowed.DataChunk)
	mapping.DestroyDataChunk(&w.denied.DataChunk)
	for i := range w.types {
		mapping.DestroyLogicalType(&w.types[i])
	}
	return w.conn.Close()
}

// transaction runs f between BEGIN and COMMIT: all that f writes is kept, or
// nothing. A transaction may write to one attached database only.
func (w *writer) transaction(ctx context.Context, f func() error) error {
	if _, err := w.conn.ExecContext(ctx, "BEGIN"); err != nil {
		return fmt.Errorf("begin transaction: %w", err)
	}
	err := f()
	if err == nil {
		if _, err = w.conn.ExecContext(ctx, "COMMIT"); err == nil {
			return nil
		}
		err = fmt.Errorf("commit: %w", err)
	}
	// A transaction that failed may be gone already: then there is nothing to roll back.
	_, _ = w.conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK")
	return err
}

// appender adds chunks to a table within the connection's transaction.
type appender struct {
	c *chunk
	a mapping.Appender
	n int // rows in the chunk
}

func (w *writer) appender(database, table string, c *chunk) (*appender, error) {
	p := &appender{c: c}
	if mapping.AppenderCreateExt(w.raw, database, "main", table, &p.a) == mapping.StateError {
		err := errors.New(mapping.AppenderError(p.a))
		mapping.AppenderDestroy(&p.a)
		return nil, fmt.Errorf("append flows: %w", err)
	}
	return p, nil
}

// add puts a flow into the chunk.
func (p *appender) add(key uint32, f *flow.Flow) error {
	c, i := &p.c.vectors, p.n
	start := f.Start.UnixMilli()
	c.key[i] = key
	c.start[i] = start
	c.duration[i] = uint32(min(max(0, f.End.UnixMilli()-start), 1<<32-1))
	c.sourcePort[i] = f.SourcePort
	c.connections[i] = f.Connections
	c.counted[i] = 0
	if f.Counted {
		c.counted[i] = 1
	}
	c.tcpFlags[i] = f.TCPFlags
	c.counters[0][i], c.counters[1][i] = f.Sent.Packets, f.Sent.Bytes
	c.counters[2][i], c.counters[3][i] = f.Received.Packets, f.Received.Bytes
	if p.n++; p.n == vectorSize {
		return p.flushChunk()
	}
	return nil
}

func (p *appender) flushChunk() error {
	if p.n == 0 {
		return nil
	}
	mapping.DataChunkSetSize(p.c.DataChunk, mapping.IdxT(p.n))
	p.n = 0
	if mapping.AppendDataChunk(p.a, p.c.DataChunk) == mapping.StateError {
		return fmt.Errorf("append flows: %s", mapping.AppenderError(p.a))
	}
	return nil
}

// close writes what is left. The transaction decides whether it stays.
func (p *appender) close() error {
	err := p.flushChunk()
	if mapping.AppenderClose(p.a) == mapping.StateError && err == nil {
		err = fmt.Errorf("append flows: %s", mapping.AppenderError(p.a))
	}
	mapping.AppenderDestroy(&p.a)
	return err
}

// insertRows inserts dictionary entries with the driver's row appender, which
// is fast enough for what comes once.
func (w *writer) insertRows(database, table string, rows [][]driver.Value) error {
	if len(rows) == 0 {
		return nil
	}
	return w.conn.Raw(func(c any) error {
		a, err := duckdb.NewAppender(c.(*duckdb.Conn), database, "main", table)
		if err != nil {
			return fmt.Errorf("insert into %s: %w", table, err)
		}
		for _, r := range rows {
			if err := a.AppendRow(r...); err != nil {
				return errors.Join(fmt.Errorf("insert into %s: %w", table, err), a.Close())
			}
		}
		if err := a.Close(); err != nil {
			return fmt.Errorf("insert into %s: %w", table, err)
		}
		return nil
	})
}
