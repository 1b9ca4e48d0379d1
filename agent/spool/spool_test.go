package spool

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// box is a spool under test, with what it has told as lost.
type box struct {
	*Spool
	t    *testing.T
	lost []Loss
}

func open(t *testing.T, dir string) *box {
	t.Helper()
	b := &box{t: t}
	s, err := Open(Options{Dir: dir, Epoch: rand.Uint64(), MaxBytes: 1 << 30, MaxAge: 24 * time.Hour, Lost: func(l Loss) { b.lost = append(b.lost, l) }, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	b.Spool = s
	return b
}

// at is a moment of the tests' time.
func at(second int) time.Time { return time.Unix(1_700_000_000+int64(second), 0) }

// payload is what batch n holds.
func payload(n uint64, size int) []byte { return bytes.Repeat([]byte{byte(n)}, size) }

// put puts batch n, which tells of second n-1 to n.
func (b *box) put(l Lane, n uint64, size int) {
	b.t.Helper()
	if err := b.Put(&Record{Lane: l, Sequence: n, Start: at(int(n) - 1), End: at(int(n)), Covered: at(int(n)), Flows: uint32(n), Payload: payload(n, size)}); err != nil {
		b.t.Fatal(err)
	}
}

const everything = ^uint64(0)

// rest gives what Next gives until it has no more.
func (b *box) rest(before uint64) []Record {
	b.t.Helper()
	var all []Record
	for {
		r, ok, err := b.Next(before)
		if err != nil {
			b.t.Fatal(err)
		}
		if !ok {
			return all
		}
		if len(r.Payload) > 0 && r.Payload[0] != byte(r.Sequence) {
			b.t.Errorf("batch %d has another's payload", r.Sequence)
		}
		r.Payload = nil
		all = append(all, r)
	}
}

func (b *box) ack(all ...Record) {
	b.t.Helper()
	for i := range all {
		if err := b.Ack(&all[i]); err != nil {
			b.t.Fatal(err)
		}
	}
}

func sequences(all []Record) []uint64 {
	out := []uint64{}
	for _, r := range all {
		out = append(out, r.Sequence)
	}
	return out
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func want(t *testing.T, what string, got []Record, sequence ...uint64) {
	t.Helper()
	if !slices.Equal(sequences(got), append([]uint64{}, sequence...)) {
		t.Errorf("%s: got %v, want %v", what, sequences(got), sequence)
	}
}

func TestARecordIsGivenUntilItIsAcknowledged(t *testing.T) {
	b := open(t, t.TempDir())
	for n := range uint64(4) {
		b.put(Lane(n%2), n+1, 100) // odd ones are low
	}
	first := b.rest(everything)
	want(t, "high ones come first", first, 2, 4, 1, 3)
	want(t, "each is given once", b.rest(everything))
	b.ack(first[0], first[0]) // twice does no harm
	b.Rewind()
	want(t, "after a broken stream", b.rest(everything), 4, 1, 3)
	b.put(Low, 5, 100)
	want(t, "what came meanwhile", b.rest(everything), 5)
	b.ack(Record{Lane: Low, Sequence: 3}, Record{Lane: High, Sequence: 77}) // by its number; and one that never was
	b.Rewind()
	want(t, "what another stream has sent", b.rest(everything), 4, 1, 5)
}

func TestWhatIsLiveIsNotGiven(t *testing.T) {
	b := open(t, t.TempDir())
	for n := range uint64(3) {
		b.put(Low, n+1, 100)
	}
	if b.Behind(3) || !b.Behind(2) {
		t.Error("three records wait")
	}
	want(t, "below the first live one", b.rest(3), 1, 2)
	want(t, "when it is live no more", b.rest(4), 3)
}

func TestANewRunGoesOnWithAnotherEpoch(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	epoch := b.Epoch
	b.put(Low, 1, 100)
	b.put(High, 2, 100)
	if _, err := Open(b.Options); !errors.Is(err, ErrLocked) {
		t.Errorf("a second process gets %v, want ErrLocked", err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = open(t, dir)
	if b.Epoch == epoch || !b.Covered().Equal(at(2)) || !b.Behind(0) {
		t.Errorf("epoch %x after %x, covered to %s, behind %t", b.Epoch, epoch, b.Covered(), b.Behind(0))
	}
	b.put(Low, 1, 100)
	all := b.rest(everything)
	want(t, "both runs'", all, 2, 1, 1)
	for i, r := range all {
		if (r.Epoch == epoch) != (i < 2) {
			t.Errorf("record %d has epoch %x", i, r.Epoch)
		}
	}
	b.ack(all...)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	for _, f := range files(t, dir) {
		if info, err := os.Stat(f); err != nil || info.Size() != headerSize {
			t.Errorf("%s holds %v, %v; want no record", f, info, err)
		}
	}
	if b = open(t, dir); !b.Covered().Equal(at(2)) || b.Behind(0) || b.rest(everything) != nil {
		t.Errorf("covered to %s, behind %t", b.Covered(), b.Behind(0))
	}
}

// TestSegmentsAreDeleted: disk is given back while batches still come.
func TestSegmentsAreDeleted(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	for n := uint64(1); n <= 10; n++ {
		b.put(Low, n, segmentBytes/2)
	}
	if n := len(files(t, dir)); n != 5 {
		t.Errorf("%d files, want 5", n)
	}
	all := b.rest(everything)
	b.ack(all[:5]...)
	if n := len(files(t, dir)); n != 3 {
		t.Errorf("%d files when half is acknowledged, want 3", n)
	}
	b.ack(all[5:]...)
	b.put(Low, 11, 100)
	b.ack(Record{Lane: Low, Sequence: 11})
	if n, size := len(files(t, dir)), b.Bytes(); n != 1 || size != headerSize {
		t.Errorf("%d files, %d bytes when all is acknowledged; want one that is empty", n, size)
	}
}

func TestATornTailIsCutOff(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	b.put(Low, 1, 300)
	b.put(Low, 2, 300)
	whole, err := os.ReadFile(files(t, dir)[0])
	if err != nil {
		t.Fatal(err)
	}
	const first = headerSize + recordSize + 300
	for n := headerSize; n < len(whole); n++ {
		dir := t.TempDir()
		path := filepath.Join(dir, "0000000000000001-l.spool")
		if err := os.WriteFile(path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		b := open(t, dir)
		got := len(b.rest(everything))
		end, lost := headerSize, 0
		if n >= headerSize+recordSize && n < first || n >= first+recordSize {
			lost = 1 // a header that is whole says what it is about
		}
		if n >= first {
			end = first
		}
		info, err := os.Stat(path)
		if end > headerSize && (err != nil || info.Size() != int64(end)) {
			t.Fatalf("%d bytes of %d: %v, %v; want it cut to %d", n, len(whole), info, err, end)
		}
		if got != (end-headerSize)/(first-headerSize) || len(b.lost) != lost {
			t.Fatalf("%d bytes of %d: %d batches, %+v lost", n, len(whole), got, b.lost)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDamageAnywhere: whichever byte is damaged, the other batches are given,
// what is not is told, and the file is deleted in the end.
func TestDamageAnywhere(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	const count, size = 5, 40
	for n := range uint64(count) {
		b.put(Low, n+1, size)
	}
	whole, err := os.ReadFile(files(t, dir)[0])
	if err != nil {
		t.Fatal(err)
	}
	for i := range whole {
		for _, flip := range []byte{0x01, 0xff} {
			dir := t.TempDir()
			damaged := slices.Clone(whole)
			damaged[i] ^= flip
			if err := os.WriteFile(filepath.Join(dir, "0000000000000001-l.spool"), damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			b := open(t, dir)
			var expect []uint64
			hit := (i - headerSize) / (recordSize + size)
			for n := range count {
				if i < headerSize || n != hit {
					expect = append(expect, uint64(n+1))
				}
			}
			all := b.rest(everything)
			if !slices.Equal(sequences(all), expect) {
				t.Fatalf("byte %d: got %v, want %v", i, sequences(all), expect)
			}
			if told := len(b.lost); i >= headerSize && told != 1 && hit != count-1 || i < headerSize && told != 0 {
				t.Fatalf("byte %d: told %+v", i, b.lost)
			}
			for _, l := range b.lost {
				if !l.Damaged || l.Records != 1 || l.Start.Before(at(hit)) && !l.Start.IsZero() && i >= headerSize && hit > 0 {
					t.Fatalf("byte %d: told %+v", i, l)
				}
			}
			b.ack(all...)
			b.Rewind()
			if left := b.rest(everything); len(left) > 0 || b.Behind(0) {
				t.Fatalf("byte %d: %v wait when all is acknowledged", i, sequences(left))
			}
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestDamageWhileItRuns: the disk fails under a file that is written to.
func TestDamageWhileItRuns(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	for n := range uint64(3) {
		b.put(Low, n+1, 40)
	}
	f, err := os.OpenFile(files(t, dir)[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{0x55}, headerSize+recordSize+40+recordSize); err != nil {
		t.Fatal(err)
	}
	all := b.rest(everything)
	want(t, "the others", all, 1, 3)
	if len(b.lost) != 1 || b.lost[0].Flows != 2 || !b.lost[0].Start.Equal(at(1)) || !b.lost[0].End.Equal(at(2)) {
		t.Errorf("told %+v", b.lost)
	}
	b.put(Low, 4, 40)
	b.ack(all...)
	want(t, "what came later", b.rest(everything), 4)
	b.ack(Record{Lane: Low, Sequence: 4})
	if b.Behind(0) || len(b.lost) != 1 {
		t.Errorf("behind %t, told %+v", b.Behind(0), b.lost)
	}
}

func TestTheOldestIsDroppedLowBeforeHigh(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	b.MaxBytes = MinBytes
	const half = segmentBytes / 2
	b.put(High, 1, half)
	b.put(High, 2, half)
	for n := uint64(3); n <= 14; n++ {
		b.put(Low, n, half)
	}
	if len(b.lost) != 0 {
		t.Fatalf("dropped before it was full: %+v", b.lost)
	}
	b.ack(Record{Lane: Low, Sequence: 3}) // it is not lost any more
	b.put(High, 15, half)
	b.put(High, 16, half)
	if len(b.lost) != 1 || b.lost[0].Flows != 4 || b.lost[0].Records != 1 || b.lost[0].Damaged || !b.lost[0].Start.Equal(at(3)) || !b.lost[0].End.Equal(at(4)) {
		t.Fatalf("dropped %+v, want batch 4", b.lost)
	}
	for n := uint64(17); n <= 28; n++ {
		b.put(High, n, half)
	}
	kept := b.rest(everything)
	for _, r := range kept {
		if r.Lane != High {
			t.Errorf("%d is kept, and of low", r.Sequence)
		}
	}
	if kept[0].Sequence == 1 || b.Bytes() > MinBytes {
		t.Errorf("%d bytes, the oldest is %d: at last those of high go", b.Bytes(), kept[0].Sequence)
	}
	flows := uint64(0)
	for _, l := range b.lost {
		flows += l.Flows
	}
	for _, r := range kept {
		flows += uint64(r.Flows)
	}
	if flows != 28*29/2-3 {
		t.Errorf("%d flows are kept or told as lost, want %d", flows, 28*29/2-3)
	}
}

func TestWhatIsTooOldIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, t.TempDir())
		b.put(Low, 1, segmentBytes)
		time.Sleep(b.MaxAge / 2)
		b.put(Low, 2, segmentBytes)
		time.Sleep(b.MaxAge / 2)
		b.put(Low, 3, 100)
		want(t, "those of the last day", b.rest(everything), 2, 3)
		if len(b.lost) != 1 || b.lost[0].Flows != 1 || b.lost[0].Damaged {
			t.Errorf("told %+v", b.lost)
		}
	})
}

func TestADirectoryThatCannotBeUsed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Dir: filepath.Join(file, "spool")}); err == nil {
		t.Error("a spool below a file is opened")
	}
	b := open(t, t.TempDir())
	if err := b.Put(&Record{Payload: make([]byte, maxPayload+1)}); err == nil {
		t.Error("a batch without bounds is put")
	}
	if err := os.RemoveAll(b.Dir); err != nil {
		t.Fatal(err)
	}
	if err := b.Put(&Record{Sequence: 1}); err == nil {
		t.Error("put into a directory that is gone")
	}
	if err := os.Mkdir(b.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	b.put(Low, 2, 10)
	want(t, "when the directory is back", b.rest(everything), 2)
}

// FuzzFind: no bytes make the decoder panic or go around in circles, and what
// was written before them is found.
func FuzzFind(f *testing.F) {
	one := appendRecord(header(at(1)), &Record{Epoch: 7, Sequence: 1, Start: at(1), End: at(2), Flows: 3, Payload: []byte("payload")})
	two := appendRecord(slices.Clone(one), &Record{Epoch: 7, Sequence: 2, Payload: []byte("another")})
	for _, seed := range [][]byte{nil, header(at(1)), one, two, two[:len(two)-1], two[headerSize+1:], []byte(recordMagic), bytes.Repeat([]byte(recordMagic), 30)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		readHeader(b)
		for at, last := 0, -1; ; {
			r, ok := find(b, at)
			if !ok {
				break
			}
			if r.next <= last || r.next > len(b) || r.whole && r.torn || len(r.Payload) > len(b) {
				t.Fatalf("at %d of %d: %+v", at, len(b), r)
			}
			at, last = r.next, r.next
		}
		after := appendRecord(slices.Clone(b), &Record{Epoch: 1, Sequence: 9, Payload: []byte("x")})
		if r, ok := readRecord(after, len(b)); !ok || !r.whole || r.Sequence != 9 {
			t.Fatalf("what was written is %+v, %t", r, ok)
		}
	})
}

func BenchmarkPut(b *testing.B) {
	for _, sync := range []bool{false, true} {
		b.Run(fmt.Sprintf("sync=%t", sync), func(b *testing.B) {
			s, err := Open(Options{Dir: b.TempDir(), MaxBytes: 1 << 30, MaxAge: time.Hour, Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				b.Fatal(err)
			}
			r := Record{Lane: Low, Payload: make([]byte, 180<<10)} // 8,192 flows
			b.SetBytes(int64(len(r.Payload)))
			for b.Loop() {
				r.Sequence++
				if err := s.Put(&r); err != nil {
					b.Fatal(err)
				}
				if sync {
					if err := s.Sync(); err != nil {
						b.Fatal(err)
					}
				}
				if r.Sequence%100 == 0 {
					b.StopTimer()
					for n := range uint64(100) {
						if err := s.Ack(&Record{Lane: Low, Sequence: r.Sequence - n}); err != nil {
							b.Fatal(err)
						}
					}
					b.StartTimer()
				}
			}
		})
	}
}
