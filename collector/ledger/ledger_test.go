package ledger

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/evidence"
	"github.com/flowaudit/flowaudit/flow"
)

// memory is a store whose next Put or Append can be made to fail.
type memory struct {
	batches   map[flow.BatchKey][]flow.Flow
	documents map[string]store.Document
	failPut   string // the kind that cannot be kept
	failAfter bool   // Append stores, and tells an error all the same
}

var errDown = errors.New("the store is down")

func newMemory() *memory {
	return &memory{batches: make(map[flow.BatchKey][]flow.Flow), documents: make(map[string]store.Document)}
}

func (m *memory) Append(_ context.Context, batches []flow.Batch) ([]bool, error) {
	duplicate := make([]bool, len(batches))
	for i, b := range batches {
		if _, duplicate[i] = m.batches[b.Key]; !duplicate[i] {
			m.batches[b.Key] = slices.Clone(b.Flows)
		}
	}
	if m.failAfter {
		m.failAfter = false
		return nil, errDown
	}
	return duplicate, nil
}

func (m *memory) Stored(_ context.Context, keys []flow.BatchKey) ([]bool, error) {
	stored := make([]bool, len(keys))
	for i, k := range keys {
		_, stored[i] = m.batches[k]
	}
	return stored, nil
}

func (m *memory) Put(_ context.Context, documents []store.Document) error {
	for _, d := range documents {
		if d.Kind == m.failPut {
			return errDown
		}
		m.documents[d.Kind+" "+d.ID] = d
	}
	return nil
}

func (m *memory) Documents(_ context.Context, kind string, since time.Time, yield func(store.Document) bool) error {
	for _, k := range slices.Sorted(maps.Keys(m.documents)) {
		if d := m.documents[k]; d.Kind == kind && !d.Time.Before(since) && !yield(d) {
			break
		}
	}
	return nil
}

func (m *memory) Discard(_ context.Context, kind string, before time.Time) error {
	maps.DeleteFunc(m.documents, func(_ string, d store.Document) bool { return d.Kind == kind && d.Time.Before(before) })
	return nil
}

func (m *memory) Reports(_ context.Context, _, _ time.Time, yield func(flow.Flow) bool) error {
	for _, flows := range m.batches {
		for _, f := range flows {
			if !yield(f) {
				return nil
			}
		}
	}
	return nil
}

func (m *memory) Timeline(_ context.Context, _ flow.Sight, _, _ time.Time, yield func(flow.Change) bool) error {
	yield(flow.Change{Time: day, Kind: flow.ChangePolicy, Namespace: "shop", Name: "db", Object: []byte(`{}`)})
	return nil
}

var day = time.Date(2026, 3, 4, 0, 0, 0, 0, time.UTC)

// world is a ledger over a store, with a clock that goes on with each look.
type world struct {
	t      *testing.T
	store  *memory
	key    *evidence.Key
	public ed25519.PublicKey
	now    time.Time
	*Ledger
}

func newWorld(t *testing.T) *world {
	private, public, err := evidence.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, store: newMemory(), now: day}
	if w.key, err = evidence.ParseKey(private); err != nil {
		t.Fatal(err)
	}
	if w.public, err = evidence.ParsePublicKey(public); err != nil {
		t.Fatal(err)
	}
	w.restart()
	return w
}

// restart is what is left after SIGKILL: the store and the key.
func (w *world) restart() {
	w.Ledger = New(Options{
		Key: w.key, Store: w.store, Collector: "collector", Dir: w.t.TempDir(), Log: slog.New(slog.DiscardHandler),
		Now: func() time.Time { w.now = w.now.Add(time.Second); return w.now },
	})
}

