package durability

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flowaudit/flowaudit/test/netlab"
)

// disk is a small file system of its own.
type disk struct {
	t    *testing.T
	path string
}

func newDisk(t *testing.T, options string) *disk {
	t.Helper()
	netlab.NeedRoot(t)
	d := &disk{t: t, path: t.TempDir()}
	if err := syscall.Mount("tmpfs", d.path, "tmpfs", 0, options); err != nil {
		t.Fatalf("mount: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(d.path, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return d
}

func (d *disk) filler() string { return filepath.Join(d.path, "filler") }

// fill leaves so many bytes free.
func (d *disk) fill(free int64) {
	d.t.Helper()
	var s syscall.Statfs_t
	if err := syscall.Statfs(d.path, &s); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(d.filler(), make([]byte, max(0, int64(s.Bavail)*s.Bsize-free)), 0o600); err != nil && !errors.Is(err, syscall.ENOSPC) {
		d.t.Fatal(err)
	}
}

func (d *disk) free() {
	d.t.Helper()
	if err := os.Remove(d.filler()); err != nil {
		d.t.Fatal(err)
	}
}

// set makes the file system itself "ro" or "rw", for all who have mounted it.
func (d *disk) set(flag string) {
	d.t.Helper()
	fd, err := unix.Fspick(unix.AT_FDCWD, d.path, unix.FSPICK_CLOEXEC)
	if err != nil {
		d.t.Fatalf("pick the file system: %v", err)
	}
	defer func() { _ = unix.Close(fd) }() // nothing is buffered
	if err := errors.Join(unix.FsconfigSetFlag(fd, flag), unix.FsconfigReconfigure(fd)); err != nil {
		d.t.Fatalf("make the file system %s: %v", flag, err)
	}
}

// says waits until a program has said something so many times.
func (p *program) says(what string, times int) {
	p.t.Helper()
	until(p.t, p.name+" says "+what, func() bool { return strings.Count(p.log.String(), what) >= times })
}

// TestTheAgentsDiskFillsUp while the collector is away: the agent says so and
// goes on in memory, and writes all that down when there is room.
func TestTheAgentsDiskFillsUp(t *testing.T) {
	l, d, dir := newLab(t), newDisk(t, "size=4m"), t.TempDir()
	socket := filepath.Join(dir, "collector.sock")
	d.fill(48 << 10)
	a := agent(t, l, socket, d.path)
	a.start()
	a.says("agent reads", 1)
	sent := l.send(3000)
	a.says("batches wait in memory only", 1)
	time.Sleep(2 * time.Second) // more of them
	d.free()
	a.says("the disk takes batches again", 1)
	time.Sleep(2 * time.Second)
	sent.end(t)
	time.Sleep(3 * time.Second) // the last window
	a.kill()                    // what is on disk is enough

	c := collector(t, socket, filepath.Join(dir, "data"))
	c.start()
	a.start()
	answers(t, socket)
	drained(t, filepath.Join(d.path, "spool"))
	a.stop()
	if stored, told := sent.verify(t, dial(t, socket)); told > 0 || stored == 0 {
		t.Errorf("%d stored, %d told as missed; want all", stored, told)
	}
}

// TestTheAgentsDiskIsReadOnly: it sends without it, and uses it when it can.
func TestTheAgentsDiskIsReadOnly(t *testing.T) {
	l, d, dir := newLab(t), newDisk(t, "size=4m"), t.TempDir()
	socket := filepath.Join(dir, "collector.sock")
	d.set("ro")
	c := collector(t, socket, filepath.Join(dir, "data"))
	c.start()
	answers(t, socket)
	a := agent(t, l, socket, d.path)
	a.start()
	a.says("agent reads", 1)
	a.says("batches wait in memory only", 1)
	sent := l.send(1000)
	time.Sleep(3 * time.Second)
	d.set("rw")
	a.says("the disk takes batches again", 1)
	sent.end(t)
	time.Sleep(2 * time.Second) // what the kernel still holds
	a.stop()
	if stored, told := sent.verify(t, dial(t, socket)); told > 0 || stored == 0 {
		t.Errorf("%d stored, %d told as missed; want all", stored, told)
	}
}

// TestTheSpoolIsDamaged between two runs: the rest is sent, and what is not is told.
func TestTheSpoolIsDamaged(t *testing.T) {
	l, dir := newLab(t), t.TempDir()
	socket, state := filepath.Join(dir, "collector.sock"), filepath.Join(dir, "state")
	a := agent(t, l, socket, state)
	a.start()
	a.says("agent reads", 1)
	sent := l.send(2000)
	time.Sleep(6 * time.Second)
	sent.end(t)
	time.Sleep(2 * time.Second) // the last window
	a.kill()
	for _, path := range spoolFiles(t, filepath.Join(state, "spool")) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			b[len(b)/4+rand.IntN(len(b)/2)] ^= 0x5a
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := collector(t, socket, filepath.Join(dir, "data"))
	c.start()
	answers(t, socket)
	a.start()
	a.says("damaged and was skipped", 1)
	drained(t, filepath.Join(state, "spool"))
	a.stop()
	if stored, told := sent.verify(t, dial(t, socket)); told == 0 || stored < told {
		t.Errorf("%d stored, %d told as missed; want some missed, and more stored", stored, told)
	}
}

func spoolFiles(t *testing.T, dir string) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, "*.spool"))
	if err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 {
		t.Fatalf("no spool in %s", dir)
	}
	return all
}

// TestTheCollectorsDiskFillsUp: it acknowledges nothing, goes on, and takes
// everything when there is room.
func TestTheCollectorsDiskFillsUp(t *testing.T) {
	l, d, dir := newLab(t), newDisk(t, "size=24m"), t.TempDir()
	socket := filepath.Join(dir, "collector.sock")
	c := collector(t, socket, filepath.Join(d.path, "data"))
	c.start()
	answers(t, socket)
	a := agent(t, l, socket, filepath.Join(dir, "state"))
	a.start()
	a.says("agent reads", 1)
	sent := l.send(2000)
	time.Sleep(2 * time.Second)
	d.fill(0)
	c.says("batch was not stored", 1)
	time.Sleep(3 * time.Second)
	d.free()
	time.Sleep(2 * time.Second)
	sent.end(t)
	time.Sleep(2 * time.Second) // the last window
	drained(t, filepath.Join(dir, "state", "spool"))
	a.stop()
	if stored, told := sent.verify(t, dial(t, socket)); told > 0 || stored == 0 {
		t.Errorf("%d stored, %d told as missed; want all", stored, told)
	}
}
