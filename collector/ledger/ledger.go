// Package ledger keeps the evidence of what a collector has stored.
package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/evidence"
	"github.com/flowaudit/flowaudit/flow"
)

// Kinds of documents.
const (
	kindEntry     = "evidence"           // by sequence and writer
	kindHeads     = "evidence-heads"     // by writer: the newest links at some entry
	kindTombstone = "evidence-tombstone" // by writer: what retention deleted
)

// Store is what the ledger asks of a store.
type Store interface {
	Append(ctx context.Context, batches []flow.Batch) (duplicate []bool, err error)
	Stored(ctx context.Context, keys []flow.BatchKey) ([]bool, error)
	Put(ctx context.Context, documents []store.Document) error
	Documents(ctx context.Context, kind string, since time.Time, yield func(store.Document) bool) error
	Discard(ctx context.Context, kind string, before time.Time) error
	Reports(ctx context.Context, since, until time.Time, yield func(flow.Flow) bool) error
	Timeline(ctx context.Context, sight flow.Sight, since, until time.Time, yield func(flow.Change) bool) error
}

// Options say who keeps evidence where.
type Options struct {
	Key   *evidence.Key
	Store Store
	// Collector names the one of many that share a store; it has a chain of
	// checkpoints of its own.
	Collector string
	Dir       string // of an export's temporary files; empty for the system's
	Log       *slog.Logger
	Now       func() time.Time // the clock, if it is not time.Now
}

// Ledger appends batches to a store together with their evidence. What is in
// the store without its evidence, because the collector was killed in between,
// gets it before anything else is stored.
type Ledger struct {
	o      Options
	writer string

	mu       sync.Mutex
	restored bool
	last     evidence.Link // the newest checkpoint
	time     int64         // of the newest entry, in Unix milliseconds
	agents   map[string]evidence.Link
	sequence uint64  // of the newest entry
	open     *entry  // the newest entry, if it is not known yet what of it was stored
	sealed   *sealed // of the newest entry, which the next one carries; nil if nothing of it was stored
	entry    *entry  // that it is of
}

// headsEvery is after how many entries the newest links are written down: so
// many are read again at the start.
const headsEvery = 256

// New makes a ledger. It reads the store when it is first used.
func New(o Options) *Ledger {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Ledger{o: o, writer: o.Collector + suffix(o.Key), agents: make(map[string]evidence.Link)}
}

// suffix ends the writers of a key: with a new key, chains begin anew.
func suffix(k *evidence.Key) string {
	const digits = 16
	return "@" + evidence.Fingerprint(k.Public()).String()[:digits]
}

// Append stores batches as the store does, and then seals those that are new.
func (l *Ledger) Append(ctx context.Context, batches []flow.Batch) (duplicate []bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.settle(ctx); err != nil {
		return nil, err
	}
	coming, err := l.intend(ctx, batches)
	if err != nil {
		return nil, err
	}
	if len(coming.Keys) == 0 {
		return l.o.Store.Append(ctx, batches)
	}
	if err := l.write(ctx, coming); err != nil {
		return nil, err
	}
	if duplicate, err = l.o.Store.Append(ctx, batches); err != nil {
		return nil, err // what of it is stored all the same is sealed with the next
	}
	l.seal(coming.stored(batches, duplicate))
	return duplicate, nil
}

// intend makes the trees of the batches that are not stored yet.
func (l *Ledger) intend(ctx context.Context, batches []flow.Batch) (*entry, error) {
	keys := make([]flow.BatchKey, len(batches))
	for i := range batches {
		keys[i] = batches[i].Key
	}
	stored, err := l.o.Store.Stored(ctx, keys)
	if err != nil {
		return nil, err
	}
	// A clock that was set back does not reorder entries.
	coming := &entry{Sequence: l.sequence + 1, Time: max(l.o.Now().UnixMilli(), l.time), Sealed: l.sealed}
	seen := make(map[flow.BatchKey]bool)
	for i := range batches {
		if stored[i] || seen[keys[i]] {
			continue
		}
		seen[keys[i]] = true
		coming.Keys, coming.Batches = append(coming.Keys, keys[i]), append(coming.Batches, l.o.Key.NewBatch(&batches[i]))
	}
	return coming, nil
}

