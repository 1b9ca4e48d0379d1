package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/proto"

	"github.com/flowaudit/flowaudit/agent/spool"
	"github.com/flowaudit/flowaudit/flow"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// disk is the spool, and how batches are written there: as their compressed
// messages.
type disk struct {
	*spool.Spool
	log     *slog.Logger
	encoder *zstd.Encoder
	decoder *zstd.Decoder
	raw     []byte
	packed  []byte
	failing atomic.Bool // the last batch could not be written
}

const (
	// syncInterval bounds what a crash of the machine loses. What a crash of
	// the agent loses is in its memory only.
	syncInterval = time.Second
	// retryInterval is the pause after the disk has not taken a batch.
	retryInterval = time.Second
	// maxMessage bounds what a damaged or foreign record may unfold to.
	maxMessage = 64 << 20
	zstdWindow = 256 << 10
)

func openDisk(o spool.Options) (*disk, error) {
	s, err := spool.Open(o)
	if err != nil {
		return nil, err
	}
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(zstdWindow), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create zstd encoder: %w", err), s.Close())
	}
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxMessage), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create zstd decoder: %w", err), s.Close())
	}
	return &disk{Spool: s, log: o.Log, encoder: encoder, decoder: decoder}, nil
}

// save writes a batch. Only the queue's keeper calls it.
func (d *disk) save(e *entry) error {
	var err error
	if d.raw, err = (proto.MarshalOptions{}).MarshalAppend(d.raw[:0], e.wire()); err != nil {
		return fmt.Errorf("encode batch %s: %w", e.batch.Key, err)
	}
	d.packed = d.encoder.EncodeAll(d.raw, d.packed[:0])
	b := e.batch
	return d.Put(&spool.Record{
		Lane: e.lane(), Sequence: b.Key.Sequence, Start: b.Start, End: b.End, Flows: uint32(len(b.Flows)), Payload: d.packed,
	})
}

// load reads a batch back. Only the backlog's sender calls it.
func (d *disk) load(r *spool.Record) (*flowauditv1.Batch, error) {
	raw, err := d.decoder.DecodeAll(r.Payload, nil)
	if err != nil {
		return nil, fmt.Errorf("unpack batch %d of the spool: %w", r.Sequence, err)
	}
	b := new(flowauditv1.Batch)
	if err := proto.Unmarshal(raw, b); err != nil {
		return nil, fmt.Errorf("decode batch %d of the spool: %w", r.Sequence, err)
	}
	return b, nil
}

// keep writes what is put to disk and forgets there what is acknowledged, until
// ctx ends. Then it writes what is left.
func (q *queue) keep(ctx context.Context) {
	if q.disk == nil {
		return
	}
	sync := time.NewTicker(syncInterval)
	defer sync.Stop()
	for {
		changed, _ := q.wait()
		failed := !q.saveAll() // before the acknowledgements, which may be of what it saves
		q.forget()
		pause := (<-chan time.Time)(nil)
		if failed {
			pause, changed = time.After(retryInterval), nil
		}
		select {
		case <-changed:
		case <-pause:
		case <-sync.C:
			q.disk.warn("what waits may not outlast a crash of the machine", q.disk.Sync())
		case <-ctx.Done():
			q.saveAll()
			q.forget()
			q.disk.warn("what waits may not outlast a crash of the machine", q.disk.Sync())
			q.disk.warn("the spool is not closed", q.disk.Close())
			return
		}
	}
}

// saveAll writes what is in memory only; false if the disk takes nothing.
func (q *queue) saveAll() bool {
	for e := q.unsaved(); e != nil; e = q.unsaved() {
		err := q.disk.save(e)
		q.saved(e, err)
		switch failed := q.disk.failing.Swap(err != nil); {
		case err == nil && failed:
			q.disk.log.Info("the disk takes batches again")
		case err != nil && !failed:
			q.disk.log.Error("batches wait in memory only: make room on the disk, or mount it writable", "error", err)
		}
		if err != nil {
			return false
		}
	}
	return true
}

// unsaved gives the oldest batch that is not on disk; nil if there is none.
func (q *queue) unsaved() *entry {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, e := range q.entries {
		if !e.spooled {
			e.saving = true
			return e
		}
	}
	return nil
}

// saved notes that a batch is on disk, or why not.
func (q *queue) saved(e *entry, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	defer q.wake()
	e.saving, e.spooled = false, err == nil
	if err != nil {
		return
	}
	key := e.batch.Key
	q.fill.Store(int32(100 * q.disk.Bytes() / q.disk.MaxBytes))
	i, waits := q.find(key)
	if !waits {
		q.acked = append(q.acked, spool.Record{Lane: e.lane(), Epoch: key.Epoch, Sequence: key.Sequence})
		return
	}
	if e.late && !e.sent {
		q.remove(i)
	}
}

// forget takes from the disk what is acknowledged.
func (q *queue) forget() {
	q.mu.Lock()
	acked := q.acked
	q.mu.Unlock()
	for i := range acked {
		q.disk.warn("an acknowledged batch is not forgotten", q.disk.Ack(&acked[i]))
	}
	if len(acked) == 0 {
		return
	}
	q.mu.Lock()
	if q.acked = q.acked[len(acked):]; len(q.acked) == 0 {
		q.acked = nil
	}
	q.wake()
	q.mu.Unlock()
	q.fill.Store(int32(100 * q.disk.Bytes() / q.disk.MaxBytes))
}

func (d *disk) warn(what string, err error) {
	if err != nil {
		d.log.Warn(what, "error", err)
	}
}

// gap is a loss of the spool as coverage has it.
func spoolGap(l spool.Loss) flow.Gap {
	return flow.Gap{Kind: flow.GapQueue, Start: l.Start, End: l.End, Lost: l.Flows, Detail: l.Detail}
}
