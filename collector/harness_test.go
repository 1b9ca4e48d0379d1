package collector

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// memory is a store of one slice, without merging. The hooks let a test decide
// when and whether it works; calls that a test does not expect panic.
type memory struct {
	store.Store
	onAppend  func(batches []flow.Batch) error // before anything is kept
	onFlows   func()                           // after the flows to give were chosen
	rows      store.Rows
	queryErr  error
	hangs     bool
	sql       string
	sqlRows   int
	flowsErr  error
	recordErr error         // guarded by mu
	coverage  flow.Coverage // Since and Until are the question's

	mu       sync.Mutex
	batches  []flow.Batch
	requests []store.FlowsRequest
	changes  []flow.Change
	edges    []*flow.Edge
	kept     map[string]store.Document
	groups   [][]uint64 // sequences of each Append
	closed   bool
}

func (m *memory) Record(_ context.Context, changes []flow.Change) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.recordErr != nil {
		return m.recordErr
	}
	m.changes = append(m.changes, changes...)
	return nil
}

func (m *memory) Timeline(_ context.Context, sight flow.Sight, _, _ time.Time, yield func(flow.Change) bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.changes {
		if sight.Change(&c) && !yield(c) {
			break
		}
	}
	return nil
}

func (m *memory) Put(_ context.Context, documents []store.Document) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.kept == nil {
		m.kept = make(map[string]store.Document)
	}
	for _, d := range documents {
		m.kept[d.Kind+" "+d.ID] = d
	}
	return nil
}

func (m *memory) Documents(_ context.Context, kind string, since time.Time, yield func(store.Document) bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range slices.Sorted(maps.Keys(m.kept)) {
		if d := m.kept[k]; d.Kind == kind && !d.Time.Before(since) && !yield(d) {
			break
		}
	}
	return nil
}

func (m *memory) Discard(context.Context, string, time.Time) error { return nil }

func (m *memory) Edges(_ context.Context, req store.EdgesRequest, yield func(*flow.Edge) bool) error {
	seen := flow.NewSeenEdges(req.Sight, yield)
	for _, e := range m.edges {
		if !e.First.After(req.Until) && !seen.Add(e) {
			return nil
		}
	}
	seen.Close()
	return nil
}

func (m *memory) EdgeHours(_ context.Context, req store.EdgesRequest, keep, yield func(*flow.Edge) bool) error {
	for _, e := range m.edges {
		if !e.First.Before(req.Since) && !e.First.After(req.Until) && keep(e) && !yield(e) {
			break
		}
	}
	return nil
}

func (m *memory) Gaps(context.Context, time.Time, time.Time, func(flow.Gap) bool) error { return nil }

