package collector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/kube"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// Options configure a collector.
type Options struct {
	Listen    ListenOptions
	Manifests string        // directory of cluster objects; empty for none
	Retain    time.Duration // how long flows are kept; 0 keeps them all
	Version   string
	Log       *slog.Logger
	// Store keeps the flows. Run closes it.
	Store store.Store
	// Listening, if set, is called with the address once the collector listens.
	Listening func(net.Addr)
}

// Validate names the first option that cannot work.
func (o *Options) Validate() error {
	if o.Retain < 0 {
		return fmt.Errorf("--retain %s: a time to keep flows cannot be negative", o.Retain)
	}
	return o.Listen.validate()
}

const (
	maxMessage       = 16 << 20
	retainInterval   = time.Minute
	shutdownDeadline = 10 * time.Second
)

// Run collects and answers until ctx ends, then finishes what is under way.
func Run(ctx context.Context, o Options) (err error) {
	defer func() { err = errors.Join(err, o.Store.Close()) }()
	c := &collector{Options: o, index: kube.NewIndex(), agents: newAgents(), hub: newHub(), started: time.Now()}
	c.committer = newCommitter(o.Store, c.hub.publish)
	c.ingest = &ingest{commit: c.committer, index: c.index, agents: c.agents, log: o.Log}
	return c.run(ctx)
}

type collector struct {
	Options
	index     *kube.Index
	agents    *agents
	hub       *hub
	committer *committer
	ingest    *ingest
	started   time.Time
}

func (c *collector) run(ctx context.Context) error {
	server, listener, err := c.server()
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	if c.Manifests != "" {
		watch, err := kube.OpenManifests(c.Manifests, c.index, c.Log)
		if err != nil {
			return errors.Join(err, listener.Close())
		}
		group.Go(func() error { return watch.Run(ctx) })
	}
	// The committer outlives ctx: what agents have handed over is stored.
	stored := make(chan struct{})
	commitCtx, stopCommit := context.WithCancel(context.WithoutCancel(ctx))
	defer stopCommit()
	go func() {
		defer close(stored)
		c.committer.run(commitCtx)
	}()
	group.Go(func() error { return server.Serve(listener) })
	group.Go(func() error { return c.retain(ctx) })
	group.Go(func() error {
		<-ctx.Done()
		stop(server)
		return nil
	})
	c.Log.Info("collector listens", "address", listener.Addr().String(), "tls", c.Listen.Cert != "")
	if c.Listening != nil {
		c.Listening(listener.Addr())
	}
	err = group.Wait()
	close(c.committer.waiting) // no handler is left that could submit
	select {
	case <-stored:
	case <-time.After(shutdownDeadline):
		stopCommit()
		<-stored
	}
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (c *collector) server() (*grpc.Server, net.Listener, error) {
	creds, err := c.Listen.credentials()
	if err != nil {
		return nil, nil, err
	}
	listener, err := c.Listen.listen()
	if err != nil {
		return nil, nil, err
	}
	server := grpc.NewServer(
		grpc.Creds(creds),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute}),
		// A batch is decoded into columns of its own: the transport's buffers can be reused.
		grpc.InitialWindowSize(4<<20), grpc.InitialConnWindowSize(8<<20),
	)
	flowauditv1.RegisterIngestServer(server, c.ingest)
	flowauditv1.RegisterQueryServer(server, &query{store: c.Store, hub: c.hub, status: c.status})
	return server, listener, nil
}

// stop lets calls finish that can; followers and agents never end by themselves.
func stop(server *grpc.Server) {
	timer := time.AfterFunc(time.Second, server.Stop)
	defer timer.Stop()
	server.GracefulStop()
}

// retain deletes what is older than it may be.
func (c *collector) retain(ctx context.Context) error {
	if c.Retain == 0 {
		<-ctx.Done()
		return nil
	}
	ticker := time.NewTicker(retainInterval)
	defer ticker.Stop()
	for {
		freed, err := c.Store.Retain(ctx, time.Now().Add(-c.Retain))
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			c.Log.Error("old flows were not deleted", "error", err)
		case freed > 0:
			c.Log.Info("old flows deleted", "bytes", freed)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (c *collector) status(ctx context.Context) (*flowauditv1.StatusResponse, error) {
	stats, err := c.Store.Stats(ctx)
	if err != nil {
		return nil, storeError("read store", err)
	}
	known := c.index.Stats()
	out := &flowauditv1.StatusResponse{
		Version: c.Version, Started: c.started.UnixMilli(), Store: stats.Kind, Flows: stats.Flows, Bytes: stats.Bytes,
		Committed: c.ingest.committed.Load(), Rejected: c.ingest.rejected.Load(), Unnamed: c.ingest.unnamed.Load(),
		Pods: uint64(known.Pods), Policies: uint64(known.Policies), Problems: known.Problems,
	}
	if !stats.Oldest.IsZero() {
		out.Oldest = stats.Oldest.UnixMilli()
	}
	for _, r := range c.agents.list() {
		out.Agents = append(out.Agents, agentMessage(r))
	}
	return out, nil
}

func agentMessage(r agentRecord) *flowauditv1.Agent {
	a := &flowauditv1.Agent{
		Node: r.node, Instance: r.instance, Scope: flowauditv1.Scope(r.scope), Version: r.status.Version,
		LastSeen: r.lastSeen.UnixMilli(), FlowsPerSecond: r.flowRate.value, ObservationsPerSecond: r.observations.value,
		Connections: r.status.Connections, Sources: r.status.Sources, Limits: r.status.Limits,
		Contradicted: r.status.Contradicted,
	}
	if !r.status.Started.IsZero() {
		a.Started = r.status.Started.UnixMilli()
	}
	for _, g := range r.gaps {
		a.Gaps = append(a.Gaps, flowauditv1.FromGap(g))
	}
	return a
}

var _ index = (*kube.Index)(nil)
