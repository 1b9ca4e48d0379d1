// Package conntrack reads the kernel's connection tracking: its events, and dumps of the whole table.
package conntrack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/mdlayher/netlink"
	ctnetlink "github.com/ti-mo/conntrack"
	"github.com/ti-mo/netfilter"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/flowaudit/flowaudit/agent/nlmsg"
	"github.com/flowaudit/flowaudit/flow"
)

// Options configure a Source.
type Options struct {
	Node string // who reports gaps
	// Deliver takes a filled slice and returns an empty one to fill next. It
	// blocks while the table is busy; the socket's buffer holds what comes then.
	Deliver func([]flow.Observation) []flow.Observation
	// Lost is told what was not seen.
	Lost func(flow.Gap)
	// DumpInterval is how often the table is dumped for the counters of long
	// connections; 0 takes 10 s. A dump costs about 1 µs a connection.
	DumpInterval time.Duration
	// ReceiveBuffer of the events' socket in bytes; 0 takes 32 MiB.
	ReceiveBuffer int
	Logger        *slog.Logger
}

const (
	defaultDumpInterval  = 10 * time.Second
	defaultReceiveBuffer = 32 << 20
	// eventSize bounds an event; one is a few hundred bytes.
	eventSize = 8 << 10
	// dumpSize is what the kernel fills at most in one datagram of a dump.
	dumpSize = 64 << 10
	// healInterval lies at least between a dump and the next one after a loss,
	// so that a storm of losses does not dump without end.
	healInterval = 2 * time.Second
)

// Stats counts what a Source has read.
type Stats struct {
	Events, Dumped, Malformed, Overruns uint64
}

// Source reads events and dumps.
type Source struct {
	o      Options
	events *nlmsg.Reader
	dumps  *nlmsg.Reader
	heal   chan struct{} // asks for a dump after a loss
	asked  chan []Question

	stats      func() ([]ctnetlink.Stats, error) // of the kernel's tracking; used by the dumps
	closeStats func() error
	drops      drops // at the last look
	looked     time.Time

	read, dumped, malformed, overruns, unanswered atomic.Uint64
}

// Open joins the events in the network namespace of the calling thread.
func Open(o Options) (*Source, error) {
	if o.Deliver == nil || o.Lost == nil || o.Logger == nil {
		return nil, errors.New("open conntrack: Deliver, Lost and Logger must be set")
	}
	if o.DumpInterval == 0 {
		o.DumpInterval = defaultDumpInterval
	}
	if o.ReceiveBuffer == 0 {
		o.ReceiveBuffer = defaultReceiveBuffer
	}
	s := &Source{o: o, heal: make(chan struct{}, 1), asked: make(chan []Question, 1)}
	var err error
	if s.dumps, err = open(dumpSize, func(*netlink.Conn) error { return nil }); err != nil {
		return nil, err
	}
	if s.events, err = open(eventSize, s.listen); err != nil {
		return nil, errors.Join(err, s.dumps.Close())
	}
	statistics, err := ctnetlink.Dial(nil)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open conntrack socket: %w", err), s.dumps.Close(), s.events.Close())
	}
	s.stats, s.closeStats = statistics.Stats, statistics.Close
	return s, nil
}

// open opens a socket, configures it and makes a reader of it.
func open(datagram int, configure func(*netlink.Conn) error) (*nlmsg.Reader, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("open conntrack socket: %w", err)
	}
	if err := configure(conn); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return nlmsg.NewReader(conn, datagram)
}

// listen joins the events that the filter lets pass.
func (s *Source) listen(conn *netlink.Conn) error {
	if err := nlmsg.ReceiveBuffer(conn, s.o.ReceiveBuffer); err != nil {
		return err
	}
	program, err := filter()
	if err != nil {
		return fmt.Errorf("assemble socket filter: %w", err)
	}
	if err := conn.SetBPF(program); err != nil {
		return fmt.Errorf("set socket filter: %w", err)
	}
	for _, g := range []netfilter.NetlinkGroup{netfilter.GroupCTNew, netfilter.GroupCTUpdate, netfilter.GroupCTDestroy} {
		if err := conn.JoinGroup(uint32(g)); err != nil {
			return fmt.Errorf("join conntrack events: %w: the agent needs CAP_NET_ADMIN in this network namespace", err)
		}
	}
	return nil
}

