// Package hubble reads the policy verdicts that Cilium's Hubble observes on a node.
package hubble

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/flowaudit/flowaudit/flow"
)

// Socket is where Cilium's agent serves its node's Hubble.
const Socket = "/var/run/cilium/hubble.sock"

// Options configure a Source.
type Options struct {
	Node string // who reports gaps
	// Address is only for messages; Conn connects to it.
	Address string
	Conn    func() (*grpc.ClientConn, error)
	// Memory is what one opening of the source leaves to the next.
	Memory  *Memory
	Deliver func([]flow.Observation) []flow.Observation
	Lost    func(flow.Gap)
	Logger  *slog.Logger
}

// Memory is how far Hubble's flows were read. The zero value begins now.
type Memory struct {
	last time.Time // of the newest flow
	good time.Time // when the stream was last whole
}

// Validate names what is missing.
func (o *Options) Validate() error {
	if o.Conn == nil || o.Memory == nil || o.Deliver == nil || o.Lost == nil || o.Logger == nil {
		return errors.New("read Hubble: Conn, Memory, Deliver, Lost and Logger must be set")
	}
	return nil
}

const (
	name = "hubble"
	// askTimeout bounds how long Hubble may take to say how it is.
	askTimeout = 5 * time.Second
	// Between two tries the source waits twice as long as before, from
	// firstRetry on; after maxRetries it ends, and whoever opened it may open
	// it again. Hubble's ring buffer keeps what is missed meanwhile.
	firstRetry = 250 * time.Millisecond
	maxRetries = 5
)

// Source reads one Hubble.
type Source struct {
	o      Options
	conn   *grpc.ClientConn
	client observerpb.ObserverClient
	recent recent
	retry  time.Duration

	malformed atomic.Uint64
}

// Open connects, and asks whether somebody is there.
func Open(o Options) (*Source, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	conn, err := o.Conn()
	if err != nil {
		return nil, err
	}
	s := &Source{o: o, conn: conn, client: observerpb.NewObserverClient(conn), recent: newRecent(), retry: firstRetry}
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	if _, err := s.client.ServerStatus(ctx, &observerpb.ServerStatusRequest{}); err != nil {
		return nil, errors.Join(fmt.Errorf("ask Hubble at %s how it is: %w: is hubble.enabled=true set, and its socket mounted into the agent's container?", o.Address, err), conn.Close())
	}
	return s, nil
}

// Name returns hubble.
func (s *Source) Name() string { return name }

// Malformed counts flows that could not be read.
func (s *Source) Malformed() uint64 { return s.malformed.Load() }

// errRelay says that the address is not a node's own Hubble.
var errRelay = errors.New("this is Hubble Relay, which tells the flows of all nodes, so that every agent would report them: give the address of the node's own Hubble")

// Run reads until ctx ends, and closes the source.
func (s *Source) Run(ctx context.Context) error {
	defer func() { _ = s.conn.Close() }()
	if s.o.Memory.good.IsZero() {
		s.o.Memory.good = time.Now()
	}
	wait := s.retry
	for tries := 0; ; tries++ {
		received, err := s.stream(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errRelay):
			return fmt.Errorf("read Hubble at %s: %w", s.o.Address, err)
		case received:
			tries, wait = 0, s.retry
		case tries >= maxRetries:
			return fmt.Errorf("read Hubble at %s: %w", s.o.Address, err)
		}
		s.o.Logger.Warn("Hubble ended its stream, asking again", "address", s.o.Address, "error", err, "in", wait)
		select {
		case <-time.After(wait + rand.N(wait/4+1)):
		case <-ctx.Done():
			return nil
		}
		wait *= 2
	}
}

// stream reads until the stream ends. received says that it told anything.
func (s *Source) stream(ctx context.Context) (received bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	since := time.Now()
	if !s.o.Memory.last.IsZero() {
		since = s.o.Memory.last.Add(1)
		if err := s.restarted(ctx); err != nil {
			return false, err
		}
	}
	stream, err := s.client.GetFlows(ctx, &observerpb.GetFlowsRequest{Follow: true, Since: timestamppb.New(since), Whitelist: wanted()})
	if err != nil {
		return false, err
	}
	if s.o.Memory.last.IsZero() {
		s.o.Memory.last = since
	}
	out := s.o.Deliver(nil)
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			err = errors.New("the server closed it")
		}
		if err != nil {
			return received, err
		}
		received = true
		switch r := m.GetResponseTypes().(type) {
		case *observerpb.GetFlowsResponse_Flow:
			out = s.flow(r.Flow, out)
		case *observerpb.GetFlowsResponse_LostEvents:
			s.lost(r.LostEvents)
		case *observerpb.GetFlowsResponse_NodeStatus:
			return received, errRelay
		}
		out = s.o.Deliver(out)
		s.o.Memory.good = time.Now()
	}
}

func (s *Source) flow(f *flowpb.Flow, out []flow.Observation) []flow.Observation {
	o := flow.Observation{Time: time.Now().UnixNano()}
	ok, err := convert(f, &o)
	if at := f.GetTime(); at.IsValid() && at.AsTime().After(s.o.Memory.last) {
		s.o.Memory.last = at.AsTime()
	}
	switch {
	case err != nil:
		if s.malformed.Add(1) == 1 {
			s.o.Logger.Warn("a flow of Hubble's cannot be read, further ones are only counted", "error", err, "flow", fmt.Sprintf("%.300s", f))
		}
	case ok && !s.recent.repeats(f, &o):
		if len(out) == cap(out) {
			out = s.o.Deliver(out)
		}
		return append(out, o)
	}
	return out
}

// lost tells what Cilium itself did not see.
func (s *Source) lost(l *flowpb.LostEvent) {
	g := flow.Gap{
		Node: s.o.Node, Source: name, Kind: flow.GapOverrun, Start: s.o.Memory.good, End: time.Now(), Lost: l.GetNumEventsLost(),
		Detail: "Cilium lost events: " + l.GetSource().String(),
	}
	if l.GetFirst().IsValid() && l.GetLast().IsValid() {
		g.Start, g.End = l.GetFirst().AsTime(), l.GetLast().AsTime()
	}
	s.o.Lost(g)
}

// restarted tells a gap if Hubble began anew since it was last read: its ring
// buffer is empty then. If only the connection broke, nothing is lost.
func (s *Source) restarted(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	status, err := s.client.ServerStatus(ctx, &observerpb.ServerStatusRequest{})
	if err != nil {
		return err
	}
	began := time.Now().Add(-time.Duration(status.GetUptimeNs()))
	if good := s.o.Memory.good; began.After(good) {
		s.o.Lost(flow.Gap{Node: s.o.Node, Source: name, Kind: flow.GapSource, Start: good, End: began, Detail: "Cilium's agent was restarted"})
		s.o.Memory.good = began
	}
	return nil
}
