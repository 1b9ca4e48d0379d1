package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flowaudit/flowaudit/agent/conntrack"
	"github.com/flowaudit/flowaudit/agent/ipvs"
	"github.com/flowaudit/flowaudit/agent/nflog"
	"github.com/flowaudit/flowaudit/agent/spool"
	"github.com/flowaudit/flowaudit/agent/tap"
	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/kube"
	"github.com/flowaudit/flowaudit/monitor"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// drainDeadline is how long a stopping agent waits for the collector.
const drainDeadline = 5 * time.Second

// Run reads, merges and sends until ctx ends. It then stops in the order of a
// flow's way: the sources return, the table gives out what is open, the stream
// drains under a deadline.
func Run(ctx context.Context, o Options) error {
	if o.EnableAccounting {
		return conntrack.Account()
	}
	conn, err := o.Collector.Conn()
	if err != nil {
		return err
	}
	defer conn.Close()
	a := &agent{Options: o, inbox: newInbox(), started: time.Now()}
	if err := a.openQueue(); err != nil {
		return err
	}
	release, err := a.prepare()
	if err != nil {
		return err
	}
	defer release()
	out := &stream{
		queue: a.queue, client: flowauditv1.NewIngestClient(conn), hurry: conn.ResetConnectBackoff, log: o.Log,
	}
	server, err := monitor.Listen(o.Monitor, newMetrics(a, out).subject(), o.Log)
	if err != nil {
		return err
	}
	telling, stop := context.WithCancel(context.WithoutCancel(ctx))
	told := make(chan error, 1)
	go func() { told <- server.Run(telling) }()
	err = a.run(ctx, out)
	stop()
	return errors.Join(err, <-told)
}

// openQueue makes the queue. Its epoch is another for each run, so that no two
// batches have one key, whatever became of the disk.
func (a *agent) openQueue() (err error) {
	epoch := rand.Uint64()
	a.queue = newQueue(a.Cluster, a.instance(), epoch, a.MaxQueue)
	a.queue.node, a.queue.scope = a.reporter(), a.Scope
	dir := a.spoolDir()
	if dir == "" {
		a.Log.Warn("batches wait in memory only: give --state-dir or --spool-dir a directory that outlasts a restart")
		return nil
	}
	a.queue.disk, err = openDisk(spool.Options{
		Dir: dir, Epoch: epoch, MaxBytes: a.SpoolMax, MaxAge: a.SpoolAge, Log: a.Log,
		Lost: func(l spool.Loss) {
			a.queue.lost.Add(l.Flows)
			a.inbox.lost(spoolGap(l))
		},
	})
	if err != nil {
		return err
	}
	a.covered = a.queue.disk.covered()
	return nil
}

type agent struct {
	Options
	inbox   *inbox
	queue   *queue
	tally   tally // of what the queue was given
	pulse   *pulse
	sources *sources
	loop    *loop
	cluster interface{ Run(context.Context) error } // keeps the names up to date; nil if nothing does
	watch   *kube.Watch                             // nil if no API server is asked
	index   *kube.Index                             // nil if the cluster is not known
	plugins []chosen                                // sources of network plugins
	notes   []string                                // which sources are read, and why
	limits  []string
	started time.Time
	covered time.Time                     // up to when an earlier run's batches tell, as far as the spool knows
	ipvs    atomic.Pointer[ipvs.Services] // served without connection tracking; nil if none is
	rules   rulesOf
}