func aBatch(instance string, sequence uint64) flow.Batch {
	b := flow.Batch{Key: flow.BatchKey{Cluster: "c", Instance: instance, Epoch: 7, Sequence: sequence}, Node: instance, Start: day, End: day.Add(time.Second)}
	for n := range 3 {
		b.Flows = append(b.Flows, flow.Flow{
			Key:   flow.Key{Protocol: flow.TCP, Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.1.1"), Port: uint16(n), Verdict: flow.VerdictAllowed},
			Start: day, End: day, Node: instance, SourcePort: uint16(sequence),
			Source: &flow.Endpoint{Kind: flow.EndpointPod, Namespace: "shop", Pod: "web"},
		})
	}
	return b
}

func (w *world) append(batches ...flow.Batch) []bool {
	w.t.Helper()
	duplicate, err := w.Append(w.t.Context(), batches)
	if err != nil {
		w.t.Fatal(err)
	}
	return duplicate
}

func (w *world) verify() (*evidence.Summary, error) {
	w.t.Helper()
	var out bytes.Buffer
	if err := w.Export(w.t.Context(), &out, evidence.Scope{Everyone: true}); err != nil {
		w.t.Fatal(err)
	}
	return evidence.Verify(bytes.NewReader(out.Bytes()), int64(out.Len()), w.public)
}

// holds checks that there is one link for each of so many batches.
func (w *world) holds(batches uint64) {
	w.t.Helper()
	s, err := w.verify()
	if err != nil {
		w.t.Fatal(err)
	}
	if s.Batches != batches || s.Flows != 3*batches {
		w.t.Errorf("%d batches with %d flows are proven, want %d with 3 each", s.Batches, s.Flows, batches)
	}
}

func TestWhatIsStoredIsProven(t *testing.T) {
	w := newWorld(t)
	w.append(aBatch("a", 1), aBatch("b", 1), aBatch("a", 2))
	w.append(aBatch("b", 2))
	w.holds(4)
}

func TestAResendExtendsNoChain(t *testing.T) {
	w := newWorld(t)
	w.append(aBatch("a", 1))
	if d := w.append(aBatch("a", 1), aBatch("a", 2), aBatch("a", 2)); !slices.Equal(d, []bool{true, false, true}) {
		t.Errorf("duplicates %v", d)
	}
	w.restart()
	w.append(aBatch("a", 2))
	w.holds(2)
}

func TestAChainSurvivesAKilledCollector(t *testing.T) {
	for name, kill := range map[string]func(*world){
		"before anything is stored": func(w *world) {
			w.store.failPut = kindEntry
			if _, err := w.Append(w.t.Context(), []flow.Batch{aBatch("a", 2)}); !errors.Is(err, errDown) {
				w.t.Fatal(err)
			}
		},
		"after the batches, before it has told": func(w *world) { w.append(aBatch("a", 2)) },
		"while it does not know whether they are stored": func(w *world) {
			w.store.failAfter = true
			if _, err := w.Append(w.t.Context(), []flow.Batch{aBatch("a", 2)}); !errors.Is(err, errDown) {
				w.t.Fatal(err)
			}
		},
	} {
		for _, restart := range []bool{true, false} {
			t.Run(fmt.Sprint(name, " ", restart), func(t *testing.T) {
				w := newWorld(t)
				w.append(aBatch("a", 1), aBatch("b", 1))
				kill(w)
				w.store.failPut = ""
				if restart {
					w.restart()
				}
				w.append(aBatch("a", 2)) // the agent was told nothing
				w.append(aBatch("a", 3))
				w.holds(4)
			})
		}
	}
}

func TestNothingIsStoredWhileEvidenceCannotBe(t *testing.T) {
	w := newWorld(t)
	w.append(aBatch("a", 1))
	w.store.failPut = kindEntry
	if _, err := w.Append(t.Context(), []flow.Batch{aBatch("a", 2)}); !errors.Is(err, errDown) {
		t.Errorf("%v, want the store's error", err)
	}
	if n := len(w.store.batches); n != 1 {
		t.Errorf("%d batches are stored, want that before the error only", n)
	}
}

func TestChainsGoOnAfterTheNewestLinksWereWrittenDown(t *testing.T) {
	w := newWorld(t)
	const batches = headsEvery + 5
	for n := range uint64(batches) {
		w.append(aBatch([]string{"a", "b"}[n%2], n))
	}
	w.restart()
	w.append(aBatch("a", batches))
	w.holds(batches + 1)
}

func TestTamperingWithTheStoreIsNamed(t *testing.T) {
	var w *world
	for name, c := range map[string]struct {
		tamper func(*memory)
		want   string
	}{
		"a flow is altered":           {func(m *memory) { m.batches[aBatch("a", 2).Key][0].Port = 99 }, "batch 2 of agent c/a (epoch 7, sequence 2): flow"},
		"a flow is deleted":           {func(m *memory) { k := aBatch("b", 1).Key; m.batches[k] = m.batches[k][1:] }, "batch 1 of agent c/b (epoch 7, sequence 1): flow"},
		"a batch's flows are deleted": {func(m *memory) { delete(m.batches, aBatch("a", 1).Key) }, "batch 1 of agent c/a"},
		"an entry is deleted":         {func(m *memory) { delete(m.documents, kindEntry+" "+entryID(2, w.writer)) }, "before 3 are missing, and no retention deleted them"},
		"the last entry is deleted":   {func(m *memory) { delete(m.documents, kindEntry+" "+entryID(3, w.writer)) }, "checkpoint 2 of collector"},
		"a gap is taken out": {func(m *memory) {
			k := kindEntry + " " + entryID(2, w.writer)
			d := m.documents[k]
			e, err := parseEntry(d.Body)
			if err != nil {
				t.Fatal(err)
			}
			e.Batches[0].Node = "c"
			if d.Body, err = e.marshal(); err != nil {
				t.Fatal(err)
			}
			m.documents[k] = d
		}, "checkpoint 2"},
	} {
		t.Run(name, func(t *testing.T) {
			w = newWorld(t)
			for n := range uint64(3) {
				w.append(aBatch("a", n+1), aBatch("b", n+1))
			}
			c.tamper(w.store)
			if _, err := w.verify(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want a fault with %q", err, c.want)
			}
		})
	}
}

func TestRetentionIsToldFromDeletion(t *testing.T) {
	w := newWorld(t)
	w.append(aBatch("a", 1))
	between := w.now.Add(time.Millisecond)
	w.append(aBatch("a", 2))
	delete(w.store.batches, aBatch("a", 1).Key)
	if _, err := w.verify(); err == nil {
		t.Fatal("flows are gone, and nobody says so")
	}
	if err := w.Bury(t.Context(), between, between); err != nil {
		t.Fatal(err)
	}
	s, err := w.verify()
	if err != nil || s.Deleted != 3 || s.Flows != 3 {
		t.Fatalf("%+v, %v: want 3 flows that retention deleted, and 3 that are there", s, err)
	}
	if err := w.Discard(t.Context(), between); err != nil {
		t.Fatal(err)
	}
	w.holds(1)
}

func FuzzEntry(f *testing.F) {
	private, _, err := evidence.GenerateKey()
	if err != nil {
		f.Fatal(err)
	}
	key, err := evidence.ParseKey(private)
	if err != nil {
		f.Fatal(err)
	}
	b := aBatch("a", 1)
	e := &entry{Sequence: 1, Keys: []flow.BatchKey{b.Key}, Batches: []*evidence.Batch{key.NewBatch(&b)}, Sealed: &sealed{Links: []place{{Index: 0, Number: 1}}}}
	body, err := e.marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Fuzz(func(_ *testing.T, body []byte) {
		if e, err := parseEntry(body); err == nil && e.Sealed != nil {
			e.section(e.Sealed)
		}
	})
}
