package spool

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"time"
)

// Record is one batch on disk.
type Record struct {
	Lane     Lane
	Epoch    uint64 // of the run that made it
	Sequence uint64 // within the epoch
	// Start and End bound the time that the batch tells of; milliseconds are kept.
	Start, End time.Time
	// Covered is up to when this batch and those before it tell of everything;
	// zero if it says nothing of that.
	Covered time.Time
	Flows   uint32
	Payload []byte // what it was put with; of the spool's own memory until the next call

	segment *segment
}

// Lane says what goes first when the spool is full.
type Lane uint8

// The lanes.
const (
	Low  Lane = iota // dropped first
	High             // dropped when nothing of Low is left, and sent first
	lanes
)

func (l Lane) letter() byte { return "lh"[l] }

// A segment file is a header and records. Both have checksums of their own, and
// a record's header has another than its payload: a damaged payload costs that
// record, a damaged header the search for the next one.
const (
	headerSize = 8 + 8 + 4                         // magic, covered, checksum
	recordSize = 4 + 4 + 8 + 8 + 8 + 8 + 8 + 4 + 8 // magic, length, epoch, sequence, start, end, covered, flows, checksums
	maxPayload = 16 << 20

	segmentMagic = "faspool1"
	recordMagic  = "FaR1"
)

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// header makes a segment's header. Covered is up to when batches were put.
func header(covered time.Time) []byte {
	b := make([]byte, 0, headerSize)
	b = append(b, segmentMagic...)
	b = binary.LittleEndian.AppendUint64(b, uint64(millis(covered)))
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli()))
}

// readHeader reads a segment's header; zero if it is none.
func readHeader(b []byte) (covered time.Time) {
	const sum = headerSize - 4
	if len(b) < headerSize || string(b[:8]) != segmentMagic || binary.LittleEndian.Uint32(b[sum:]) != crc32.Checksum(b[:sum], castagnoli()) {
		return time.Time{}
	}
	return fromMillis(int64(binary.LittleEndian.Uint64(b[8:])))
}

// appendRecord appends a record as it is on disk.
func appendRecord(b []byte, r *Record) []byte {
	at := len(b)
	b = append(b, recordMagic...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(r.Payload)))
	b = binary.LittleEndian.AppendUint64(b, r.Epoch)
	b = binary.LittleEndian.AppendUint64(b, r.Sequence)
	b = binary.LittleEndian.AppendUint64(b, uint64(millis(r.Start)))
	b = binary.LittleEndian.AppendUint64(b, uint64(millis(r.End)))
	b = binary.LittleEndian.AppendUint64(b, uint64(millis(r.Covered)))
	b = binary.LittleEndian.AppendUint32(b, r.Flows)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(r.Payload, castagnoli()))
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[at:], castagnoli()))
	return append(b, r.Payload...)
}

// found is what stands at a place of a segment.
type found struct {
	Record
	next    int  // where to go on
	whole   bool // the payload is there and its checksum is right
	skipped int  // bytes before the record that belong to none
	torn    bool // the segment ends within the record
}

// find gives the first record at or after a place; false if there is none. What
// it gives that is not whole has the record's header, and no payload.
func find(b []byte, at int) (f found, ok bool) {
	for from := at; from < len(b); from++ {
		i := bytes.Index(b[from:], []byte(recordMagic))
		if i < 0 {
			return found{}, false
		}
		from += i
		if f, ok = readRecord(b, from); ok {
			f.skipped = from - at
			return f, true
		}
	}
	return found{}, false
}

func readRecord(b []byte, at int) (f found, ok bool) {
	const sum = recordSize - 4
	h := b[at:]
	if len(h) < recordSize || binary.LittleEndian.Uint32(h[sum:]) != crc32.Checksum(h[:sum], castagnoli()) {
		return found{}, false
	}
	length := binary.LittleEndian.Uint32(h[4:])
	if length > maxPayload {
		return found{}, false
	}
	f.Epoch, f.Sequence = binary.LittleEndian.Uint64(h[8:]), binary.LittleEndian.Uint64(h[16:])
	moment := func(at int) time.Time { return fromMillis(int64(binary.LittleEndian.Uint64(h[at:]))) }
	f.Start, f.End, f.Covered = moment(24), moment(32), moment(40)
	f.Flows = binary.LittleEndian.Uint32(h[48:])
	f.next = len(b)
	if f.torn = len(h)-recordSize < int(length); f.torn {
		return f, true
	}
	f.next = at + recordSize + int(length)
	payload := b[at+recordSize : f.next]
	if f.whole = binary.LittleEndian.Uint32(h[52:]) == crc32.Checksum(payload, castagnoli()); f.whole {
		f.Payload = payload
	}
	return f, true
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}
