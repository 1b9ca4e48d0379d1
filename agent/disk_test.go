package agent

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/flowaudit/flowaudit/agent/spool"
	"github.com/flowaudit/flowaudit/flow"
)

// diskQueue is a queue on disk, and what keeps it there.
type diskQueue struct {
	*queue
	t    *testing.T
	lost []flow.Gap
	stop func()
}

// keepIn opens a queue in a directory, as an agent that starts does.
func keepIn(t *testing.T, dir string, maxFlows int) *diskQueue {
	t.Helper()
	k := &diskQueue{t: t}
	epoch := rand.Uint64()
	d, err := openDisk(spool.Options{
		Dir: dir, Epoch: epoch, MaxBytes: spool.MinBytes, MaxAge: time.Hour, Log: slog.New(slog.DiscardHandler),
		Lost: func(l spool.Loss) { k.lost = append(k.lost, spoolGap(l)) },
	})
	if err != nil {
		t.Fatal(err)
	}
	k.queue = newQueue("c", "n1", epoch, maxFlows)
	k.disk = d
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { k.keep(ctx); close(done) }()
	k.stop = func() { cancel(); <-done }
	t.Cleanup(k.stop)
	return k
}

// until waits for a state of the queue.
func (k *diskQueue) until(what string, want func() bool) {
	k.t.Helper()
	for deadline := time.After(time.Minute); ; {
		changed, _ := k.wait()
		if want() {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			k.t.Fatalf("never: %s", what)
		}
	}
}

func (k *diskQueue) safe() bool { _, _, unsafe := k.waiting(); return unsafe == 0 }

// drain sends everything to a collector that takes everything.
func (k *diskQueue) drain() *collector {
	k.t.Helper()
	c := &collector{answer: func(_ int, s *fakeStream) error { go s.acknowledge(); return nil }}
	k.close()
	if err := newStream(c, k.queue).run(k.t.Context()); err != nil {
		k.t.Fatal(err)
	}
	return c
}

func flowBatch(n int, v flow.Verdict) *flow.Batch {
	b := batchOf(n, 0)
	b.Start, b.End = clock(0), clock(10)
	for i := range b.Flows {
		f := &b.Flows[i]
		f.Src, f.Dst, f.Port, f.Protocol, f.Verdict = web, far, uint16(i), flow.TCP, v
		f.Start, f.End = clock(1), clock(2)
	}
	return b
}

func TestBatchesOutlastARestart(t *testing.T) {
	dir := t.TempDir()
	k := keepIn(t, dir, 1000)
	k.put(flowBatch(3, flow.VerdictAllowed))
	k.put(flowBatch(2, flow.VerdictDenied))
	first := k.key.Epoch
	k.stop() // what is not on disk yet gets there

	k = keepIn(t, dir, 1000)
	k.put(flowBatch(1, flow.VerdictAllowed))
	c := k.drain()
	slices.Sort(c.got)
	if want := []uint64{1, 1, 2}; !slices.Equal(c.got, want) || k.key.Epoch == first {
		t.Errorf("the collector got %v, want %v of two epochs", c.got, want)
	}
	k.until("nothing on disk", func() bool { waits, _ := k.backlog(); return !waits && k.disk.bytes() < 100 })
	k.stop()
	if c = keepIn(t, dir, 1000).drain(); len(c.got) != 0 {
		t.Errorf("the third run sends %v again", c.got)
	}
}

// TestMemoryIsBoundedByTheDisk: while the collector is away memory holds little,
// and nothing is lost.
func TestMemoryIsBoundedByTheDisk(t *testing.T) {
	k := keepIn(t, t.TempDir(), 100)
	for range 50 {
		k.put(flowBatch(10, flow.VerdictAllowed))
		k.until("all is on disk", k.safe)
	}
	if _, flows, _ := k.waiting(); flows > 100/awayShare+10 {
		t.Errorf("%d flows are in memory", flows)
	}
	if c := k.drain(); len(c.got) != 50 || len(k.lost) > 0 {
		t.Errorf("%d batches arrived, want 50; lost: %+v", len(c.got), k.lost)
	}
}

