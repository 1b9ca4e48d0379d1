package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/flowaudit/flowaudit/flow"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
	"github.com/flowaudit/flowaudit/proto/zstd"
)

const (
	benchCluster = "bench"
	windowFlows  = 100
	windowTime   = 10 * time.Second
	// repeatedFlows of a window's flows are those of the window before: most of
	// what a node does it does again.
	repeatedFlows = 90
	nodePods      = 30
	// memoryLimit leaves room for the store in a container of 1 GiB.
	memoryLimit = "GOMEMLIMIT=600MiB"
)

// fleet is a collector and many agents that report to it.
type fleet struct {
	*authority
	collector *process
	address   string
	agents    []*nodeAgent

	mu   sync.Mutex
	late []time.Duration // from a window's end to its acknowledgement, since the last look

	sent, acked, refused atomic.Uint64 // batches
	broken               atomic.Uint64 // streams that ended
	resident             atomic.Uint64 // the most since the last look
}

// benchAgents has a collector take the flows of many agents, and then those of
// a hostile one too.
func benchAgents(ctx context.Context, o options) (all []result, err error) {
	dir, err := os.MkdirTemp(o.dir, "flowaudit-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	f, err := startFleet(ctx, dir, o.agents)
	if err != nil {
		return nil, err
	}
	defer func() { _, e := f.collector.stop(); err = errors.Join(err, e) }()
	reporting, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- f.report(reporting) }()
	go f.watch(reporting)
	if err := f.settle(ctx); err != nil {
		return nil, err
	}
	name := fmt.Sprintf("%d agents, %d flows each in %s, mutual TLS, %s", o.agents, windowFlows, windowTime, memoryLimit)
	phase := 4 * time.Duration(o.seconds) * time.Second
	r, err := f.measure(ctx, name, phase)
	if err != nil {
		return nil, err
	}
	all = append(all, r)
	h := f.hostile()
	attacking, peace := context.WithCancel(ctx)
	defer peace()
	attacked := make(chan struct{})
	go func() { defer close(attacked); h.run(attacking) }()
	if r, err = f.measure(ctx, "the same with a hostile one among them", phase); err != nil {
		return nil, err
	}
	peace()
	<-attacked
	all = append(all, r, result{"the hostile agent", "", h.figures()})
	stop()
	if err := <-ended; err != nil {
		return nil, err
	}
	r, err = f.verify(ctx)
	return append(all, r), err
}

// startFleet starts the collector and makes the agents.
func startFleet(ctx context.Context, dir string, n int) (*fleet, error) {
	a, err := newAuthority()
	if err != nil {
		return nil, err
	}
	cert, key, ca, err := a.write(dir)
	if err != nil {
		return nil, err
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("find a free port: %w", err)
	}
	f := &fleet{authority: a, address: free.Addr().String()}
	if err := free.Close(); err != nil {
		return nil, err
	}
	command := exec.CommandContext(ctx, "bin/flowaudit-collector", "--listen", f.address, "--data", filepath.Join(dir, "data"),
		"--cluster", benchCluster, "--tls-cert", cert, "--tls-key", key, "--tls-client-ca", ca, "--store-memory", "256MB")
	command.Env = append(os.Environ(), memoryLimit)
	f.collector, err = launch(command)
	if err != nil {
		return nil, err
	}
	for i := range n {
		agent, err := f.agent(i)
		if err != nil {
			return nil, err
		}
		f.agents = append(f.agents, agent)
	}
	return f, nil
}

// nodeAgent is what an agent is to its collector.
type nodeAgent struct {
	*fleet
	number   int
	node     string
	pods     [nodePods]*flow.Endpoint
	conn     *grpc.ClientConn
	sequence uint64
	waiting  *flowauditv1.Batch // sent, and not acknowledged
	started  time.Time
}

func (f *fleet) agent(number int) (*nodeAgent, error) {
	a := f.newAgent(number, "node-"+strconv.Itoa(number))
	var err error
	a.conn, err = f.dial(a.node)
	return a, err
}