// prepare makes the parts. The returned function undoes what it did to the
// network namespace.
func (a *agent) prepare() (release func(), err error) {
	release = func() {}
	a.plugins = a.choose(thisHost)
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
	a.limits = append(a.limits, a.pluginLimits()...)
	routes, err := a.openRoutes()
	if err != nil {
		return nil, err
	}
	undo := release
	release = func() { routes.close(a.Log); undo() }
	t := newTable(tableOptions{
		Names: names, LocalNode: localNode, Unanswered: a.UnansweredAfter,
		MaxConns: a.MaxConnections, MaxFlows: a.MaxFlows, PerConn: a.PerConnection,
		Confirmed: a.confirmed(elsewhere(a.plugins)), Conntrack: a.Conntrack,
		Witness: a.witness(), Tap: a.Tap, TapPods: a.TapPods,
		Causes: causes{Route: routes.refuses, Trace: a.trace}, Rule: a.ruleReason, IPVS: a.ipvs.Load, Labels: a.labels(),
	})
	if err := a.restore(t); err != nil {
		release()
		return nil, err
	}
	a.sources = newSources(a.openers(), a.inbox.lost, a.Log)
	a.loop = newLoop(loopOptions{
		Node: a.reporter(), Scope: a.Scope, Window: a.Window, StateDir: a.StateDir, Log: a.Log,
		Status: a.status, Malformed: a.sources.malformedBySource, Ask: a.ask, Full: a.queue.full, Apart: a.queue.disk != nil,
	}, t, a.inbox, func(b *flow.Batch) {
		a.tally.add(b)
		a.queue.put(b)
	})
	a.pulse = a.loop.pulse
	return release, nil
}

// names finds who can name the local end.
func (a *agent) names() (n namer, localNode string, err error) {
	if a.Scope == flow.ScopePod {
		p, err := newPodNames(a.Pod)
		return p, a.Pod.Node, err
	}
	switch {
	case a.Access.Wanted():
		x := kube.New(kube.Options{Partial: true})
		a.index = x
		a.watch, err = kube.OpenWatch(kube.WatchOptions{
			Access: a.Access, Node: a.Node, UserAgent: "flowaudit-agent/" + a.Version, Index: x, Lost: a.inbox.lost, Log: a.Log,
		})
		a.cluster = a.watch
		return x, a.Node, err
	case a.Manifests != "":
		x := kube.NewIndex()
		a.index = x
		a.cluster, err = kube.OpenManifests(a.Manifests, x, a.Log)
		return x, a.Node, err
	}
	return kube.NewIndex(), a.Node, nil
}

// syncTimeout bounds how long the sources wait for the names of the pods that
// run already.
const syncTimeout = 5 * time.Second