// write keeps an entry, which is open then.
func (l *Ledger) write(ctx context.Context, e *entry) error {
	body, err := e.marshal()
	if err != nil {
		return err
	}
	documents := []store.Document{{Kind: kindEntry, ID: entryID(e.Sequence, l.writer), Time: time.UnixMilli(e.Time), Body: body}}
	if e.Sequence%headsEvery == 0 {
		body, err := json.Marshal(&heads{l.sequence, l.last, e.Time, l.agents})
		if err != nil {
			return fmt.Errorf("write evidence: %w", err)
		}
		documents = append(documents, store.Document{Kind: kindHeads, ID: l.writer, Time: time.UnixMilli(e.Time), Body: body})
	}
	if err := l.o.Store.Put(ctx, documents); err != nil {
		return err
	}
	l.sequence, l.time, l.open, l.entry, l.sealed = e.Sequence, e.Time, e, e, nil
	return nil
}

// settle finds out what of the newest entry was stored, whatever kept that from
// being known, and seals it.
func (l *Ledger) settle(ctx context.Context) error {
	if err := l.restore(ctx); err != nil || l.open == nil {
		return err
	}
	stored, err := l.o.Store.Stored(ctx, l.open.Keys)
	if err != nil {
		return err
	}
	l.seal(stored)
	return nil
}

// seal signs a checkpoint of what was stored of the open entry. It is kept with
// the next one; until then it can be made again, the same.
func (l *Ledger) seal(stored []bool) {
	e := l.open
	l.open = nil
	var batches []*evidence.Batch
	s := &sealed{}
	for i, b := range e.Batches {
		if stored[i] {
			l.agents[b.Agent] = b.Follow(l.agents[b.Agent])
			batches = append(batches, b)
			s.Links = append(s.Links, place{i, b.Number, b.Prev})
		}
	}
	if len(batches) == 0 {
		return
	}
	section := l.o.Key.Seal(l.writer, l.last, e.Time, batches)
	s.Signed, l.sealed, l.last = section.Signed, s, section.Link()
}

// Restore reads where the chains are and seals what a collector that was
// killed had stored.
func (l *Ledger) Restore(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.settle(ctx)
}

func (l *Ledger) restore(ctx context.Context) error {
	if l.restored {
		return nil
	}
	h := heads{Agents: make(map[string]evidence.Link)}
	if err := l.readHeads(ctx, &h); err != nil {
		return err
	}
	var newest *entry
	last, agents := h.Last, h.Agents
	err := l.sections(ctx, time.UnixMilli(h.Time), l.writer, func(e *entry) { newest = e }, func(s *evidence.Section) error {
		if s.Number <= h.Last.Number {
			return nil
		}
		if s.Number != last.Number+1 || s.Prev != last.Hash {
			l.o.Log.Error("the store's evidence was altered or cut: a checkpoint does not follow the one before", "checkpoint", s.Number, "before", last.Number)
		}
		last = s.Link()
		for _, b := range s.Links {
			agents[b.Agent] = evidence.Link{Number: b.Number, Hash: b.BatchHead.Hash()}
		}
		return nil
	})
	if err != nil {
		return err
	}
	l.last, l.agents, l.sequence, l.time = last, agents, h.Sequence, h.Time
	if newest != nil {
		l.sequence, l.time, l.open, l.entry = newest.Sequence, newest.Time, newest, newest
	}
	l.restored = true
	l.o.Log.Info("evidence goes on", "writer", l.writer, "checkpoint", l.last.Number, "hash", l.last.Hash.String())
	return nil
}

// readHeads reads the writer's newest links.
func (l *Ledger) readHeads(ctx context.Context, h *heads) error {
	var body []byte
	err := l.o.Store.Documents(ctx, kindHeads, time.Time{}, func(d store.Document) bool {
		if d.ID == l.writer {
			body = append([]byte(nil), d.Body...)
		}
		return true
	})
	if err != nil || body == nil {
		return err
	}
	if err := json.Unmarshal(body, h); err != nil || h.Agents == nil {
		return fmt.Errorf("read newest links: %w: the store's documents were altered", err)
	}
	return nil
}

// sections gives a writer's sections from a time on, by number, and each entry
// to see, if that is set. The newest entry's section is not among them.
func (l *Ledger) sections(ctx context.Context, since time.Time, writer string, see func(*entry), yield func(*evidence.Section) error) error {
	var failed error
	var before *entry
	err := l.o.Store.Documents(ctx, kindEntry, since, func(d store.Document) bool {
		if _, w, _ := strings.Cut(d.ID, "/"); w != writer {
			return true
		}
		e, err := parseEntry(d.Body)
		if err != nil {
			failed = fmt.Errorf("read evidence %s: %w: the store's documents were altered", d.ID, err)
			return false
		}
		if before != nil && e.Sealed != nil && e.Sequence == before.Sequence+1 {
			if failed = yield(before.section(e.Sealed)); failed != nil {
				return false
			}
		}
		if before = e; see != nil {
			see(e)
		}
		return true
	})
	return errors.Join(failed, err)
}
