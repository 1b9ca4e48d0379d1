// Package felix takes in the flows that Calico's Felix reports on its node.
package felix

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/proto/goldmane"
)

// Socket is where Felix looks for a collector every 10 s, with
// flowLogsLocalReporter: Enabled in its FelixConfiguration.
const Socket = "/var/run/calico/flows/flows.sock"

// Options configure a Source.
type Options struct {
	Node string // this node
	Path string // of the socket; empty takes Socket
	// Allowed says to take permitted flows too, not only refused ones. Where
	// conntrack sees the connections it tells of them with addresses.
	Allowed bool
	// StateDir is where it is kept what was taken, over a restart; empty for nowhere.
	StateDir string
	// Report takes flows in.
	Report func([]flow.Flow)
	Lost   func(flow.Gap)
	Logger *slog.Logger
}

// Validate names what is missing.
func (o *Options) Validate() error {
	if o.Report == nil || o.Lost == nil || o.Logger == nil {
		return errors.New("serve Felix: Report, Lost and Logger must be set")
	}
	return nil
}

const name = "felix"

// Source is the server that Felix dials.
type Source struct {
	o         Options
	listener  net.Listener
	connected atomic.Int32
	seen      *seen

	malformed atomic.Uint64
}

// Open makes the socket. It fails if another program serves it.
func Open(o Options) (*Source, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if o.Path == "" {
		o.Path = Socket
	}
	if err := os.MkdirAll(filepath.Dir(o.Path), 0o750); err != nil {
		return nil, fmt.Errorf("make the directory of Felix's socket: %w: mount /var/run/calico into the agent's container", err)
	}
	if err := unlink(o.Path); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", o.Path)
	if err != nil {
		return nil, fmt.Errorf("listen for Felix: %w", err)
	}
	known, err := loadSeen(o.StateDir)
	if err != nil {
		o.Logger.Error("what Felix reported before is not known, it may count again", "error", err)
	}
	return &Source{o: o, listener: l, seen: known}, nil
}

// unlink removes a socket that nobody serves any more.
func unlink(path string) error {
	c, err := net.Dial("unix", path)
	if err == nil {
		_ = c.Close()
		return fmt.Errorf("listen for Felix: another program serves %s: Felix reports to one only, stop the other", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove Felix's old socket: %w", err)
	}
	return nil
}

// Name returns felix.
func (s *Source) Name() string { return name }

// Malformed counts flows that could not be read.
func (s *Source) Malformed() uint64 { return s.malformed.Load() }

// patience is how long Felix may take to find the socket. It looks every 10 s.
const patience = 30 * time.Second

// Run serves until ctx ends, and removes the socket.
func (s *Source) Run(ctx context.Context) error {
	server := grpc.NewServer()
	goldmane.RegisterFlowCollectorServer(server, collector{source: s})
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := server.Serve(s.listener); err != nil && ctx.Err() == nil {
			return fmt.Errorf("serve Felix at %s: %w", s.o.Path, err)
		}
		return nil
	})
	group.Go(func() error {
		s.watch(ctx)
		server.Stop()
		return nil
	})
	return errors.Join(group.Wait(), s.seen.save(s.o.StateDir, time.Now()))
}

// watch tells the times without Felix as gaps.
func (s *Source) watch(ctx context.Context) {
	tick := time.NewTicker(patience)
	defer tick.Stop()
	told := false
	for since := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			if s.connected.Load() == 0 {
				s.o.Lost(flow.Gap{Node: s.o.Node, Source: name, Kind: flow.GapSource, Start: since, End: now, Detail: "Felix does not report"})
				if !told {
					s.o.Logger.Warn("Felix does not report: set flowLogsLocalReporter: Enabled in its FelixConfiguration", "socket", s.o.Path)
				}
				told = true
			}
			since = now
			if err := s.seen.save(s.o.StateDir, now); err != nil {
				s.o.Logger.Error("what Felix reported is not kept", "error", err)
			}
		}
	}
}

// collector is the service that Felix calls.
type collector struct {
	goldmane.UnimplementedFlowCollectorServer
	source *Source
}

// Connect takes updates until Felix, or the source, ends.
func (c collector) Connect(stream goldmane.FlowCollector_ConnectServer) error {
	s := c.source
	if s.connected.Add(1) == 1 {
		s.o.Logger.Info("Felix reports", "socket", s.o.Path)
	}
	defer s.connected.Add(-1)
	for {
		update, err := stream.Recv()
		if err != nil {
			return err
		}
		s.take(update.GetFlow())
		// Felix waits for each receipt.
		if err := stream.Send(&goldmane.FlowReceipt{}); err != nil {
			return err
		}
	}
}

func (s *Source) take(g *goldmane.Flow) {
	f, err := convert(g, s.o.Node)
	if err != nil {
		if s.malformed.Add(1) == 1 {
			s.o.Logger.Warn("a flow of Felix's cannot be read, further ones are only counted", "error", err, "flow", fmt.Sprintf("%.300s", g))
		}
		return
	}
	if f.Verdict != flow.VerdictDenied && !s.o.Allowed {
		return
	}
	if s.seen.first(g, time.Now()) {
		s.o.Report([]flow.Flow{f})
	}
}