// TestADiskThatTakesNothing: batches wait in memory, and on disk when it takes
// them again.
func TestADiskThatTakesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	k := keepIn(t, dir, 100)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	k.put(flowBatch(60, flow.VerdictAllowed))
	k.until("the disk fails", k.disk.failing.Load)
	k.put(flowBatch(60, flow.VerdictDenied)) // too much for memory: the allowed ones go
	b := k.entries[0].batch
	if len(b.Flows) != 0 || len(b.Gaps) != 1 || b.Gaps[0].Lost != 60 {
		t.Errorf("%d flows are kept, gaps %+v", len(b.Flows), b.Gaps)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	k.until("all is on disk", k.safe)
	if k.disk.failing.Load() {
		t.Error("the disk is said to fail still")
	}
	c := k.drain()
	slices.Sort(c.got) // one may have gone with the backlog
	if !slices.Equal(c.got, []uint64{1, 2}) {
		t.Errorf("the collector got %v", c.got)
	}
}

// TestADiskThatCannotBeOpened: it is tried again, and what an earlier run left
// there is sent.
func TestADiskThatCannotBeOpened(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	k := keepIn(t, dir, 100)
	k.put(flowBatch(2, flow.VerdictAllowed))
	k.stop()
	if err := os.Rename(dir, dir+"-away"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	k = keepIn(t, dir, 100)
	if !k.disk.failing.Load() {
		t.Fatal("a file is taken for a directory")
	}
	if err := errors.Join(os.Remove(dir), os.Rename(dir+"-away", dir)); err != nil {
		t.Fatal(err)
	}
	k.put(flowBatch(1, flow.VerdictAllowed))
	k.until("all is on disk", k.safe)
	if c := k.drain(); len(c.got) != 2 {
		t.Errorf("the collector got %v, want a batch of either run", c.got)
	}
}

func TestRefusedFlowsAreKeptApart(t *testing.T) {
	b := batchOf(3, 2)
	b.Start, b.End, b.Gaps = clock(0), clock(10), []flow.Gap{{Lost: 1}}
	parts := split(*b, true)
	if len(parts) != 2 || len(parts[0].Flows) != 3 || len(parts[1].Flows) != 2 {
		t.Fatalf("parts %+v", parts)
	}
	if (&entry{batch: parts[0]}).lane() != spool.Low || (&entry{batch: parts[1]}).lane() != spool.High {
		t.Error("refused flows are not in the lane that is kept for longer")
	}
	if parts[0].Start.Before(parts[0].End) || !parts[1].Start.Before(parts[1].End) || len(parts[1].Gaps) != 1 {
		t.Error("the last part carries the coverage")
	}
	parts[0].Flows[1].Start = clock(3)
	if start, end := span(parts[0]); !start.Equal(clock(3)) || !end.Equal(clock(10)) {
		t.Errorf("the loss of a part is told from %s to %s, which is not when its flows were", start, end)
	}
	if parts = split(*batchOf(3, 0), true); len(parts) != 1 {
		t.Errorf("%d parts of a batch without refused flows", len(parts))
	}
}

// FuzzSpooledBatch: whatever a record of the spool holds, reading it is bounded
// and does not panic.
func FuzzSpooledBatch(f *testing.F) {
	d, err := openDisk(spool.Options{Dir: f.TempDir(), MaxBytes: spool.MinBytes, MaxAge: time.Hour, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	for _, b := range []*flow.Batch{{}, flowBatch(1, flow.VerdictDenied), flowBatch(300, flow.VerdictAllowed)} {
		b.Key = flow.BatchKey{Instance: "n1", Epoch: 7, Sequence: 1}
		e := &entry{batch: b}
		if err := d.save(e); err != nil {
			f.Fatal(err)
		}
		f.Add(slices.Clone(d.packed))
	}
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, payload []byte) {
		b, err := d.load(&spool.Record{Payload: payload})
		if err != nil {
			return
		}
		if size := proto.Size(b); size > maxUnpacked {
			t.Errorf("%d bytes unfold to %d", len(payload), size)
		}
	})
}
