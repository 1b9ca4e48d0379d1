package collector

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/flowaudit/flowaudit/flow"
)

// outcome is what done was told of a batch.
type outcome struct {
	duplicate bool
	err       error
}

// commits runs a committer over what is submitted before it runs.
func commits(t *testing.T, store *memory, batches ...flow.Batch) (outcomes map[uint64]outcome, published []uint64) {
	t.Helper()
	outcomes = make(map[uint64]outcome)
	c := newCommitter(store, func(stored []flow.Batch) {
		for _, b := range stored {
			published = append(published, b.Key.Sequence)
		}
	})
	for _, b := range batches {
		err := c.submit(t.Context(), submission{b, func(duplicate bool, err error) {
			if _, twice := outcomes[b.Key.Sequence]; twice && !duplicate {
				t.Errorf("batch %d: told twice", b.Key.Sequence)
			}
			outcomes[b.Key.Sequence] = outcome{duplicate, err}
		}})
		if err != nil {
			t.Fatal(err)
		}
	}
	close(c.waiting)
	c.run(t.Context())
	return outcomes, published
}

func TestWhatWaitsIsCommittedTogether(t *testing.T) {
	store := &memory{}
	outcomes, published := commits(t, store, batchOf(1), batchOf(2), batchOf(3))
	if len(store.groups) != 1 || !slices.Equal(published, []uint64{1, 2, 3}) || len(outcomes) != 3 {
		t.Errorf("groups %v, published %v, outcomes %v; want one group of three", store.groups, published, outcomes)
	}
}

// TestAGroupIsBounded: so that one transaction's memory and delay are.
func TestAGroupIsBounded(t *testing.T) {
	store := &memory{}
	big := make([]flow.Flow, maxGroupFlows/2+1)
	commits(t, store, batchOf(1, big...), batchOf(2, big...), batchOf(3))
	if len(store.groups) != 2 || !slices.Equal(store.groups[0], []uint64{1, 2}) || !slices.Equal(store.groups[1], []uint64{3}) {
		t.Errorf("groups %v, want one of two that reaches the bound, and the rest", store.groups)
	}
}

// TestABadBatchIsAlone: what the store cannot take must not cost its neighbours.
func TestABadBatchIsAlone(t *testing.T) {
	bad := errors.New("value out of range")
	store := &memory{onAppend: func(batches []flow.Batch) error {
		if slices.ContainsFunc(batches, func(b flow.Batch) bool { return b.Key.Sequence == 2 }) {
			return bad
		}
		return nil
	}}
	outcomes, published := commits(t, store, batchOf(1), batchOf(2), batchOf(3))
	if got := store.stored(); !slices.Equal(got, []uint64{1, 3}) || !slices.Equal(published, got) {
		t.Errorf("stored %v, published %v; want the two others", got, published)
	}
	if outcomes[1].err != nil || outcomes[3].err != nil || !errors.Is(outcomes[2].err, bad) || outcomes[2].err.Error() != "store batch c/node-1/1/2: value out of range" {
		t.Errorf("outcomes %v, want an error that names batch 2", outcomes)
	}
}

func TestWhatWasStoredBeforeIsNotPublished(t *testing.T) {
	store := &memory{}
	commits(t, store, batchOf(1))
	outcomes, published := commits(t, store, batchOf(1), batchOf(2), batchOf(2))
	if !slices.Equal(published, []uint64{2}) {
		t.Errorf("published %v, want batch 2 once", published)
	}
	if !outcomes[1].duplicate || outcomes[1].err != nil {
		t.Errorf("batch 1: %v, want a duplicate", outcomes[1])
	}
}

func TestNothingIsPublishedThatIsNotStored(t *testing.T) {
	outcomes, published := commits(t, &memory{onAppend: func([]flow.Batch) error { return errDisk }}, batchOf(1), batchOf(2))
	if len(published) != 0 || !errors.Is(outcomes[1].err, errDisk) || !errors.Is(outcomes[2].err, errDisk) {
		t.Errorf("published %v, outcomes %v", published, outcomes)
	}
}

// TestStoppingDrains: what agents have handed over is stored and acknowledged,
// then the store is closed.
func TestStoppingDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := make(chan struct{})
		store := &memory{onAppend: func([]flow.Batch) error { <-disk; return nil }}
		c := serve(t, store)
		stream := c.report(t)
		send(t, stream, batchOf(1, denied(1)...), batchOf(2, denied(1)...))
		synctest.Wait()
		c.stop()
		synctest.Wait()
		close(disk)
		for range 2 {
			receiveAck(t, stream)
		}
		if ack, err := stream.Recv(); err == nil {
			t.Errorf("the stream goes on with %v", ack)
		}
		c.close(t)
		if got := store.stored(); !slices.Equal(got, []uint64{1, 2}) {
			t.Errorf("stored %v, want both", got)
		}
	})
}

// TestStoppingWaitsForTheStore: longer than for agents, who have it all still.
func TestStoppingWaitsForTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := make(chan struct{})
		store := &memory{onAppend: func([]flow.Batch) error { <-disk; return nil }}
		c := serve(t, store)
		stream := c.report(t)
		send(t, stream, batchOf(1, denied(1)...), batchOf(2, denied(1)...))
		synctest.Wait()
		c.stop()
		if ack, err := stream.Recv(); err == nil { // after a second, by the bubble's clock
			t.Errorf("acknowledged what is not stored: %v", ack)
		}
		synctest.Wait()
		select {
		case err := <-c.done:
			t.Errorf("it ended, with %v, while the store was writing", err)
		default:
		}
		close(disk)
		c.close(t)
		if got := store.stored(); !slices.Equal(got, []uint64{1, 2}) {
			t.Errorf("stored %v, want both", got)
		}
	})
}

// TestStoppingBeforeItBegins is no error, however early the signal comes.
func TestStoppingBeforeItBegins(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	stop()
	for range 20 {
		store := &memory{}
		o := Options{Store: store, Log: slog.New(slog.DiscardHandler), Listen: ListenOptions{Address: "127.0.0.1:0"}}
		if err := Run(ctx, o); err != nil || !store.closed {
			t.Fatalf("%v, store closed: %t", err, store.closed)
		}
	}
}
