package agent

import (
	"context"
	"errors"
	"time"

	"github.com/flowaudit/flowaudit/agent/spool"
)

// keep writes what is put to disk and forgets there what is acknowledged, until
// ctx ends. Then it writes what is left.
func (q *queue) keep(ctx context.Context) {
	if q.disk == nil {
		return
	}
	defer q.disk.close()
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
			q.disk.sync()
		case <-ctx.Done():
			q.saveAll()
			q.forget()
			q.disk.sync()
			return
		}
	}
}

// saveAll writes what is in memory only; false if the disk takes nothing.
func (q *queue) saveAll() bool {
	for e := q.unsaved(); e != nil; e = q.unsaved() {
		err := q.disk.save(e)
		if errors.Is(err, errUnsendable) { // that is not the disk's fault
			q.saved(e, err)
			q.refuse(e.batch.Key, err.Error())
			continue
		}
		q.saved(e, err)
		q.disk.failed(err)
		q.measure()
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
			q.saving = e
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
	q.saving, e.spooled = nil, err == nil
	if err != nil {
		return
	}
	key := e.batch.Key
	i, waits := q.find(key)
	if !waits {
		q.acked = append(q.acked, spool.Record{Lane: e.lane(), Epoch: key.Epoch, Sequence: key.Sequence})
		return
	}
	if e.late && !e.sent {
		q.remove(i)
	}
	q.demote()
}

// forget takes from the disk what is acknowledged.
func (q *queue) forget() {
	q.mu.Lock()
	acked := q.acked
	q.mu.Unlock()
	if len(acked) == 0 {
		return
	}
	for i := range acked {
		if s := q.disk.spool.Load(); s != nil {
			q.disk.warn("an acknowledged batch is not forgotten", s.Ack(&acked[i]))
		}
	}
	q.measure()
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.acked = q.acked[len(acked):]; len(q.acked) == 0 {
		q.acked = nil
	}
	q.wake()
}

// measure notes how full the disk is, for who cannot wait for it. Nobody may
// hold the queue's lock while he waits for the disk's.
func (q *queue) measure() {
	q.bytes.Store(q.disk.bytes())
	q.since.Store(q.disk.since())
}