// startNames begins to follow the cluster, and waits a while for what there is.
func (a *agent) startNames(ctx context.Context, group *errgroup.Group) {
	if a.cluster == nil {
		return
	}
	group.Go(func() error { return a.cluster.Run(ctx) })
	if a.watch == nil {
		return
	}
	select {
	case <-a.watch.Synced():
	case <-time.After(syncTimeout):
	case <-ctx.Done():
	}
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

// restore takes over what an earlier run left.
func (a *agent) restore(t *table) error {
	if a.StateDir == "" {
		return nil
	}
	known, saved, err := loadState(a.StateDir)
	switch {
	case errors.Is(err, errState):
		a.Log.Error("state is not taken over, live connections may be counted again", "error", err)
	case err != nil:
		return err
	}
	if t.known = known; saved.After(a.covered) {
		a.covered = saved
	}
	return nil
}

// downtime tells, as soon as the sources are open, since when nobody watched.
func (a *agent) downtime() {
	if now := time.Now(); !a.covered.IsZero() && a.covered.Before(now) {
		a.inbox.lost(flow.Gap{Kind: flow.GapDowntime, Start: a.covered, End: now, Detail: "the agent did not run"})
	}
}

func (a *agent) openers() []opener {
	var all []opener
	for _, g := range a.NFLOG {
		all = append(all, opener{"nflog:" + fmt.Sprint(g.Number), func() (source, error) {
			s, err := nflog.Open(nflog.Options{
				Group: g, Node: a.reporter(), Policies: a.clusterPolicies(), Deliver: a.inbox.deliver, Lost: a.inbox.lost, Logger: a.Log,
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
		all = append(all, opener{tapName(a.TapPods), a.openTap})
	}
	return append(all, a.pluginOpeners()...)
}

type nflogSource struct{ *nflog.Source }

func (s nflogSource) Malformed() uint64 { return s.Stats().Malformed }

type conntrackSource struct{ *conntrack.Source }

func (s conntrackSource) Malformed() uint64 { return s.Stats().Malformed }

type tapSource struct{ *tap.Source }

func (s tapSource) Malformed() uint64 { return s.Stats().Malformed }

// tapName says what the tap is limited to: whoever concludes from what it did
// not see must know.
func tapName(pods []netip.Prefix) string {
	if len(pods) == 0 {
		return sourceTap
	}
	var list []string
	for _, p := range pods {
		list = append(list, p.String())
	}
	return sourceTap + "=" + strings.Join(list, ",")
}

func (a *agent) openTap() (source, error) {
	s, err := tap.Open(tap.Options{
		Group: a.TapGroup, Pods: a.TapPods, Node: a.reporter(), Deliver: a.inbox.deliver, Lost: a.inbox.lost, Logger: a.Log,
	})
	if err != nil {
		return nil, err
	}
	return tapSource{s}, nil
}

// trace lets the tap trace packets, if it is open.
func (a *agent) trace(packets []tap.Traced) bool {
	s, open := a.sources.get(tapName(a.TapPods)).(tapSource)
	return open && s.Trace(packets)
}

// ask asks the conntrack source that is open, if one is.
func (a *agent) ask(questions []conntrack.Question) bool {
	s, open := a.sources.get("conntrack").(conntrackSource)
	return open && s.Ask(questions)
}

func (a *agent) status() flow.AgentStatus {
	s := flow.AgentStatus{Version: a.Version, Started: a.started, Sources: a.sources.names(), Notes: a.notes, Limits: a.limits}
	if a.watch != nil {
		w := a.watch.Status()
		s.Skew, s.Limits = w.Skew, slices.Concat(a.limits, w.Problems)
	}
	if d := a.queue.disk; d != nil && d.failing.Load() {
		s.Limits = append(slices.Clip(s.Limits), "the disk takes nothing: batches wait in the agent's memory only")
	}
	if services := a.ipvs.Load(); services != nil {
		s.Limits = append(slices.Clip(s.Limits), limitIPVS)
	}
	return s
}

func (a *agent) run(ctx context.Context, out *stream) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, reading := errgroup.WithContext(ctx)
	a.startNames(reading, group)
	if a.Conntrack && a.Scope == flow.ScopeNode {
		a.readIPVS("/")
		group.Go(func() error { return a.followIPVS(reading) })
	}
	failed, err := a.sources.start()
	if err != nil {
		cancel()
		return errors.Join(err, group.Wait())
	}
	a.downtime()
	a.Log.Info("agent reads", "node", a.reporter(), "scope", a.Scope.String(), "sources", a.sources.names(), "collector", a.Collector.Address)

	group.Go(func() error {
		defer close(a.inbox.full)
		return a.sources.run(reading, failed)
	})
	group.Go(func() error {
		defer a.queue.close()
		a.loop.run()
		a.inbox.divert(a.queue.tell) // no window follows that would tell
		return nil
	})
	sending, stopSending := context.WithCancel(context.WithoutCancel(ctx))
	defer stopSending()
	drained, kept := make(chan error, 1), make(chan struct{})
	keeping, stopKeeping := context.WithCancel(context.WithoutCancel(ctx))
	defer stopKeeping()
	go func() { drained <- out.run(sending) }()
	go func() { defer close(kept); a.queue.keep(keeping) }()

	err = group.Wait()
	select {
	case e := <-drained:
		err = errors.Join(err, e)
	case <-time.After(drainDeadline):
		stopSending()
		if e := <-drained; !errors.Is(e, context.Canceled) {
			err = errors.Join(err, e)
		}
	}
	stopKeeping()
	<-kept
	return errors.Join(err, a.left())
}

// left says what the collector did not take before the agent stopped. What is
// on disk the next run sends.
func (a *agent) left() error {
	batches, flows, unsafe := a.queue.waiting()
	if unsafe > 0 {
		return fmt.Errorf("stop: the collector did not take the last %d flows in %s", unsafe, drainDeadline)
	}
	if a.queue.disk != nil && a.queue.disk.bytes() > 0 && batches > 0 {
		a.Log.Info("the collector is away: what waits is sent by the next run", "batches", batches, "flows", flows, "bytes on disk", a.queue.disk.bytes())
	}
	return nil
}
