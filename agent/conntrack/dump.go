package conntrack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/flowaudit/flowaudit/agent/nlmsg"
	"github.com/flowaudit/flowaudit/flow"
)

// errInterrupted says that the table changed its size while it was dumped:
// entries may be missing.
var errInterrupted = errors.New("dump was interrupted")

// maxTries bounds how often an interrupted dump is repeated at once.
const maxTries = 3

// keepDumping dumps at once, then at each interval and after losses.
func (s *Source) keepDumping(ctx context.Context) error {
	defer s.dumps.Close()
	defer s.dumps.StopWith(ctx)()
	defer s.closeStats() //nolint:errcheck // nothing was written
	ticker := time.NewTicker(s.o.DumpInterval)
	defer ticker.Stop()
	out := s.o.Deliver(nil)
	for {
		var err error
		out, err = s.dump(out)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("dump conntrack: %w", err)
		}
		if err := s.tellFull(time.Now()); err != nil {
			return err
		}
		if !s.dumpIsDue(ctx, ticker.C, time.Now()) {
			return nil
		}
	}
}

// dumpIsDue waits for the time of the next dump: the interval's, or at once
// after a loss. A storm of losses dumps once in a healInterval, and once when
// it is over. It returns false when ctx ends.
func (s *Source) dumpIsDue(ctx context.Context, interval <-chan time.Time, last time.Time) bool {
	select {
	case <-ctx.Done():
		return false
	case <-interval:
		return true
	case <-s.heal:
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(time.Until(last.Add(healInterval))):
	}
	select {
	case <-s.heal: // the coming dump answers it too
	default:
	}
	return true
}

// dump delivers the whole table between DumpBegin and DumpEnd. A dump that
// stays incomplete has no end: nothing may be concluded from it.
func (s *Source) dump(out []flow.Observation) ([]flow.Observation, error) {
	for range maxTries {
		// Told, and taken in, before the kernel is asked: whatever ends after
		// this moment is known to have ended during the dump.
		out = s.mark(flow.EventDumpBegin, out)
		if err := request(s.dumps); err != nil {
			return out, err
		}
		var err error
		out, err = s.readDump(out)
		switch {
		case err == nil:
			return s.mark(flow.EventDumpEnd, out), nil
		case !errors.Is(err, errInterrupted):
			return out, err
		}
	}
	return out, nil
}

// mark delivers an event of the dump itself, and what is in out before it.
func (s *Source) mark(e flow.Event, out []flow.Observation) []flow.Observation {
	out = append(s.room(out), flow.Observation{Source: flow.SourceConntrack, Event: e, Time: time.Now().UnixNano()})
	return s.o.Deliver(out)
}

// request asks for the entries of both address families.
func request(r *nlmsg.Reader) error {
	err := r.Send(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(getMessage), Flags: netlink.Request | netlink.Dump},
		Data:   []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0},
	})
	if err != nil {
		return fmt.Errorf("ask for a conntrack dump: %w", err)
	}
	return nil
}

// readDump decodes the answer as it comes. Only one datagram of it is held at
// a time, however large the table is.
func (s *Source) readDump(out []flow.Observation) ([]flow.Observation, error) {
	interrupted := false
	for {
		b, err := s.dumps.Next()
		if err != nil {
			return out, err
		}
		at := time.Now().UnixNano()
		for len(b) > 0 {
			header, payload, rest, err := nlmsg.Message(b)
			if err != nil {
				s.fault(err)
				break
			}
			b = rest
			interrupted = interrupted || header.Flags&unix.NLM_F_DUMP_INTR != 0
			switch header.Type {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				if err := errorOf(payload); err != nil {
					return out, err
				}
				if interrupted {
					return out, errInterrupted
				}
				return out, nil
			}
			out = s.entry(header, payload, at, out)
		}
	}
}

// entry appends one entry of a dump to out. What the filter keeps from the
// events has no place in the dump either.
func (s *Source) entry(header nlmsg.Header, payload []byte, at int64, out []flow.Observation) []flow.Observation {
	out = append(s.room(out), flow.Observation{Time: at})
	o := &out[len(out)-1]
	err := Decode(header, payload, o)
	if err != nil {
		s.fault(err)
	} else {
		s.dumped.Add(1)
	}
	if err != nil || o.Original.Src.IsLoopback() && o.Reply.Src.IsLoopback() {
		out = out[:len(out)-1]
	}
	return out
}

// errorOf reads what NLMSG_DONE and struct nlmsgerr begin with: 0, or a
// negative errno, in host order.
func errorOf(payload []byte) error {
	if len(payload) < 4 {
		return nlmsg.ErrTruncated
	}
	if code := int32(binary.NativeEndian.Uint32(payload)); code < 0 {
		return syscall.Errno(-code)
	}
	return nil
}
