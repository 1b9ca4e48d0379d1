// Package tap logs the first packet of each connection attempt by rules of its own, before any policy.
package tap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/flowaudit/flowaudit/agent/conntrack"
	"github.com/flowaudit/flowaudit/agent/nflog"
	"github.com/flowaudit/flowaudit/agent/nftable"
	"github.com/flowaudit/flowaudit/agent/nlmsg"
	"github.com/flowaudit/flowaudit/flow"
)

// Options configure a Source.
type Options struct {
	Group uint16 // NFLOG group of the records
	// Pods limits the records to packets from or to these addresses; empty for all.
	Pods []netip.Prefix
	Node string // who reports gaps
	// Deliver and Lost are nflog's.
	Deliver func([]flow.Observation) []flow.Observation
	Lost    func(flow.Gap)
	// ReceiveBuffer of the records' socket in bytes; 0 takes nflog's.
	ReceiveBuffer int
	// Shared leaves the table open to other programs' changes, as a kernel
	// before 5.12 does.
	Shared bool
	Logger *slog.Logger
}

// tableName is the nftables table of the tap.
const tableName = "flowaudit-tap"

// Source reads the attempts.
type Source struct {
	*nflog.Source
	o       Options
	table   *nftable.Table
	changes *nlmsg.Reader
	traces  *nlmsg.Reader
	wanted  chan []Traced
}

// Open binds the group and adds the table, in the network namespace of the
// calling thread. A *nflog.TakenError says that another program reads the group.
func Open(o Options) (*Source, error) {
	if !conntrack.Events() {
		return nil, errors.New("open tap: net.netfilter.nf_conntrack_events is 0, so that nothing tells which attempts got through: set it to 1 or 2")
	}
	records, err := nflog.Open(nflog.Options{
		Group: nflog.Group{Number: o.Group, Meaning: nflog.MeaningAttempt}, Node: o.Node, Deliver: o.Deliver, Lost: o.Lost,
		ReceiveBuffer: o.ReceiveBuffer, Logger: o.Logger,
	})
	if err != nil {
		return nil, fmt.Errorf("open tap: %w", err)
	}
	s := &Source{Source: records, o: o, wanted: make(chan []Traced, 1)}
	if s.changes, err = watch(); err != nil {
		return nil, errors.Join(fmt.Errorf("open tap: %w", err), records.Close())
	}
	if s.traces, err = watchTraces(); err != nil {
		return nil, errors.Join(fmt.Errorf("open tap: %w", err), records.Close(), s.changes.Close())
	}
	if s.table, err = nftable.Add(nftable.Options{Name: tableName, Fill: rules(o.Group, o.Pods), Shared: o.Shared}); err != nil {
		return nil, errors.Join(fmt.Errorf("open tap: %w", err), records.Close(), s.changes.Close(), s.traces.Close())
	}
	return s, nil
}

// Run reads until ctx ends. It then removes the table and closes the source.
func (s *Source) Run(ctx context.Context) error {
	group, running := errgroup.WithContext(ctx)
	group.Go(func() error { return s.keep(running) })
	group.Go(func() error { return s.renew(running) })
	group.Go(func() error { return s.trace(running) })
	group.Go(func() error { return s.readTraces(running) })
	group.Go(func() error { return s.Source.Run(running) })
	return errors.Join(group.Wait(), s.table.Close())
}

// keep puts the table back whenever somebody removes it or a rule of it.
func (s *Source) keep(ctx context.Context) error {
	defer s.changes.Close()
	defer s.changes.StopWith(ctx)()
	good := time.Now()
	for {
		datagram, err := s.changes.Next()
		switch {
		case errors.Is(err, nlmsg.ErrStopped):
			return nil
		case errors.Is(err, unix.ENOBUFS): // a removal may be among what was lost
		case err != nil:
			return fmt.Errorf("read nftables notifications: %w", err)
		case !removes(datagram, tableName):
			continue
		}
		if err := s.restore(good); err != nil {
			return err
		}
		good = time.Now()
	}
}

// restore looks whether the table is whole, and tells the time without it as a
// gap. A change that was read later than it was made began before: since the
// last look at the latest.
func (s *Source) restore(good time.Time) error {
	whole, err := s.table.Intact()
	if err != nil || whole {
		return err
	}
	if err := s.table.Restore(); err != nil {
		return err
	}
	now := time.Now()
	start := now.Add(-noticed)
	if good.After(start) {
		start = good
	}
	s.o.Logger.Warn("the tap's table was removed or changed by another program, and is put back", "table", "inet "+tableName)
	s.o.Lost(flow.Gap{
		Node: s.o.Node, Source: s.Name(), Kind: flow.GapSource, Start: start, End: now,
		Detail: "the nftables table inet " + tableName + " was removed or changed by another program; it is back",
	})
	return nil
}