func (m *memory) Append(_ context.Context, batches []flow.Batch) ([]bool, error) {
	if m.onAppend != nil {
		if err := m.onAppend(batches); err != nil {
			return nil, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	duplicate := make([]bool, len(batches))
	var group []uint64
	for i, b := range batches {
		group = append(group, b.Key.Sequence)
		if duplicate[i] = slices.ContainsFunc(m.batches, func(o flow.Batch) bool { return o.Key == b.Key }); !duplicate[i] {
			m.batches = append(m.batches, b)
		}
	}
	m.groups = append(m.groups, group)
	return duplicate, nil
}

func (m *memory) Stored(_ context.Context, keys []flow.BatchKey) ([]bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	stored := make([]bool, len(keys))
	for i, k := range keys {
		stored[i] = slices.ContainsFunc(m.batches, func(b flow.Batch) bool { return b.Key == k })
	}
	return stored, nil
}

func (m *memory) Reports(_ context.Context, since, until time.Time, yield func(flow.Flow) bool) error {
	for _, f := range m.matching(&store.FlowsRequest{Sight: flow.SeeAll()}) {
		if !f.Start.Before(since) && f.Start.Before(until) && !yield(f) {
			break
		}
	}
	return nil
}

func (m *memory) matching(req *store.FlowsRequest) []flow.Flow {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []flow.Flow
	for _, b := range m.batches {
		for _, f := range b.Flows {
			if shown, ok := req.See(f); ok {
				out = append(out, shown)
			}
		}
	}
	return out
}

func (m *memory) Flows(_ context.Context, req store.FlowsRequest, yield func(flow.Flow) bool) error {
	if m.flowsErr != nil {
		return m.flowsErr
	}
	m.mu.Lock()
	m.requests = append(m.requests, req)
	m.mu.Unlock()
	flows := m.matching(&req)
	if m.onFlows != nil {
		m.onFlows()
	}
	for _, f := range flows {
		if !yield(f) {
			return nil
		}
	}
	return nil
}

func (m *memory) Count(_ context.Context, sight flow.Sight, filter flow.Filter) (flows, connections uint64, err error) {
	for _, f := range m.matching(&store.FlowsRequest{Sight: sight, Filter: filter}) {
		flows++
		connections += f.Connections
	}
	return flows, connections, nil
}

func (m *memory) Query(ctx context.Context, _ flow.Sight, _ string, _ map[string]string) (store.Rows, error) {
	if m.hangs {
		<-ctx.Done()
		return store.Rows{}, ctx.Err()
	}
	return m.rows, m.queryErr
}

func (m *memory) SQL(ctx context.Context, _ flow.Sight, text string, maxRows int) (store.Rows, error) {
	if m.hangs {
		<-ctx.Done()
		return store.Rows{}, ctx.Err()
	}
	m.sql, m.sqlRows = text, maxRows
	return m.rows, m.queryErr
}

func (m *memory) Coverage(_ context.Context, sight flow.Sight, since, until time.Time) (flow.Coverage, error) {
	c := m.coverage
	c.Since, c.Until = since, until
	return sight.Coverage(c), nil
}

func (m *memory) Stats(context.Context) (store.Stats, error) {
	s := store.Stats{Kind: "memory", Bytes: 7}
	for _, f := range m.matching(&store.FlowsRequest{Sight: flow.SeeAll()}) {
		s.Flows++
		if s.Oldest.IsZero() || f.Start.Before(s.Oldest) {
			s.Oldest = f.Start
		}
	}
	return s, nil
}

func (m *memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}

func (m *memory) stored() []uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []uint64
	for _, b := range m.batches {
		out = append(out, b.Key.Sequence)
	}
	return out
}

// running is a collector that serves in process.
type running struct {
	*collector
	conn *grpc.ClientConn
	stop context.CancelFunc
	done chan error
}

// serve starts a collector; it is stopped at the test's end at the latest. In a
// synctest bubble the test must call close.
func serve(t *testing.T, s store.Store) *running {
	t.Helper()
	return serveWith(t, s, Options{})
}

func serveWith(t *testing.T, s store.Store, o Options) *running {
	t.Helper()
	return serveAdmitting(t, s, o, &authenticator{proofs: []Proof{ProofNone}})
}

// serveAdmitting is serveWith with a say in who may call.
func serveAdmitting(t *testing.T, s store.Store, o Options, admission *authenticator) *running {
	t.Helper()
	listener := bufconn.Listen(1 << 20)
	o.Log, o.Store, o.Version, o.Cluster, o.MetricsPairs = slog.New(slog.DiscardHandler), s, "1.2.3", "c", 3
	if len(o.Readers.Proofs) == 0 {
		o.Readers.Proofs = []Proof{ProofNone}
	}
	if o.Alerts.Queue == "" {
		o.Alerts.Queue = t.TempDir()
	}
	c, err := newCollector(o, admission)
	if err != nil {
		t.Fatal(err)
	}
	r := &running{collector: c, done: make(chan error, 1)}
	ctx, stop := context.WithCancel(t.Context())
	r.stop = stop
	if o.Alerts.Lease != "" {
		c.Alerts.Lease = "" // a test says who leads
	}
	go func() { r.done <- r.serve(ctx, listener, nil) }()
	conn, err := grpc.NewClient("passthrough:collector",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	r.conn = conn
	return r
}

func (r *running) close(t *testing.T) {
	t.Helper()
	_ = r.conn.Close() // a test may have closed it
	r.stop()
	if err := <-r.done; err != nil {
		t.Errorf("the collector ended with %v", err)
	}
}

func (r *running) ingest() flowauditv1.IngestClient { return flowauditv1.NewIngestClient(r.conn) }
func (r *running) query() flowauditv1.QueryClient   { return flowauditv1.NewQueryClient(r.conn) }

// report opens an agent's stream.
func (r *running) report(t *testing.T) flowauditv1.Ingest_ReportClient {
	t.Helper()
	stream, err := r.ingest().Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// send sends batches; the stream's end tells what goes wrong.
func send(t *testing.T, stream flowauditv1.Ingest_ReportClient, batches ...flow.Batch) {
	t.Helper()
	for _, b := range batches {
		if err := stream.Send(flowauditv1.FromBatch(&b)); err != nil {
			t.Fatal(err)
		}
	}
}

func receiveAck(t *testing.T, stream flowauditv1.Ingest_ReportClient) *flowauditv1.Ack {
	t.Helper()
	ack, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return ack
}

// keep sends batches and waits until they are acknowledged.
func (r *running) keep(t *testing.T, batches ...flow.Batch) {
	t.Helper()
	stream := r.report(t)
	send(t, stream, batches...)
	for range batches {
		if ack := receiveAck(t, stream); ack.GetRefused() || ack.GetRejected() > 0 {
			t.Fatalf("not all was taken: %v", ack)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
}

// batchOf is a batch of node-1's agent.
func batchOf(sequence uint64, flows ...flow.Flow) flow.Batch {
	return batchFrom("node-1", sequence, flows...)
}

func batchFrom(node string, sequence uint64, flows ...flow.Flow) flow.Batch {
	now := time.Now()
	for i := range flows {
		flows[i].Node = node
	}
	return flow.Batch{
		Key: flow.BatchKey{Cluster: "c", Instance: node, Epoch: 1, Sequence: sequence}, Node: node,
		Start: now, End: now.Add(10 * time.Second), Flows: flows,
	}
}

// flowTo is a connection from 10.0.0.1 to 10.0.0.2 that has just been seen.
func flowTo(port uint16, verdict flow.Verdict) flow.Flow {
	now := time.Now().Truncate(time.Millisecond)
	return flow.Flow{
		Key: flow.Key{
			Protocol: flow.TCP, Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"), Port: port,
			Verdict: verdict, Direction: flow.DirectionEgress,
		},
		Start: now, End: now.Add(time.Second), Cluster: "c", Connections: 1,
	}
}

// denied gives n flows to ports from 1.
func denied(n int) []flow.Flow {
	out := make([]flow.Flow, n)
	for i := range out {
		out[i] = flowTo(uint16(i+1), flow.VerdictDenied)
	}
	return out
}

func ports(flows []flow.Flow) []uint16 {
	var out []uint16
	for _, f := range flows {
		out = append(out, f.Port)
	}
	return out
}

var errDisk = errors.New("no space left on device")

// names is an index of addresses that never change hands.
type names map[string]*flow.Endpoint

func (n names) Endpoint(a netip.Addr, _ time.Time) *flow.Endpoint { return n[a.String()] }

func (n names) Holder(a netip.Addr, _, _ time.Time) (*flow.Endpoint, time.Duration) {
	return n[a.String()], 0
}

func (names) Complete(e *flow.Endpoint) *flow.Endpoint { return e }

// serviceOf knows one Service, whatever its address.
type serviceOf struct {
	names
	service *flow.Service
}

func (s serviceOf) Service(netip.Addr, uint16, flow.Protocol, time.Time) *flow.Service {
	return s.service
}
