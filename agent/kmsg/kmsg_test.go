package kmsg

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/test/netlab"
)

// marked takes records that hold a mark, and "bad" ones for faults.
type marked struct{ mark string }

func (m marked) Parse(line []byte, o *flow.Observation) (bool, error) {
	if bytes.HasPrefix(line, []byte("bad")) {
		return false, errRecord
	}
	o.Prefix = string(line)
	return bytes.Contains(line, []byte(m.mark)), nil
}

// device stands for /dev/kmsg: each read gives one record.
type device struct {
	t      *testing.T
	write  *os.File
	seen   chan flow.Observation
	gaps   chan flow.Gap
	said   bytes.Buffer
	source *Source
	stop   func()
}

func (d *device) options(stateDir string) Options {
	d.seen, d.gaps = make(chan flow.Observation, 1000), make(chan flow.Gap, 1000)
	return Options{
		Name: "kernel-log", Node: "n1", Parser: marked{"mark"}, StateDir: stateDir,
		Deliver: func(s []flow.Observation) []flow.Observation {
			for _, o := range s {
				d.seen <- o
			}
			return s[:0]
		},
		Lost: func(g flow.Gap) { d.gaps <- g }, Logger: slog.New(slog.NewTextHandler(&d.said, nil)),
	}
}

func open(t *testing.T, stateDir, boot string) *device {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	d := &device{t: t, write: os.NewFile(uintptr(fds[1]), "writer")}
	d.run(newSource(d.options(stateDir), os.NewFile(uintptr(fds[0]), "kmsg"), boot))
	return d
}

func (d *device) run(s *Source) {
	d.source = s
	ctx, cancel := context.WithCancel(d.t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	d.stop = func() {
		cancel()
		if err := <-done; err != nil {
			d.t.Error(err)
		}
	}
}

func (d *device) say(seq int, text string) {
	d.t.Helper()
	if _, err := fmt.Fprintf(d.write, "6,%d,%d,-;%s\n SUBSYSTEM=net\n", seq, 1000, text); err != nil {
		d.t.Fatal(err)
	}
}

func (d *device) want(text string) {
	d.t.Helper()
	if o := <-d.seen; o.Prefix != text {
		d.t.Errorf("got %q, want %q", o.Prefix, text)
	}
}

func TestRecordsComeOnceAcrossRestarts(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir, "boot1")
	d.say(7, "mark one")
	d.say(8, "other")
	d.say(9, "mark two")
	d.want("mark one")
	d.want("mark two")
	d.stop()

	d = open(t, dir, "boot1") // the device begins with its oldest record
	d.say(8, "other")
	d.say(9, "mark two")
	d.say(10, "mark three")
	d.want("mark three")
	d.stop()
	if len(d.gaps) > 0 {
		t.Errorf("gap %+v, though nothing was lost", <-d.gaps)
	}

	d = open(t, dir, "boot2") // numbers begin anew
	d.say(1, "mark four")
	d.want("mark four")
	d.stop()
	if len(d.gaps) > 0 {
		t.Errorf("gap %+v between two boots", <-d.gaps)
	}
}

func TestOverwrittenRecordsAreAGap(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir, "boot1")
	d.say(7, "mark one")
	d.want("mark one")
	d.say(12, "mark two")
	d.want("mark two")
	if g := <-d.gaps; g.Kind != flow.GapOverrun || g.Node != "n1" || !strings.HasPrefix(g.Detail, "4 records") {
		t.Errorf("gap %+v, want 4 records", g)
	}
	d.stop()
	d = open(t, dir, "boot1")
	d.say(20, "mark three")
	if g := <-d.gaps; !strings.HasPrefix(g.Detail, "7 records") {
		t.Errorf("gap %+v, want the 7 records that the agent's absence cost", g)
	}
	d.stop()
}

func TestRecordsThatCannotBeReadAreCountedAndShownOnce(t *testing.T) {
	d := open(t, "", "boot1")
	d.say(7, "bad")
	if _, err := d.write.WriteString("nonsense"); err != nil {
		t.Fatal(err)
	}
	d.say(8, "mark")
	d.want("mark")
	d.stop()
	if n := d.source.Malformed(); n != 2 || strings.Count(d.said.String(), "cannot be read") != 1 {
		t.Errorf("%d malformed, said %q", n, d.said.String())
	}
}

func TestADamagedPlaceIsNotTakenOver(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "kmsg-kernel-log.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := open(t, dir, "boot1")
	d.say(3, "mark")
	d.want("mark")
	d.stop()
}

func TestTheKernelsOwnLog(t *testing.T) {
	netlab.NeedRoot(t)
	// Many containers have no /dev/kmsg: a device of the same number is the same.
	log := filepath.Join(t.TempDir(), "kmsg")
	const memory, kmsg = 1, 11
	if err := unix.Mknod(log, unix.S_IFCHR|0o600, int(unix.Mkdev(memory, kmsg))); err != nil {
		t.Fatalf("make a device of the kernel's log: %v", err)
	}
	w, err := os.OpenFile(log, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	d := &device{t: t}
	o := d.options(t.TempDir())
	o.Device = log
	o.Parser = marked{fmt.Sprintf("flowaudit-test-%d", os.Getpid())}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	d.run(s)
	before := time.Now()
	if _, err := fmt.Fprintf(w, "<14>flowaudit-test-%d: IN=eth0 OUT=\n", os.Getpid()); err != nil {
		t.Fatal(err)
	}
	got := <-d.seen
	if !strings.Contains(got.Prefix, "IN=eth0") {
		t.Errorf("got %q", got.Prefix)
	}
	if at := time.Unix(0, got.Time); at.Before(before.Add(-time.Minute)) || at.After(time.Now()) {
		t.Errorf("its time is %s, written after %s", at, before)
	}
	d.stop()
}

func TestAMissingLogIsSaid(t *testing.T) {
	o := (&device{t: t}).options("")
	o.Device = filepath.Join(t.TempDir(), "kmsg")
	if _, err := Open(o); err == nil || !strings.Contains(err.Error(), "mount "+o.Device) {
		t.Errorf("error %v", err)
	}
}

func TestParseRecord(t *testing.T) {
	r, err := parseRecord([]byte("4,1025,307753360525,-,caller=T1;calico-packet: IN=a;b OUT=\n SUBSYSTEM=x\n"))
	if err != nil || r.sequence != 1025 || r.micros != 307753360525 || string(r.text) != "calico-packet: IN=a;b OUT=" {
		t.Errorf("%+v, %v", r, err)
	}
	for _, bad := range []string{"", ";", "1,2;x", "1,x,3,-;t", "1,2,x,-;t", "1,2,3"} {
		if r, err := parseRecord([]byte(bad)); err == nil {
			t.Errorf("%q is read as %+v", bad, r)
		}
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte("4,1025,307753360525,-;calico-packet: IN=a OUT=\n SUBSYSTEM=x\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := parseRecord(b); err == nil && bytes.Contains(r.text, []byte("\n")) {
			t.Errorf("%q: the text has two lines", b)
		}
	})
}
