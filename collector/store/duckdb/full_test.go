package duckdb

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/collector/store/storetest"
	"github.com/flowaudit/flowaudit/flow"
)

// A disk of 60 MiB of which other files leave so many: with 20 it is a
// checkpoint that finds it full, with 28 a commit.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("this test needs root for a file system of its own")
		}
		t.Skip("needs root for a file system of its own")
	}
	for _, left := range []int{20, 28} {
		t.Run(fmt.Sprintf("%d MiB", left), func(t *testing.T) { fullDisk(t, left) })
	}
}

func fullDisk(t *testing.T, left int) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=60m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	others := filepath.Join(dir, "others")
	if err := os.WriteFile(others, make([]byte, (60-left)<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir, nil)
	s.unsummed = 100_000
	f := filling{Store: s, flows: storetest.NewGenerator(1).Flows(20_000, storetest.T0, time.Minute)}
	var full error
	for range 200 {
		if full = f.append(t); full != nil {
			break
		}
	}
	if full == nil || !strings.Contains(full.Error(), "No space left on device") || !strings.Contains(full.Error(), dir) {
		t.Fatalf("error %v, want one that says what is wrong, and where", full)
	}
	if err := f.append(t); err == nil {
		t.Error("a full disk took a batch")
	}
	if err := os.Remove(others); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := f.append(t); err != nil {
			t.Errorf("with space again: %v", err)
		}
	}
	f.holds(t, s)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	f.holds(t, open(t, dir, nil))
}

// TestDocumentsOnAFullDisk: what cannot be kept is said, and is taken when
// there is space again; nothing that was kept is lost.
func TestDocumentsOnAFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("this test needs root for a file system of its own")
		}
		t.Skip("needs root for a file system of its own")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=120m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	others := filepath.Join(dir, "others")
	if err := os.WriteFile(others, make([]byte, 100<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir, nil)
	kept := 0
	put := func() error {
		body := make([]byte, 1<<20)
		_, _ = rand.NewChaCha8([32]byte{byte(kept)}).Read(body) // never fails
		err := s.Put(t.Context(), []store.Document{{Kind: "k", ID: fmt.Sprint(kept), Time: storetest.T0, Body: body}})
		if err == nil {
			kept++
		}
		return err
	}
	var full error
	for range 50 {
		if full = put(); full != nil {
			break
		}
	}
	if full == nil || !strings.Contains(full.Error(), "No space left on device") || !strings.Contains(full.Error(), dir) {
		t.Fatalf("error %v, want one that says what is wrong, and where", full)
	}
	if err := os.Remove(others); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := put(); err != nil {
			t.Errorf("with space again: %v", err)
		}
	}
	count := func(s *Store) (n int) {
		if err := s.Documents(t.Context(), "k", time.Time{}, func(store.Document) bool { n++; return true }); err != nil {
			t.Error(err)
		}
		return n
	}
	if n := count(s); n != kept {
		t.Errorf("%d documents, want %d", n, kept)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if n := count(open(t, dir, nil)); n != kept {
		t.Errorf("%d documents after opening again, want %d", n, kept)
	}
}

// filling appends the same flows again and again.
type filling struct {
	*Store
	flows  []flow.Flow
	stored uint64 // batches
}

func (f *filling) append(t *testing.T) error {
	_, err := f.Append(t.Context(), []flow.Batch{{Key: flow.BatchKey{Instance: "n", Sequence: f.stored + 1}, Node: "n", Flows: f.flows}})
	if err == nil {
		f.stored++
	}
	return err
}

// holds checks that a store has what was acknowledged, and nothing else.
func (f *filling) holds(t *testing.T, s *Store) {
	t.Helper()
	want := int64(f.stored) * int64(len(f.flows))
	rows, err := s.SQL(t.Context(), flow.SeeAll(), "SELECT count(*) FROM flows", 1)
	if err != nil || rows.Rows[0][0] != want {
		t.Errorf("%v flows (%v), want the %d that were acknowledged", rows.Rows, err, want)
	}
	rows, err = s.Query(t.Context(), flow.SeeAll(), "assessments", map[string]string{"since": "2000-01-01"})
	var sum int64
	for _, r := range rows.Rows {
		sum += r[3].(int64)
	}
	if err != nil || sum != want {
		t.Errorf("the questions find %d flows (%v), want %d", sum, err, want)
	}
}
