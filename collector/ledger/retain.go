package ledger

import (
	"context"
	"time"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/evidence"
)

// Bury signs what retention is going to delete, or has deleted for its size:
// flows that were stored before. A zero time is none.
func (l *Ledger) Bury(ctx context.Context, flows, denied time.Time) error {
	t := evidence.Tombstone{Writer: l.writer, Time: l.o.Now().UnixMilli(), Flows: milliseconds(flows), Denied: milliseconds(denied), Reason: "retention"}
	if t.Flows == 0 && t.Denied == 0 {
		return nil
	}
	return l.o.Store.Put(ctx, []store.Document{{Kind: kindTombstone, ID: l.writer, Time: l.o.Now(), Body: l.o.Key.Bury(t).Marshal()}})
}

func milliseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// Discard deletes evidence of flows that were all stored before.
func (l *Ledger) Discard(ctx context.Context, before time.Time) error {
	if before.IsZero() {
		return nil
	}
	return l.o.Store.Discard(ctx, kindEntry, before)
}
