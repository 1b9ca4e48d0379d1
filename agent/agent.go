package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flowaudit/flowaudit/agent/conntrack"
	"github.com/flowaudit/flowaudit/agent/nflog"
	"github.com/flowaudit/flowaudit/agent/tap"
	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/kube"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// drainDeadline is how long a stopping agent waits for the collector.
const drainDeadline = 5 * time.Second

// Run reads, merges and sends until ctx ends. It then stops in the order of a
// flow's way: the sources return, the table gives out what is open, the stream
// drains under a deadline.
func Run(ctx context.Context, o Options) error {
	conn, err := o.Collector.Conn()
	if err != nil {
		return err
	}
	defer conn.Close()
	a := &agent{Options: o, inbox: newInbox(), queue: newQueue(o.Cluster, o.instance(), o.MaxQueue), started: time.Now()}
	release, err := a.prepare()
	if err != nil {
		return err
	}
	defer release()
	return a.run(ctx, &stream{queue: a.queue, client: flowauditv1.NewIngestClient(conn), log: o.Log})
}

type agent struct {
	Options
	inbox   *inbox
	queue   *queue
	sources *sources
	loop    *loop
	index   *kube.Manifests // nil without manifests
	limits  []string
	started time.Time
}

// prepare makes the parts. The returned function undoes what it did to the
// network namespace.
func (a *agent) prepare() (release func(), err error) {
	release = func() {}
	names, localNode, err := a.names()
	if err != nil {
		return nil, err
	}
	if a.Scope == flow.ScopePod {
		if release, err = a.activate(); err != nil {
			return nil, err
		}
	}
	if a.Conntrack {
		a.limits = append(a.limits, conntrack.Limits()...)
	}
	t := newTable(tableOptions{
		Names: names, LocalNode: localNode, Unanswered: a.UnansweredAfter,
		MaxConns: a.MaxConnections, MaxFlows: a.MaxFlows, PerConn: a.PerConnection,
		Confirmed: a.confirmed(), Conntrack: a.Conntrack,
		Witness: len(a.NFLOG) > 0 && a.Conntrack, Tap: a.Tap, TapPods: a.TapPods,
	})
	if err := a.restore(t); err != nil {
		release()
		return nil, err
	}
	a.sources = newSources(a.openers(), a.inbox.lost, a.Log)
	a.loop = newLoop(loopOptions{
		Node: a.reporter(), Scope: a.Scope, Window: a.Window, StateDir: a.StateDir, Log: a.Log,
		Status: a.status, Malformed: a.sources.malformedBySource, Ask: a.ask,
	}, t, a.inbox, a.queue.put)
	return release, nil
}

// names finds who can name the local end.
func (a *agent) names() (n namer, localNode string, err error) {
	if a.Scope == flow.ScopePod {
		p, err := newPodNames(a.Pod)
		return p, a.Pod.Node, err
	}
	x := kube.NewIndex()
	if a.Manifests != "" {
		if a.index, err = kube.OpenManifests(a.Manifests, x, a.Log); err != nil {
			return nil, "", err
		}
	}
	return x, a.Node, nil
}

// activate switches connection tracking on in the pod's own namespace.
func (a *agent) activate() (func(), error) {
	a.limits = append(a.limits, podLimits()...)
	undo, err := conntrack.Activate()
	if err != nil {
		return nil, fmt.Errorf("switch connection tracking on in this pod: %w", err)
	}
	if err := conntrack.Account(); err != nil {
		a.Log.Warn("packets and bytes will be absent", "error", err)
	}
	return func() {
		if err := undo(); err != nil {
			a.Log.Error("the table that switches connection tracking on was left behind", "error", err)
		}
	}, nil
}

// restore takes over what an earlier run left, and tells the time between as a gap.
func (a *agent) restore(t *table) error {
	if a.StateDir == "" {
		return nil
	}
	known, saved, err := loadState(a.StateDir)
	if errors.Is(err, errState) {
		a.Log.Error("state is not taken over, live connections may be counted again", "error", err)
		return nil
	}
	if err != nil {
		return err
	}
	t.known = known
	if !saved.IsZero() {
		a.inbox.lost(flow.Gap{Kind: flow.GapDowntime, Start: saved, End: a.started, Detail: "the agent did not run"})
	}
	return nil
}

func (a *agent) openers() []opener {
	var all []opener
	for _, g := range a.NFLOG {
		all = append(all, opener{"nflog:" + fmt.Sprint(g.Number), func() (source, error) {
			s, err := nflog.Open(nflog.Options{
				Group: g, Node: a.reporter(), Deliver: a.inbox.deliver, Lost: a.inbox.lost, Logger: a.Log,
			})
			if err != nil {
				return nil, err
			}
			return nflogSource{s}, nil
		}})
	}
	if a.Conntrack {
		all = append(all, opener{"conntrack", func() (source, error) {
			s, err := conntrack.Open(conntrack.Options{
				Node: a.reporter(), Deliver: a.inbox.deliver, Lost: a.inbox.lost, DumpInterval: a.DumpInterval, Logger: a.Log,
			})
			if err != nil {
				return nil, err
			}
			return conntrackSource{s}, nil
		}})
	}
	if a.Tap {
		all = append(all, opener{"tap", a.openTap})
	}
	return all
}

type nflogSource struct{ *nflog.Source }

func (s nflogSource) Malformed() uint64 { return s.Stats().Malformed }

type conntrackSource struct{ *conntrack.Source }

func (s conntrackSource) Malformed() uint64 { return s.Stats().Malformed }

type tapSource struct{ *tap.Source }

func (s tapSource) Malformed() uint64 { return s.Stats().Malformed }

func (a *agent) openTap() (source, error) {
	s, err := tap.Open(tap.Options{
		Group: a.TapGroup, Pods: a.TapPods, Node: a.reporter(), Deliver: a.inbox.deliver, Lost: a.inbox.lost, Logger: a.Log,
	})
	if err != nil {
		return nil, err
	}
	return tapSource{s}, nil
}

// ask asks the conntrack source that is open, if one is.
func (a *agent) ask(questions []conntrack.Question) bool {
	s, open := a.sources.get("conntrack").(conntrackSource)
	return open && s.Ask(questions)
}

func (a *agent) status() flow.AgentStatus {
	return flow.AgentStatus{Version: a.Version, Started: a.started, Sources: a.sources.names(), Limits: a.limits}
}

func (a *agent) run(ctx context.Context, out *stream) error {
	failed, err := a.sources.start()
	if err != nil {
		return err
	}
	a.Log.Info("agent reads", "node", a.reporter(), "scope", a.Scope.String(), "sources", a.sources.names(), "collector", a.Collector.Address)

	group, reading := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(a.inbox.full)
		return a.sources.run(reading, failed)
	})
	if a.index != nil {
		group.Go(func() error { return a.index.Run(reading) })
	}
	group.Go(func() error {
		defer a.queue.close()
		a.loop.run()
		return nil
	})
	sending, stopSending := context.WithCancel(context.WithoutCancel(ctx))
	defer stopSending()
	drained := make(chan error, 1)
	go func() { drained <- out.run(sending) }()

	err = group.Wait()
	select {
	case e := <-drained:
		return errors.Join(err, e)
	case <-time.After(drainDeadline):
		stopSending()
		err = errors.Join(err, <-drained)
	}
	if batches, flows := a.queue.waiting(); batches > 0 {
		err = errors.Join(err, fmt.Errorf("stop: the collector did not take the last %d flows in %s", flows, drainDeadline))
	}
	return err
}
