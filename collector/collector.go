package collector

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/keepalive"
	"k8s.io/client-go/rest"

	"github.com/flowaudit/flowaudit/collector/access"
	"github.com/flowaudit/flowaudit/collector/advice"
	"github.com/flowaudit/flowaudit/collector/alert/notify"
	"github.com/flowaudit/flowaudit/collector/ledger"
	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/kube"
	"github.com/flowaudit/flowaudit/monitor"
	"github.com/flowaudit/flowaudit/policy"
	"github.com/flowaudit/flowaudit/policy/other"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// Options configure a collector.
type Options struct {
	Listen    ListenOptions
	Cluster   string      // whose objects these are; flows of another cluster are stored as they come
	Manifests string      // directory of cluster objects; empty for none
	Access    kube.Access // to the API server, if one is to be asked
	Agents    AgentOptions
	Readers   ReaderOptions
	Retain    Retain
	Alerts    AlertOptions
	Evidence  EvidenceOptions
	Version   string
	Monitor   monitor.Options // where it tells about itself
	// MetricsPairs is how many pairs of workloads metrics tell apart.
	MetricsPairs int
	Log          *slog.Logger
	// Store keeps the flows. Run closes it.
	Store store.Store
	// Listening, if set, is called with the address once the collector listens.
	Listening func(net.Addr)
	// ListeningHTTP is the same of Listen.HTTP.
	ListeningHTTP func(net.Addr)
}

// Validate names the first option that cannot work.
func (o *Options) Validate() error {
	if err := o.Retain.validate(); err != nil {
		return err
	}
	if err := o.Access.Validate(o.Manifests); err != nil {
		return err
	}
	if err := o.Monitor.Validate(); err != nil {
		return err
	}
	if o.MetricsPairs < 0 {
		return fmt.Errorf("--metrics-pairs %d: want a number from 0", o.MetricsPairs)
	}
	if err := o.Alerts.validate(); err != nil {
		return err
	}
	if o.Alerts.Lease != "" && !o.Access.Wanted() {
		return errors.New("--alert-lease needs an API server, which keeps it: give --in-cluster or --kubeconfig")
	}
	if err := o.Listen.validate(); err != nil {
		return err
	}
	if err := o.validateReaders(); err != nil {
		return err
	}
	return o.validateProofs()
}

const (
	maxMessage       = 16 << 20
	shutdownDeadline = 10 * time.Second
	windowBytes      = 128 << 10 // of a connection, and of each of its streams
	bufferBytes      = 4 << 10   // of a connection, each way
)

// Run collects and answers until ctx ends, then finishes what is under way.
func Run(ctx context.Context, o Options) (err error) {
	defer func() { err = errors.Join(err, o.Store.Close()) }()
	admission, err := o.authenticator()
	if err != nil {
		return err
	}
	certificates, err := openCertificates(&o.Listen, admission.clientAuth(), o.Log)
	if err != nil {
		return err
	}
	listener, err := o.Listen.listen()
	if err != nil {
		return err
	}
	c, err := newCollector(o, admission)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	server, err := monitor.Listen(o.Monitor, newMetrics(c).subject(), o.Log)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	telling, stop := context.WithCancel(context.WithoutCancel(ctx))
	told := make(chan error, 1)
	go func() { told <- server.Run(telling) }()
	err = c.serve(ctx, listener, certificates.tls())
	stop()
	return errors.Join(err, <-told, admission.readers.Log.Close())
}

type collector struct {
	Options
	index     *kube.Index
	watch     *kube.Watch // nil if no API server is asked
	agents    *agents
	hub       *hub
	committer *committer
	ingest    *ingest
	measures  *measures
	timeline  *timeline
	advice    *advice.Server
	admission *authenticator
	alerting  *alerting
	api       *rest.Config // nil if no API server is asked
	blind     func(id string) string
	ledger    *ledger.Ledger // nil if no evidence is kept
	// otherPolicies are those of other kinds than NetworkPolicy.
	otherPolicies atomic.Pointer[[]kube.OtherPolicy]
	ready         chan struct{} // closed when agents' batches can be named
	started       time.Time
}

func newCollector(o Options, admission *authenticator) (*collector, error) {
	c := &collector{Options: o, admission: admission, agents: newAgents(), hub: newHub(), measures: newMeasures(o.MetricsPairs), blind: newBlindness(), advice: advice.New(o.Store, access.SightOf), ready: make(chan struct{}), started: time.Now()}
	history, err := newHistory()
	if err != nil {
		return nil, err
	}
	c.timeline = newTimeline(o.Store, history, o.Cluster, o.Log)
	c.index = kube.New(kube.Options{Changed: c.timeline.changed, Slack: clockSlack})
	if c.ledger, err = openLedger(&o); err != nil {
		return nil, err
	}
	c.committer = newCommitter(measuredAppender{c.appender(), c.measures}, c.committed)
	c.ingest = &ingest{
		commit: c.committer, cluster: o.Cluster, index: c.index, agents: c.agents, log: o.Log, ready: c.ready, blind: newBlind(), arrived: newArrivals(), limits: newLimits(o.Agents.Rate), skew: c.skew,
		judge: &judge{history: history, classes: policy.NewClasses(), index: c.index},
	}
	if err := c.makeAlerting(); err != nil {
		return nil, err
	}
	if admission.readers == nil {
		if admission.readers, err = o.gate(c.namespaces); err != nil {
			return nil, err
		}
	}
	if o.Access.Wanted() {
		c.watch, err = kube.OpenWatch(kube.WatchOptions{
			Access: o.Access, UserAgent: "flowaudit-collector/" + o.Version, Index: c.index, Lost: c.ingest.blind.lost, Others: c.setOthers, Log: o.Log,
		})
	}
	return c, err
}

