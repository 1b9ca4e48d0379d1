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
	ticker := time.NewTicker(s.o.DumpInterval)
	defer ticker.Stop()
	for {
		if err := s.dump(); err != nil && ctx.Err() == nil {
			return err
		}
		select {
		case <-ticker.C:
		case <-s.heal:
			// A storm ends with a dump of its own: let it pass first.
			select {
			case <-time.After(healInterval):
			case <-ctx.Done():
			}
			select {
			case <-s.heal:
			default:
			}
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// dump delivers the whole table between DumpBegin and DumpEnd. A dump that
// stays incomplete has no end: nothing may be concluded from it.
func (s *Source) dump() error {
	for range maxTries {
		// Told, and taken in, before the kernel is asked: whatever ends after
		// this moment is known to have ended during the dump.
		out := s.mark(flow.EventDumpBegin, s.o.Deliver(nil))
		if err := request(s.dumps.Conn); err != nil {
			return err
		}
		out, err := s.readDump(out)
		if errors.Is(err, errInterrupted) {
			s.o.Deliver(out)
			continue
		}
		if err != nil {
			s.o.Deliver(out)
			return fmt.Errorf("dump conntrack: %w", err)
		}
		s.o.Deliver(s.mark(flow.EventDumpEnd, s.o.Deliver(out)))
		return nil
	}
	return nil
}

func (s *Source) mark(e flow.Event, out []flow.Observation) []flow.Observation {
	return s.o.Deliver(append(out, flow.Observation{Source: flow.SourceConntrack, Event: e, Time: time.Now().UnixNano()}))
}

// request asks for the entries of both address families.
func request(conn *netlink.Conn) error {
	_, err := conn.Send(netlink.Message{
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
			case unix.NLMSG_DONE:
				if interrupted {
					return out, errInterrupted
				}
				return out, nil
			case unix.NLMSG_ERROR:
				return out, errorOf(payload)
			}
			if len(out) == cap(out) {
				out = s.o.Deliver(out)
			}
			out = append(out, flow.Observation{Time: at})
			if err := Decode(header, payload, &out[len(out)-1]); err != nil {
				s.fault(err)
				out = out[:len(out)-1]
				continue
			}
			s.dumped.Add(1)
		}
	}
}

// errorOf reads a struct nlmsgerr: a negative errno in host order.
func errorOf(payload []byte) error {
	if len(payload) < 4 {
		return nlmsg.ErrTruncated
	}
	return syscall.Errno(-int32(binary.NativeEndian.Uint32(payload)))
}
