package collector

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protodelim"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// relay carries what rules could be about from the collectors that do not tell
// to the one that does, by the store that they share: a document a second and
// collector.
type relay struct {
	store    store.Store
	instance string // tells this process' documents apart

	mu      sync.Mutex
	body    bytes.Buffer
	flows   int
	number  uint64
	dropped uint64
}

const (
	// maxRelayed bounds the flows of one document.
	maxRelayed = 20_000
	// maxBatchText bounds a batch as it is read.
	maxBatchText = 64 << 20
	// relayOverlap is how far the clocks of collectors, and their writes, may
	// lie apart.
	relayOverlap = 30 * time.Second
	// takeOver is how far back the collector that begins to tell reads.
	takeOver = 10 * time.Minute
)

// add takes in the flows of a batch that matter, and what it says of its node.
func (r *relay) add(flows []flow.Flow, b *flow.Batch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.flows+len(flows) > maxRelayed {
		r.dropped += uint64(len(flows))
		flows = nil
	}
	r.flows += len(flows)
	told := flow.Batch{Key: b.Key, Node: b.Node, Scope: b.Scope, Start: b.Start, End: b.End, Flows: flows, Gaps: b.Gaps}
	_, _ = protodelim.MarshalTo(&r.body, flowauditv1.FromBatch(&told)) // a buffer takes everything
}

// flush writes what was taken in.
func (r *relay) flush(ctx context.Context, now time.Time) error {
	r.mu.Lock()
	body := bytes.Clone(r.body.Bytes())
	flows := r.flows
	r.body.Reset()
	r.flows = 0
	r.number++
	id := fmt.Sprintf("%s-%d", r.instance, r.number)
	r.mu.Unlock()
	if len(body) == 0 {
		return nil
	}
	if err := r.store.Put(ctx, []store.Document{{Kind: store.ShortLived, ID: id, Time: now, Body: body}}); err != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.flows+flows > maxRelayed {
			r.dropped += uint64(flows)
			return err
		}
		// What came meanwhile is later.
		r.flows += flows
		body = append(body, r.body.Bytes()...)
		r.body.Reset()
		r.body.Write(body)
		return err
	}
	return nil
}

// lost is how many flows were not relayed.
func (r *relay) lost() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dropped
}

// intake reads what others relay, each document once.
type intake struct {
	store store.Store
	seen  map[string]time.Time
	since time.Time
}

func (n *intake) read(ctx context.Context, now time.Time) (batches []flow.Batch, err error) {
	if n.since.IsZero() {
		n.since, n.seen = now.Add(-takeOver), make(map[string]time.Time)
	}
	var bad error
	err = n.store.Documents(ctx, store.ShortLived, n.since, func(d store.Document) bool {
		if _, known := n.seen[d.ID]; known {
			return true
		}
		n.seen[d.ID] = d.Time
		more, err := relayed(d.Body)
		batches, bad = append(batches, more...), errors.Join(bad, err)
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("read what other collectors tell: %w", err)
	}
	if from := now.Add(-relayOverlap); from.After(n.since) {
		n.since = from
		for id, at := range n.seen {
			if at.Before(from) {
				delete(n.seen, id)
			}
		}
	}
	return batches, bad
}

// relayed reads the batches of a document.
func relayed(body []byte) (out []flow.Batch, err error) {
	r := bytes.NewReader(body)
	for {
		var m flowauditv1.Batch
		err := protodelim.UnmarshalOptions{MaxSize: maxBatchText}.UnmarshalFrom(r, &m)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, fmt.Errorf("read what another collector tells: %w", err)
		}
		b, _, _, err := m.ToBatch()
		if err != nil {
			return out, fmt.Errorf("read what another collector tells: %w", err)
		}
		out = append(out, b)
	}
}