// makeAlerting prepares the evaluation of rules.
func (c *collector) makeAlerting() error {
	var sender notify.Sender
	if c.Access.Wanted() {
		config, err := c.Access.Config("flowaudit-collector/" + c.Version)
		if err != nil {
			return err
		}
		if sender, err = newEvents(config, instanceName()); err != nil {
			return err
		}
		c.api = config
	}
	a, err := newAlerting(c.Alerts, c.Store, c.ingest.judge, sender, c.index.NodeNames, c.Log)
	if err != nil {
		return err
	}
	c.alerting, c.timeline.told = a, a.changed
	return nil
}

// committed is told each group of new batches after it is durable.
func (c *collector) committed(batches []flow.Batch) {
	c.measures.stored(batches)
	c.hub.publish(batches)
	c.alerting.committed(batches)
}

const (
	// clockSlack is how far the nodes' clocks may be from what is measured.
	clockSlack = 500 * time.Millisecond
	// syncTimeout bounds how long agents wait until the cluster is known.
	syncTimeout = time.Minute
)

// follow keeps the index up to date, and says when it knows the cluster.
func (c *collector) follow(ctx context.Context, group *errgroup.Group) error {
	switch {
	case c.watch != nil:
		group.Go(func() error { return c.watch.Run(ctx) })
		group.Go(func() error {
			select {
			case <-c.watch.Synced():
				c.timeline.settled()
			case <-ctx.Done():
			}
			return nil
		})
		group.Go(func() error {
			select {
			case <-c.watch.Synced():
			case <-time.After(syncTimeout):
			case <-ctx.Done():
			}
			close(c.ready)
			return nil
		})
		return nil
	case c.Manifests != "":
		manifests, err := kube.OpenManifests(c.Manifests, c.index, c.Log)
		if err != nil {
			return err
		}
		group.Go(func() error { return manifests.Run(ctx) })
	}
	c.timeline.settled()
	close(c.ready)
	return nil
}

// skew is how far the API server's clock is ahead.
func (c *collector) skew() time.Duration {
	if c.watch == nil {
		return 0
	}
	return c.watch.Status().Skew
}

// setOthers takes in the policies of other kinds, which are not judged by.
func (c *collector) setOthers(found []kube.OtherPolicy) {
	policies := make([]*other.Policy, len(found))
	for i, p := range found {
		policies[i] = other.Read(p.Group, p.Kind, p.Namespace, p.Name, p.Object)
	}
	c.ingest.judge.others.Store(other.NewSet(policies))
	c.otherPolicies.Store(&found)
}

// serve takes over the listener.
func (c *collector) serve(ctx context.Context, listener net.Listener, certificates *tls.Config) error {
	server := c.server(serverCredentials(certificates))
	known, err := c.timeline.restore(ctx, time.Now())
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	c.index.Remember(known)
	if c.ledger != nil {
		if err := c.ledger.Restore(ctx); err != nil {
			return errors.Join(fmt.Errorf("read evidence: %w", err), listener.Close())
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		c.timeline.run(ctx)
		return nil
	})
	if err := c.follow(ctx, group); err != nil {
		return errors.Join(err, listener.Close())
	}
	// The committer outlives ctx: what agents have handed over is stored.
	stored := make(chan struct{})
	commitCtx, stopCommit := context.WithCancel(context.WithoutCancel(ctx))
	defer stopCommit()
	go func() {
		defer close(stored)
		c.committer.run(commitCtx)
	}()
	group.Go(func() error {
		// It may be stopped before it has begun.
		if err := server.Serve(listener); !errors.Is(err, grpc.ErrServerStopped) {
			return err
		}
		return nil
	})
	group.Go(func() error { return c.retain(ctx) })
	group.Go(func() error { return c.alerting.run(ctx) })
	if c.Alerts.Lease != "" {
		group.Go(func() error {
			return elect(ctx, c.api, c.Alerts.Lease, c.alerting.relay.instance, c.alerting.lead, c.Log)
		})
	}
	if c.Listen.HTTP != "" {
		group.Go(func() error { return c.serveHTTP(ctx, certificates) })
	}
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

func (c *collector) server(creds credentials.TransportCredentials) *grpc.Server {
	server := grpc.NewServer(
		grpc.Creds(creds),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.ChainUnaryInterceptor(c.admission.unary),
		grpc.ChainStreamInterceptor(c.admission.stream),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute}),
		grpc.ForceServerCodecV2(codec{encoding.GetCodecV2(protocodec.Name)}),
		// What thousands of agents may have on their way at once is memory here. A
		// batch takes eight bytes a flow there: this is much, also far away.
		grpc.InitialWindowSize(windowBytes), grpc.InitialConnWindowSize(windowBytes),
		grpc.ReadBufferSize(bufferBytes), grpc.WriteBufferSize(bufferBytes),
	)
	flowauditv1.RegisterIngestServer(server, c.ingest)
	flowauditv1.RegisterQueryServer(server, c.query())
	flowauditv1.RegisterAdviceServer(server, c.advice)
	flowauditv1.RegisterAlertsServer(server, c.alerts())
	flowauditv1.RegisterEvidenceServer(server, c.evidence())
	return server
}

