// Package kmsg reads the records that LOG rules write into the kernel's log.
package kmsg

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flowaudit/flowaudit/flow"
)

// Device is the kernel's log.
const Device = "/dev/kmsg"

// Parser reads a record's text; see package follow's.
type Parser interface {
	Parse(line []byte, o *flow.Observation) (ok bool, err error)
}

// Options configure a Source.
type Options struct {
	Name   string // of the source
	Device string // the kernel's log, if not at its usual place
	Node   string // who reports gaps
	Parser Parser
	// StateDir is where the place is kept over a restart; empty for nowhere.
	StateDir string
	Deliver  func([]flow.Observation) []flow.Observation
	Lost     func(flow.Gap)
	Logger   *slog.Logger
}

// Validate names what is missing.
func (o *Options) Validate() error {
	if o.Name == "" || o.Parser == nil || o.Deliver == nil || o.Lost == nil || o.Logger == nil {
		return errors.New("read the kernel's log: Name, Parser, Deliver, Lost and Logger must be set")
	}
	return nil
}

// Source reads the kernel's log from where the last reading ended, or from now on.
type Source struct {
	o     Options
	file  *os.File
	boot  string // of this boot; sequence numbers begin anew with each
	next  uint64 // sequence number that should come; 0 if any
	good  time.Time
	saved time.Time
	out   []flow.Observation

	malformed atomic.Uint64
}

// place is how far the log was read.
type place struct {
	Boot  string    `json:"boot"`
	Next  uint64    `json:"next"`
	Saved time.Time `json:"saved"`
}

// maxRecord is the largest record that the kernel gives (PRINTKRB_RECORD_MAX
// and its properties).
const maxRecord = 8 << 10

// Open opens the kernel's log. It is that of the machine: the records of other
// network namespaces are in it only with net.netfilter.nf_log_all_netns=1.
func Open(o Options) (*Source, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	device := cmp.Or(o.Device, Device)
	f, err := os.OpenFile(device, os.O_RDONLY|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("open the kernel's log: %w: the agent needs CAP_SYSLOG, or kernel.dmesg_restrict=0", err)
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("open the kernel's log: %w: mount %s into the agent's container", err, device)
	case err != nil:
		return nil, fmt.Errorf("open the kernel's log: %w", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read the boot's id: %w", err), f.Close())
	}
	s := newSource(o, f, strings.TrimSpace(string(boot)))
	if s.next == 0 {
		if _, err := f.Seek(0, io.SeekEnd); err != nil {
			return nil, errors.Join(fmt.Errorf("go to the end of the kernel's log: %w", err), f.Close())
		}
	}
	return s, nil
}

func newSource(o Options, f *os.File, boot string) *Source {
	s := &Source{o: o, file: f, boot: boot, good: time.Now()}
	p, err := s.load()
	switch {
	case err != nil:
		o.Logger.Error("the place in the kernel's log is not taken over, it is read from now on", "source", o.Name, "error", err)
	case p != nil && p.Boot == boot:
		s.next, s.good = p.Next, p.Saved
	}
	return s
}

// Name returns the source's name.
func (s *Source) Name() string { return s.o.Name }

// Malformed counts the records that should tell a verdict and could not be read.
func (s *Source) Malformed() uint64 { return s.malformed.Load() }

// Run reads until ctx ends, and closes the source.
func (s *Source) Run(ctx context.Context) error {
	defer func() { _ = s.file.Close() }()
	defer context.AfterFunc(ctx, func() { _ = s.file.SetReadDeadline(time.Unix(1, 0)) })()
	s.out = s.o.Deliver(nil)
	b := make([]byte, maxRecord)
	for {
		n, err := s.file.Read(b)
		now := time.Now()
		switch {
		case err == nil:
			s.record(b[:n], now)
			s.out = s.o.Deliver(s.out)
		case ctx.Err() != nil:
			return s.save(now)
		case errors.Is(err, unix.EPIPE): // overwritten: the next record's number tells how many
		case errors.Is(err, unix.EINVAL): // a record longer than the buffer: the kernel goes on to the next
			s.fault(nil, err)
		default:
			return fmt.Errorf("read the kernel's log: %w", err)
		}
	}
}

func (s *Source) record(b []byte, now time.Time) {
	r, err := parseRecord(b)
	if err != nil {
		s.fault(b, err)
		return
	}
	if r.sequence < s.next {
		return // read before a restart
	}
	if missing := r.sequence - s.next; s.next != 0 && missing > 0 {
		s.o.Lost(flow.Gap{
			Node: s.o.Node, Source: s.o.Name, Kind: flow.GapOverrun, Start: s.good, End: now,
			Detail: fmt.Sprintf("%d records of the kernel's log were overwritten before they were read", missing),
		})
	}
	s.next, s.good = r.sequence+1, now
	o := flow.Observation{Time: wall(r.micros, now)}
	switch ok, err := s.o.Parser.Parse(r.text, &o); {
	case err != nil:
		s.fault(r.text, err)
	case ok:
		s.out = append(s.out, o)
	}
	if now.Sub(s.saved) >= saveInterval {
		if err := s.save(now); err != nil {
			s.o.Logger.Error("the place in the kernel's log is not kept", "source", s.o.Name, "error", err)
		}
	}
}

const saveInterval = time.Second

// wall turns a time since boot into one by the clock.
func wall(micros uint64, now time.Time) int64 {
	var boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &boot); err != nil {
		return now.UnixNano()
	}
	ago := boot.Nano() - int64(micros)*1000
	if ago < 0 || int64(micros) > boot.Nano() {
		return now.UnixNano()
	}
	return now.UnixNano() - ago
}

// fault counts a record that cannot be read, and shows the first.
func (s *Source) fault(b []byte, err error) {
	if s.malformed.Add(1) == 1 {
		s.o.Logger.Warn("a record of the kernel's log cannot be read, further ones are only counted", "source", s.o.Name,
			"error", err, "record", fmt.Sprintf("%.200s", b))
	}
}

func (s *Source) placeFile() string {
	return filepath.Join(s.o.StateDir, "kmsg-"+strings.ReplaceAll(s.o.Name, "/", "_")+".json")
}

func (s *Source) load() (*place, error) {
	if s.o.StateDir == "" {
		return nil, nil
	}
	b, err := os.ReadFile(s.placeFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var p place
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, fmt.Errorf("read %s: %w", s.placeFile(), err)
	}
	return &p, nil
}

func (s *Source) save(now time.Time) error {
	s.saved = now
	if s.o.StateDir == "" || s.next == 0 {
		return nil
	}
	b, err := json.Marshal(place{Boot: s.boot, Next: s.next, Saved: now})
	if err != nil {
		return err
	}
	temporary := s.placeFile() + ".new"
	if err := os.WriteFile(temporary, b, 0o600); err != nil {
		return fmt.Errorf("keep the place in the kernel's log: %w", err)
	}
	return os.Rename(temporary, s.placeFile())
}
