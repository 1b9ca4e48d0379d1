package agent

import (
	"errors"
	"fmt"
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
	options spool.Options
	spool   atomic.Pointer[spool.Spool] // nil until it could be opened
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
	// maxUnpacked bounds what a damaged or foreign record may unfold to.
	maxUnpacked = 64 << 20
	zstdWindow  = 256 << 10
)

// openDisk opens the spool. A disk that takes nothing is no error: it is tried
// again with each batch.
func openDisk(o spool.Options) (*disk, error) {
	d := &disk{options: o}
	var err error
	d.encoder, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(zstdWindow), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, fmt.Errorf("create zstd encoder: %w", err)
	}
	d.decoder, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxUnpacked), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, fmt.Errorf("create zstd decoder: %w", err)
	}
	if _, err := d.opened(); errors.Is(err, spool.ErrLocked) {
		return nil, err
	} else if err != nil {
		d.failed(err)
	}
	return d, nil
}

// opened gives the spool, which is opened now if it could not be before.
func (d *disk) opened() (*spool.Spool, error) {
	if s := d.spool.Load(); s != nil {
		return s, nil
	}
	s, err := spool.Open(d.options)
	if err != nil {
		return nil, err
	}
	d.spool.Store(s)
	return s, nil
}

// failed notes whether the disk takes batches, and says so when that changes.
func (d *disk) failed(err error) {
	switch failed := d.failing.Swap(err != nil); {
	case err == nil && failed:
		d.options.Log.Info("the disk takes batches again")
	case err != nil && !failed:
		d.options.Log.Error("batches wait in memory only: make room on the disk, or mount it writable", "error", err)
	}
}

func (d *disk) behind(live int) bool {
	s := d.spool.Load()
	return s != nil && s.Behind(live)
}

func (d *disk) next(before uint64) (r spool.Record, ok bool, err error) {
	if s := d.spool.Load(); s != nil {
		return s.Next(before)
	}
	return r, false, nil
}

func (d *disk) rewind() {
	if s := d.spool.Load(); s != nil {
		s.Rewind()
	}
}

func (d *disk) sync() {
	if s := d.spool.Load(); s != nil {
		d.warn("what waits may not outlast a crash of the machine", s.Sync())
	}
}

func (d *disk) close() {
	if s := d.spool.Load(); s != nil {
		d.warn("the spool is not closed", s.Close())
	}
}

// bytes is what waits on disk.
func (d *disk) bytes() int64 {
	if s := d.spool.Load(); s != nil {
		return s.Bytes()
	}
	return 0
}

// since is when the oldest batch was put that waits on disk; 0 if none does.
func (d *disk) since() int64 {
	s := d.spool.Load()
	if s == nil {
		return 0
	}
	if oldest := s.Oldest(); !oldest.IsZero() {
		return oldest.UnixNano()
	}
	return 0
}

// covered is up to when an earlier run's batches tell.
func (d *disk) covered() time.Time {
	if s := d.spool.Load(); s != nil {
		return s.Covered()
	}
	return time.Time{}
}

// save writes a batch. Only the queue's keeper calls it.
func (d *disk) save(e *entry) error {
	s, err := d.opened()
	if err != nil {
		return err
	}
	if d.raw, err = (proto.MarshalOptions{}).MarshalAppend(d.raw[:0], e.wire()); err != nil {
		return fmt.Errorf("encode batch %s: %w: %w", e.batch.Key, errUnsendable, err)
	}
	d.packed = d.encoder.EncodeAll(d.raw, d.packed[:0])
	b := e.batch
	start, end := span(b)
	covered := b.End
	if !b.Start.Before(b.End) { // a part, or told early: others of its time may follow
		covered = time.Time{}
	}
	return s.Put(&spool.Record{
		Lane: e.lane(), Sequence: b.Key.Sequence, Start: start, End: end, Covered: covered, Flows: uint32(len(b.Flows)), Payload: d.packed,
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

// warn tells of what does not keep batches from being sent.
func (d *disk) warn(what string, err error) {
	if err != nil {
		d.options.Log.Warn(what, "error", err)
	}
}

// gap is a loss of the spool as coverage has it.
func spoolGap(l spool.Loss) flow.Gap {
	return flow.Gap{Kind: flow.GapQueue, Start: l.Start, End: l.End, Lost: l.Flows, Detail: l.Detail}
}
