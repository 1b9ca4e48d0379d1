// Package nflog reads the packets that firewall rules log to an NFLOG group.
package nflog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	nflog "github.com/florianl/go-nflog/v2"
	"golang.org/x/sys/unix"

	"github.com/flowaudit/flowaudit/agent/nlmsg"
	"github.com/flowaudit/flowaudit/flow"
)

// Options configure a Source.
type Options struct {
	Group Group
	Node  string // who reports gaps
	// Policies are those that the cluster has; nil if they are not known. Names
	// that are too long for a log prefix are found among them.
	Policies func() []flow.PolicyRef
	// Deliver takes a filled slice and returns an empty one to fill next. It
	// blocks while the table is busy; the socket's buffer holds what comes then.
	Deliver func([]flow.Observation) []flow.Observation
	// Lost is told what was not seen.
	Lost func(flow.Gap)
	// ReceiveBuffer of the socket in bytes; 0 takes 16 MiB.
	ReceiveBuffer int
	Logger        *slog.Logger
}

const (
	defaultReceiveBuffer = 16 << 20
	// copyRange holds an IPv6 header, some extension headers and a TCP header.
	copyRange = 128
	// Records wait in the kernel until there are enough of them, or for a
	// time: one datagram of a hundred costs little more than one of one.
	queueThreshold = 96
	flushTimeout   = 5 // in 1/100 s
	// kernelBuffer holds queueThreshold records with all their attributes.
	kernelBuffer = 64 << 10
	gapInterval  = 250 * time.Millisecond
)

// Stats counts what a Source has read.
type Stats struct {
	Packets, Malformed, Lost uint64
}

// Source reads one group.
type Source struct {
	o       Options
	reader  *nlmsg.Reader
	decoder *decoder
	next    uint32 // sequence number that should come
	started bool
	gap     flow.Gap // not told yet
	good    time.Time

	packets, malformed, lost atomic.Uint64
}

// Open binds the group in the network namespace of the calling thread. A
// *TakenError says that another program reads it.
func Open(o Options) (*Source, error) {
	if o.Deliver == nil || o.Lost == nil || o.Logger == nil {
		return nil, errors.New("open NFLOG: Deliver, Lost and Logger must be set")
	}
	if o.ReceiveBuffer == 0 {
		o.ReceiveBuffer = defaultReceiveBuffer
	}
	socket, err := nflog.Open(&nflog.Config{Group: o.Group.Number, Copymode: nflog.CopyPacket, Bufsize: copyRange, Flags: nflog.FlagSeq})
	if err != nil {
		return nil, fmt.Errorf("open NFLOG socket: %w", err)
	}
	if err := errors.Join(nlmsg.ReceiveBuffer(socket.Con, o.ReceiveBuffer), bind(socket.Con, o.Group.Number)); err != nil {
		return nil, errors.Join(err, socket.Con.Close())
	}
	s := &Source{o: o, decoder: newDecoder(o.Group)}
	s.decoder.policies = o.Policies
	if s.reader, err = nlmsg.NewReader(socket.Con, 2*kernelBuffer); err != nil {
		return nil, err
	}
	return s, nil
}

// Name returns nflog: and the group's number, or tap for the tap's group.
func (s *Source) Name() string {
	if s.o.Group.Meaning == MeaningAttempt {
		return "tap"
	}
	return fmt.Sprintf("nflog:%d", s.o.Group.Number)
}

// Stats may be called at any time.
func (s *Source) Stats() Stats {
	return Stats{Packets: s.packets.Load(), Malformed: s.malformed.Load(), Lost: s.lost.Load()}
}

// Close closes a source that is not run.
func (s *Source) Close() error { return s.reader.Close() }

// Run reads until ctx ends, and closes the source.
func (s *Source) Run(ctx context.Context) error {
	defer s.reader.Close()
	defer s.reader.StopWith(ctx)()
	s.good = time.Now()
	out := s.o.Deliver(nil)
	for {
		datagram, err := s.reader.Next()
		now := time.Now()
		switch {
		case err == nil:
			out = s.datagram(datagram, now, out)
			out = s.o.Deliver(out)
		case errors.Is(err, unix.ENOBUFS):
			s.overrun(now)
		case errors.Is(err, nlmsg.ErrStopped):
			s.tell()
			return nil
		default:
			return fmt.Errorf("read NFLOG group %d: %w", s.o.Group.Number, err)
		}
	}
}

// datagram decodes the messages of one datagram onto out. A message that
// cannot be decoded is counted, and the rest goes on.
func (s *Source) datagram(b []byte, now time.Time, out []flow.Observation) []flow.Observation {
	at := now.UnixNano()
	for len(b) > 0 {
		header, payload, rest, err := nlmsg.Message(b)
		if err != nil {
			s.fault(err)
			break
		}
		b = rest
		if header.Type == unix.NLMSG_DONE || header.Type != unix.NFNL_SUBSYS_ULOG<<8|packetMessage {
			continue
		}
		if len(out) == cap(out) {
			out = s.o.Deliver(out)
		}
		out = append(out, flow.Observation{Time: at})
		seq, hasSeq, err := s.decoder.decode(payload, &out[len(out)-1])
		s.packets.Add(1)
		if hasSeq {
			s.sequence(seq, now)
		}
		if err != nil {
			s.fault(err)
			out = out[:len(out)-1]
		}
	}
	s.good = now
	if s.gap.Lost > 0 && now.Sub(s.gap.Start) >= gapInterval {
		s.tell()
	}
	return out
}

// packetMessage is NFULNL_MSG_PACKET (linux/netfilter/nfnetlink_log.h).
const packetMessage = 0

// sequence finds records that never came by the gap in their numbers.
func (s *Source) sequence(seq uint32, now time.Time) {
	if missing := seq - s.next; s.started && missing != 0 {
		s.lost.Add(uint64(missing))
		if s.gap.Lost == 0 {
			s.gap = flow.Gap{Node: s.o.Node, Source: s.Name(), Kind: flow.GapSequence, Start: s.good}
		}
		s.gap.Lost += uint64(missing)
		s.gap.End = now
	}
	s.next, s.started = seq+1, true
}

// tell gives the gap out, if there is one.
func (s *Source) tell() {
	if s.gap.Lost > 0 {
		s.o.Lost(s.gap)
		s.gap = flow.Gap{}
	}
}

// overrun takes in that the socket was full. How many records were lost, the
// next one's sequence number tells.
func (s *Source) overrun(now time.Time) {
	s.o.Lost(flow.Gap{Node: s.o.Node, Source: s.Name(), Kind: flow.GapOverrun, Start: s.good, End: now})
}

// fault counts a message that could not be decoded, and shows the first.
func (s *Source) fault(err error) {
	if s.malformed.Add(1) == 1 {
		s.o.Logger.Warn("NFLOG record cannot be decoded, further ones are only counted", "group", s.o.Group.Number, "error", err)
	}
}
