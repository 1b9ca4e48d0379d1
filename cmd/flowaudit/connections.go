package main

import (
	"bufio"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"strings"
)

// connectionRows reads a table of connections.
type connectionRows struct {
	name   string
	csv    *csv.Reader
	column [4]int // of src, dst, protocol and port
}

// connectionRow is one connection as the table has it.
type connectionRow struct {
	fields [4]string // src, dst, protocol, port
	line   int
	short  string // the column that the row lacks
}

// columns are what a connection needs, in the order of the answer.
func columns() [4]string { return [4]string{"src", "dst", "protocol", "port"} }

func readConnections(r io.Reader, name string) (*connectionRows, error) {
	buffered := bufio.NewReaderSize(r, 1<<16)
	if mark, _ := buffered.Peek(3); string(mark) == "\xef\xbb\xbf" { // which Excel writes
		_, _ = buffered.Discard(3)
	}
	c := &connectionRows{name: name, csv: csv.NewReader(buffered)}
	c.csv.ReuseRecord, c.csv.FieldsPerRecord, c.csv.LazyQuotes = true, -1, true
	header, err := c.csv.Read()
	if errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s is empty: the first line names the columns src,dst,protocol,port", name)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	for i, want := range columns() {
		c.column[i] = -1
		for at, have := range header {
			if strings.EqualFold(strings.TrimSpace(have), want) {
				c.column[i] = at
				break
			}
		}
		if c.column[i] < 0 {
			return nil, fmt.Errorf("%s:1: the header lacks the column %s: the first line names src,dst,protocol,port", name, want)
		}
	}
	return c, nil
}

// batches reads all rows. Each batch goes to who decides it and, in order, to
// who writes it.
func (c *connectionRows) batches(ctx context.Context, work, order chan<- *batch) error {
	for more := true; more; {
		b := &batch{rows: make([]connectionRow, 0, batchRows), done: make(chan struct{})}
		for more && len(b.rows) < batchRows {
			var row connectionRow
			var err error
			if row, more, err = c.next(); err != nil {
				b.err = err
				break
			}
			if more {
				b.rows = append(b.rows, row)
			}
		}
		b.offset = c.csv.InputOffset()
		for _, to := range []chan<- *batch{order, work} {
			select {
			case to <- b:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
}

// next reads a row; more is false at the end.
func (c *connectionRows) next() (row connectionRow, more bool, err error) {
	record, err := c.csv.Read()
	if errors.Is(err, io.EOF) {
		return row, false, nil
	}
	if err != nil {
		return row, false, fmt.Errorf("read connections: %s: %w", c.name, err)
	}
	row.line, _ = c.csv.FieldPos(0)
	for i, at := range c.column {
		if at < len(record) {
			row.fields[i] = record[at]
		} else if row.short == "" {
			row.short = columns()[i]
		}
	}
	return row, true, nil
}
