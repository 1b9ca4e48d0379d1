package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/collector/store/duckdb"
	"github.com/flowaudit/flowaudit/collector/store/storetest"
	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/proto/dial"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
	"github.com/flowaudit/flowaudit/proto/zstd"
	"github.com/flowaudit/flowaudit/queries"
)

const (
	batchFlows  = 8192
	epoch       = 1
	prepared    = 366 // batches made before the clock runs: 3 million flows
	askedTimes  = 7
	askedPrefix = 32
)

// benchStore sends flows to a collector, and asks the store that it made.
func benchStore(ctx context.Context, o options) (all []result, err error) {
	dir, err := os.MkdirTemp(o.dir, "flowaudit-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ingest, err := benchIngest(ctx, dir, o.flows, 1, "duckdb", "--data", filepath.Join(dir, "data"))
	if err != nil {
		return nil, err
	}
	s, err := duckdb.Open(ctx, duckdb.Options{Dir: filepath.Join(dir, "data"), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	stats, err := s.Stats(ctx)
	if err != nil {
		return nil, err
	}
	all = append(ingest, result{fmt.Sprintf("disk, %d flows", stats.Flows), "duckdb", []string{
		fmt.Sprintf("%.1f bytes a flow", float64(stats.Bytes)/float64(stats.Flows)),
	}})
	for _, q := range []struct {
		what   string
		filter flow.Filter
	}{
		{"denied flows of one namespace", flow.Filter{Match: flow.Selector{
			Either: flow.Ends{Namespaces: []string{"team-7"}}, Verdicts: []flow.Verdict{flow.VerdictDenied},
		}}},
		{"all flows of one address", flow.Filter{Match: flow.Selector{
			Either: flow.Ends{Prefixes: []netip.Prefix{netip.PrefixFrom(storetest.Addr(4321), askedPrefix)}},
		}}},
	} {
		r, err := ask(ctx, s, q.what, q.filter)
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	questions, err := askQuestions(ctx, s)
	return append(all, questions...), err
}

// questionArguments are those that have no default.
func questionArguments(q *queries.Question) map[string]string {
	given := map[string]string{"address": storetest.Addr(4321).String(), "namespace": "team-1", "workload": "app-1"}
	out := make(map[string]string)
	for _, a := range q.Args {
		if a.Required {
			out[a.Name] = given[a.Name]
		}
	}
	return out
}

// askQuestions times every named question over all that is stored. The first
// one that reads edges makes those of the newest flows.
func askQuestions(ctx context.Context, s store.Store) (all []result, err error) {
	for _, q := range queries.All() {
		var times []time.Duration
		var rows store.Rows
		for range askedTimes {
			began := time.Now()
			if rows, err = s.Query(ctx, q.Name, questionArguments(&q)); err != nil {
				return all, err
			}
			times = append(times, time.Since(began))
		}
		first := times[0]
		slices.Sort(times)
		all = append(all, result{"query " + q.Name, "duckdb", []string{
			fmt.Sprintf("%d ms (median of %d; first %d)", times[len(times)/2].Milliseconds(), askedTimes, first.Milliseconds()),
			fmt.Sprintf("%d rows", len(rows.Rows)),
		}})
	}
	return all, nil
}

// ask times a question, all its flows read.
func ask(ctx context.Context, s store.Store, what string, f flow.Filter) (result, error) {
	var times []time.Duration
	n := 0
	for range askedTimes {
		n = 0
		began := time.Now()
		if err := s.Flows(ctx, store.FlowsRequest{Filter: f}, func(flow.Flow) bool { n++; return true }); err != nil {
			return result{}, err
		}
		times = append(times, time.Since(began))
	}
	slices.Sort(times)
	return result{what, "duckdb", []string{
		fmt.Sprintf("%d ms (median of %d; %d to %d)", times[len(times)/2].Milliseconds(), askedTimes, times[0].Milliseconds(), times[len(times)-1].Milliseconds()),
		fmt.Sprintf("%d flows", n),
	}}, nil
}

// benchIngest measures from gRPC to committed rows, the sender on the same processors.
func benchIngest(ctx context.Context, dir string, total, senders int, who string, args ...string) ([]result, error) {
	socket := filepath.Join(dir, "c.sock")
	collector := exec.CommandContext(ctx, "bin/flowaudit-collector", append([]string{"--listen", "unix:" + socket}, args...)...)
	collector.Stderr = os.Stderr
	collector.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := collector.Start(); err != nil {
		return nil, fmt.Errorf("start collector: %w", err)
	}
	conn, err := dial.Options{Address: "unix:" + socket}.Conn()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	agents := make([]*sender, senders)
	for i := range agents {
		stream, err := flowauditv1.NewIngestClient(conn).Report(ctx, grpc.UseCompressor(zstd.Name), grpc.WaitForReady(true))
		if err != nil {
			return nil, err
		}
		agents[i] = &sender{stream: stream, name: fmt.Sprintf("n%d", i+1)}
	}
	g := storetest.NewGenerator(1)
	var rates []float64
	var sent int
	var spent time.Duration
	for sent < total {
		flows := 0
		for _, a := range agents {
			n, err := a.prepare(g, min(prepared, (total-sent+batchFlows-1)/batchFlows)/senders)
			if err != nil {
				return nil, err
			}
			flows += n
		}
		if flows == 0 {
			break
		}
		began := time.Now()
		var group errgroup.Group
		for _, a := range agents {
			group.Go(a.push)
		}
		if err := group.Wait(); err != nil {
			return nil, err
		}
		took := time.Since(began)
		spent += took
		rates = append(rates, float64(flows)/took.Seconds())
		sent += flows
	}
	for _, a := range agents {
		if err := a.stream.CloseSend(); err != nil {
			return nil, err
		}
	}
	if err := collector.Process.Signal(syscall.SIGTERM); err != nil {
		return nil, err
	}
	if err := collector.Wait(); err != nil {
		return nil, fmt.Errorf("collector: %w", err)
	}
	cpu := collector.ProcessState.UserTime() + collector.ProcessState.SystemTime()
	return []result{{"ingest, gRPC to committed rows", "flowaudit-collector, " + who, []string{
		fmt.Sprintf("%.0f flows/s (%.0f to %.0f)", float64(sent)/spent.Seconds(), slices.Min(rates), slices.Max(rates)),
		perEvent(cpu, uint64(sent)),
	}}}, nil
}

// sender is an agent that sends what was prepared.
type sender struct {
	stream   flowauditv1.Ingest_ReportClient
	name     string
	sequence uint64
	batches  []*grpc.PreparedMsg
}

// prepare encodes batches before the clock runs.
func (s *sender) prepare(g *storetest.Generator, n int) (flows int, err error) {
	now := time.Now()
	s.batches = nil
	for range n {
		s.sequence++
		b := flow.Batch{
			Key: flow.BatchKey{Cluster: "bench", Instance: s.name, Epoch: epoch, Sequence: s.sequence}, Node: s.name,
			Start: now.Add(-10 * time.Second), End: now, Flows: g.Flows(batchFlows, now.Add(-10*time.Second), 10*time.Second),
		}
		flows += len(b.Flows)
		m := &grpc.PreparedMsg{}
		if err := m.Encode(s.stream, flowauditv1.FromBatch(&b)); err != nil {
			return 0, err
		}
		s.batches = append(s.batches, m)
	}
	return flows, nil
}

// push sends the batches and waits until all are acknowledged.
func (s *sender) push() error {
	acks := make(chan error, 1)
	go func() {
		for range s.batches {
			ack, err := s.stream.Recv()
			if err == nil && (ack.GetRefused() || ack.GetRejected() > 0) {
				err = errors.New(ack.GetError())
			}
			if err != nil {
				acks <- err
				return
			}
		}
		acks <- nil
	}()
	for _, m := range s.batches {
		if err := s.stream.SendMsg(m); err != nil {
			if errors.Is(err, io.EOF) {
				break // the reason is what Recv gets
			}
			return err
		}
	}
	return <-acks
}