// Name returns conntrack.
func (s *Source) Name() string { return "conntrack" }

// Stats may be called at any time.
func (s *Source) Stats() Stats {
	return Stats{Events: s.read.Load(), Dumped: s.dumped.Load(), Malformed: s.malformed.Load(), Overruns: s.overruns.Load()}
}

// Run dumps the table, then reads events and dumps again from time to time,
// until ctx ends. It closes the source.
func (s *Source) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.readEvents(ctx) })
	group.Go(func() error { return s.keepDumping(ctx) })
	group.Go(func() error { return s.ask(ctx) })
	return group.Wait()
}

func (s *Source) readEvents(ctx context.Context) error {
	defer s.events.Close()
	defer s.events.StopWith(ctx)()
	good := time.Now()
	out := s.lost(s.o.Deliver(nil)) // nobody listened before
	for {
		datagram, err := s.events.Next()
		now := time.Now()
		if err == nil {
			good = now
			out, err = s.drain(datagram, now.UnixNano(), out)
		}
		switch {
		case err == nil:
		case errors.Is(err, unix.ENOBUFS):
			s.overrun(good, time.Now())
			out = s.lost(out)
		case errors.Is(err, nlmsg.ErrStopped):
			return nil
		default:
			return fmt.Errorf("read conntrack events: %w", err)
		}
	}
}

// drain decodes a datagram and those that wait behind it, as many as fit, so
// that the hand-over and the clock are paid once for many.
func (s *Source) drain(datagram []byte, at int64, out []flow.Observation) ([]flow.Observation, error) {
	for {
		out = s.decode(datagram, at, out)
		if len(out) == cap(out) {
			return s.o.Deliver(out), nil
		}
		var err error
		if datagram, err = s.events.Poll(); err != nil {
			if errors.Is(err, unix.EAGAIN) {
				err = nil
			}
			return s.o.Deliver(out), err
		}
	}
}

// decode appends the messages of a datagram to out. One that cannot be decoded
// is counted, and the rest goes on.
func (s *Source) decode(b []byte, at int64, out []flow.Observation) []flow.Observation {
	for len(b) > 0 {
		header, payload, rest, err := nlmsg.Message(b)
		if err != nil {
			s.fault(err)
			break
		}
		b = rest
		if header.Type == unix.NLMSG_ERROR {
			out = s.answer(header, payload, at, out)
			continue
		}
		s.read.Add(1)
		out = append(s.room(out), flow.Observation{Time: at})
		if err := Decode(header, payload, &out[len(out)-1]); err != nil {
			s.fault(err)
			out = out[:len(out)-1]
		}
	}
	return out
}

// room delivers a full slice, so that appending never makes a longer one.
func (s *Source) room(out []flow.Observation) []flow.Observation {
	if len(out) < cap(out) {
		return out
	}
	return s.o.Deliver(out)
}

// overrun takes in that events were lost, and asks for a dump that shows what
// they would have said.
func (s *Source) overrun(good, now time.Time) {
	s.overruns.Add(1)
	s.o.Lost(flow.Gap{Node: s.o.Node, Source: s.Name(), Kind: flow.GapOverrun, Start: good, End: now})
	select {
	case s.heal <- struct{}{}:
	default:
	}
}

// lost tells the table, in the order of the events, that some before are missing.
func (s *Source) lost(out []flow.Observation) []flow.Observation {
	return s.o.Deliver(append(s.room(out), flow.Observation{Source: flow.SourceConntrack, Event: flow.EventLost, Time: time.Now().UnixNano()}))
}

// fault counts a message that could not be decoded, and shows the first.
func (s *Source) fault(err error) {
	if s.malformed.Add(1) == 1 {
		s.o.Logger.Warn("conntrack message cannot be decoded, further ones are only counted", "error", err)
	}
}