func (f *fleet) newAgent(number int, node string) *nodeAgent {
	a := &nodeAgent{fleet: f, number: number, node: node, started: time.Now()}
	for i := range a.pods {
		a.pods[i] = &flow.Endpoint{
			Kind: flow.EndpointPod, Namespace: "team-" + strconv.Itoa(number%50), Pod: fmt.Sprintf("web-%d-7c9d8b6f5-%d", i%10, i), Node: node,
			Workload: flow.Workload{Kind: "Deployment", Name: "web-" + strconv.Itoa(i%10)},
		}
	}
	return a
}

// dial prepares the connection of a node's agent.
func (f *fleet) dial(node string) (*grpc.ClientConn, error) {
	config, err := f.authority.agent(benchCluster, node)
	if err != nil {
		return nil, err
	}
	// Small buffers: the agents share one process here, which needs its memory.
	return grpc.NewClient(f.address, grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithReadBufferSize(4<<10), grpc.WithWriteBufferSize(4<<10), grpc.WithDefaultCallOptions(grpc.UseCompressor(zstd.Name)))
}

// report has all agents report until ctx ends and everything is acknowledged.
func (f *fleet) report(ctx context.Context) error {
	var group errgroup.Group
	for _, a := range f.agents {
		group.Go(func() error {
			defer a.conn.Close()
			select { // their windows do not end together
			case <-time.After(rand.N(windowTime)):
			case <-ctx.Done():
				return nil
			}
			for {
				err := a.report(ctx)
				if err == nil {
					return nil
				}
				if f.broken.Add(1) == 1 {
					fmt.Fprintf(os.Stderr, "the stream of %s ended: %v\n", a.node, err)
				}
				time.Sleep(time.Second)
			}
		})
	}
	return group.Wait()
}