func (c *collector) query() *query {
	return &query{store: c.Store, hub: c.hub, status: c.status, objects: objects{
		index: c.index, cluster: c.Cluster, known: c.watch != nil || c.Manifests != "", ready: c.ready, problems: c.problems, others: &c.otherPolicies,
	}}
}

// problems are what keeps the cluster's objects from being known.
func (c *collector) problems() (out []string) {
	if c.watch == nil {
		return nil
	}
	w := c.watch.Status()
	if w.Away {
		out = append(out, "the API server is away: objects are as they were "+w.Heard.UTC().Format(time.RFC3339))
	}
	return append(out, w.Problems...)
}

func (c *collector) alerts() *alertServer {
	return &alertServer{alerting: c.alerting, judge: c.ingest.judge, blind: c.blind}
}

// stop lets calls finish that can; followers and agents never end by themselves.
func stop(server *grpc.Server) {
	timer := time.AfterFunc(time.Second, server.Stop)
	defer timer.Stop()
	server.GracefulStop()
}

func (c *collector) status(ctx context.Context) (*flowauditv1.StatusResponse, error) {
	stats, err := c.Store.Stats(ctx)
	if err != nil {
		return nil, storeError("read store", err)
	}
	known := c.index.Stats()
	out := &flowauditv1.StatusResponse{
		Version: c.Version, Started: c.started.UnixMilli(), Store: stats.Kind, Flows: stats.Flows, Bytes: stats.Bytes,
		Committed: c.ingest.committed.Load(), Rejected: c.ingest.rejected.Load(), Unnamed: c.ingest.unnamed.Load(), Ambiguous: c.ingest.ambiguous.Load(),
		Cluster: c.clusterState(known),
		Pods:    uint64(known.Pods), Policies: uint64(known.Policies), Problems: known.Problems,
	}
	if c.watch != nil {
		out.Problems = append(out.Problems, c.watch.Status().Problems...)
	}
	out.Problems = append(out.Problems, c.alerting.problems()...)
	if p := c.admission.readers.Log.Problem(); p != "" {
		out.Problems = append(out.Problems, p)
	}
	if t := c.committer.trouble.Load(); t != nil {
		out.Problems = append(out.Problems, "flows are not stored, and wait with their agents: "+*t)
	}
	if !stats.Oldest.IsZero() {
		out.Oldest = stats.Oldest.UnixMilli()
	}
	for _, r := range c.agents.list() {
		out.Agents = append(out.Agents, agentMessage(r))
	}
	return out, nil
}

// clusterState says what is known of the cluster, and how well.
func (c *collector) clusterState(known kube.Stats) *flowauditv1.ClusterState {
	s := &flowauditv1.ClusterState{
		Source: c.Manifests, Namespaces: uint64(known.Namespaces), Services: uint64(known.Services), Nodes: uint64(known.Nodes),
		Identities: uint64(known.Identities), Remembered: uint64(known.Ended), Forgotten: known.Forgotten,
	}
	for _, p := range c.ingest.judge.others.Load().Doubtful() {
		s.PolicyDoubts = append(s.PolicyDoubts, p.String()+": "+p.Doubt)
	}
	slices.Sort(s.PolicyDoubts)
	if c.watch == nil {
		return s
	}
	w := c.watch.Status()
	s.Source, s.Away, s.Skew, s.PolicyKinds = w.Server, w.Away, w.Skew.Milliseconds(), c.watch.OtherKinds()
	if !w.Heard.IsZero() {
		s.Heard = w.Heard.UnixMilli()
	}
	return s
}

func agentMessage(r agentRecord) *flowauditv1.Agent {
	a := &flowauditv1.Agent{
		Node: r.node, Instance: r.instance, Scope: flowauditv1.Scope(r.scope), Version: r.status.Version,
		LastSeen: r.lastSeen.UnixMilli(), FlowsPerSecond: r.flowRate.value, ObservationsPerSecond: r.observations.value,
		Connections: r.status.Connections, Sources: r.status.Sources, Limits: r.status.Limits, Notes: r.status.Notes, Skew: r.status.Skew.Milliseconds(),
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