// report reports on one stream. What it has not been acknowledged before that
// ended it sends again.
func (a *nodeAgent) report(ctx context.Context) error {
	// The stream outlives ctx: what is sent is to be acknowledged.
	stream, err := flowauditv1.NewIngestClient(a.conn).Report(context.WithoutCancel(ctx), grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	for {
		if a.waiting == nil {
			b := a.batch(time.Now())
			a.waiting = flowauditv1.FromBatch(&b)
			a.sent.Add(1)
		}
		closed := time.UnixMilli(a.waiting.GetEnd())
		_ = stream.Send(a.waiting) // Recv says why not
		ack, err := stream.Recv()
		if err != nil {
			return err
		}
		a.note(time.Since(closed), ack)
		a.waiting = nil
		select {
		case <-time.After(time.Until(closed.Add(windowTime))):
		case <-ctx.Done():
			return stream.CloseSend()
		}
	}
}

// note counts an acknowledgement.
func (f *fleet) note(late time.Duration, ack *flowauditv1.Ack) {
	f.acked.Add(1)
	if ack.GetRefused() || ack.GetRejected() > 0 {
		f.refused.Add(1)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.late = append(f.late, late)
}

// batch is a window: half of its flows leave the node, half come to it.
func (a *nodeAgent) batch(end time.Time) flow.Batch {
	a.sequence++
	b := flow.Batch{
		Key:  flow.BatchKey{Cluster: benchCluster, Instance: a.node, Epoch: uint64(a.number + 1), Sequence: a.sequence},
		Node: a.node, Start: end.Add(-windowTime), End: end, Flows: make([]flow.Flow, windowFlows),
		Agent: flow.AgentStatus{Version: "bench", Started: a.started, Observations: 3 * windowFlows * a.sequence, Sources: []string{"conntrack", "tap"}},
	}
	for i := range b.Flows {
		n := uint64(i) // which of the node's pairs it is
		if i >= repeatedFlows {
			n += a.sequence * windowFlows
		}
		far := podOf(rand.N(uint32(1 << 16)))
		if i < repeatedFlows {
			far = podOf(uint32(a.number*131+i*17) & 0xffff)
		}
		b.Flows[i] = a.flow(int(n%nodePods), far, i%2 == 0, uint16(1024+n%2000), end)
	}
	return b
}

func (a *nodeAgent) flow(pod int, far netip.Addr, leaves bool, port uint16, end time.Time) flow.Flow {
	here, local := podOf(uint32(a.number*nodePods+pod)), a.pods[pod]
	x := flow.Flow{
		Key:   flow.Key{Protocol: flow.TCP, Src: here, Dst: far, Port: port, Verdict: flow.VerdictAllowed, Direction: flow.DirectionEgress},
		Start: end.Add(-5 * time.Second).Truncate(time.Millisecond), End: end.Add(-time.Second).Truncate(time.Millisecond), Cluster: benchCluster, Node: a.node,
		SourcePort: uint16(32768 + rand.N(28000)), Sources: flow.SourceConntrack, Connections: 1, Counted: true,
		Sent: flow.Counters{Packets: 6, Bytes: 612}, Received: flow.Counters{Packets: 5, Bytes: 4711},
	}
	if leaves {
		x.Source = local
	} else {
		x.Src, x.Dst, x.Direction, x.Destination = far, here, flow.DirectionIngress, local
	}
	return x
}

func podOf(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
}

// settle waits until every agent has had an acknowledgement, and what came at
// once with the connections is done.
func (f *fleet) settle(ctx context.Context) error {
	const prompt = time.Second
	for deadline := time.Now().Add(5 * time.Minute); time.Now().Before(deadline); {
		f.takeLate()
		select {
		case <-time.After(windowTime / 2):
		case <-ctx.Done():
			return ctx.Err()
		}
		late := f.takeLate()
		if f.acked.Load() >= uint64(len(f.agents)) && len(late) > 0 && late[len(late)-1] < prompt {
			return nil
		}
	}
	return fmt.Errorf("of %d agents' first batches %d are acknowledged, and the collector does not become prompt", len(f.agents), f.acked.Load())
}

// watch looks at how much memory the collector has.
func (f *fleet) watch(ctx context.Context) {
	for ctx.Err() == nil {
		if _, resident, err := f.collector.memory(); err == nil { // else it has ended, which others notice
			f.resident.Store(max(f.resident.Load(), resident))
		}
		time.Sleep(lookEvery)
	}
}

// measure watches for a while.
func (f *fleet) measure(ctx context.Context, name string, phase time.Duration) (result, error) {
	f.takeLate()
	f.resident.Store(0)
	sent, acked, broken := f.sent.Load(), f.acked.Load(), f.broken.Load()
	before, err := f.collector.cpu()
	if err != nil {
		return result{}, err
	}
	select {
	case <-time.After(phase):
	case <-ctx.Done():
		return result{}, ctx.Err()
	}
	after, err := f.collector.cpu()
	if err != nil {
		return result{}, err
	}
	late := f.takeLate()
	if len(late) == 0 {
		return result{}, errors.New("nothing was acknowledged")
	}
	return result{name, "flowaudit-collector", []string{
		fmt.Sprintf("%d MiB resident at most", f.resident.Load()>>20),
		fmt.Sprintf("%.2f of a processor", (after-before).Seconds()/phase.Seconds()),
		fmt.Sprintf("%d of %d batches acknowledged, the median after %d ms, 99 %% after %d ms, all after %d ms", f.acked.Load()-acked, f.sent.Load()-sent,
			late[len(late)/2].Milliseconds(), late[len(late)*99/100].Milliseconds(), late[len(late)-1].Milliseconds()),
		fmt.Sprintf("%d streams ended", f.broken.Load()-broken),
	}}, nil
}

func (f *fleet) takeLate() []time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	late := f.late
	f.late = nil
	slices.Sort(late)
	return late
}

// verify compares what is stored with what was sent.
func (f *fleet) verify(ctx context.Context) (result, error) {
	conn, err := f.dial("asker")
	if err != nil {
		return result{}, err
	}
	defer conn.Close()
	q := asker{flowauditv1.NewQueryClient(conn)}
	rows, err := q.ask(ctx, "SELECT count(*), count(DISTINCT node) FROM flows WHERE node <> '"+hostileNode+"'")
	if err != nil {
		return result{}, err
	}
	stored, nodes := rows[0][0].(float64), rows[0][1].(float64)
	return result{"in the end", "flowaudit-collector", []string{
		fmt.Sprintf("%.0f flows of %d sent are stored, of %.0f nodes", stored, f.sent.Load()*windowFlows, nodes),
		fmt.Sprintf("%d of %d batches acknowledged, %d refused", f.acked.Load(), f.sent.Load(), f.refused.Load()),
	}}, nil
}
