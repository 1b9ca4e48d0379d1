package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/flowaudit/flowaudit/collector/store/storetest"
	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/proto/dial"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
	"github.com/flowaudit/flowaudit/proto/zstd"
)

const (
	batchFlows = 8192
	prepared   = 366 // batches made before the clock runs: 3 million flows
)

// collector is one with a store and agents of its own.
type collector struct {
	command *exec.Cmd
	conn    *grpc.ClientConn
	query   flowauditv1.QueryClient
	agents  []*sender
	made    *storetest.Generator
}

// startCollector starts a collector to which so many agents send at once.
func startCollector(ctx context.Context, dir string, agents int, args ...string) (*collector, error) {
	socket := filepath.Join(dir, "c.sock")
	c := &collector{
		command: exec.CommandContext(ctx, "bin/flowaudit-collector", append([]string{"--listen", "unix:" + socket}, args...)...),
		made:    storetest.NewGenerator(1),
	}
	c.command.Stderr = os.Stderr
	c.command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := c.command.Start(); err != nil {
		return nil, fmt.Errorf("start collector: %w", err)
	}
	conn, err := dial.Options{Address: "unix:" + socket}.Conn()
	if err != nil {
		return nil, err
	}
	c.conn, c.query = conn, flowauditv1.NewQueryClient(conn)
	for i := range agents {
		stream, err := flowauditv1.NewIngestClient(conn).Report(ctx, grpc.UseCompressor(zstd.Name), grpc.WaitForReady(true))
		if err != nil {
			return nil, err
		}
		c.agents = append(c.agents, &sender{stream: stream, made: c.made, name: fmt.Sprintf("n%d", i+1), epoch: uint64(time.Now().UnixNano())})
	}
	return c, nil
}

// stop ends the collector, and says how many flows it holds.
func (c *collector) stop(ctx context.Context) (flows uint64, err error) {
	for _, a := range c.agents {
		if err := a.stream.CloseSend(); err != nil {
			return 0, err
		}
	}
	after, err := c.query.Status(ctx, &flowauditv1.StatusRequest{})
	if err != nil {
		return 0, err
	}
	if err := errors.Join(c.conn.Close(), c.command.Process.Signal(syscall.SIGTERM)); err != nil {
		return 0, err
	}
	if err := c.command.Wait(); err != nil {
		return 0, fmt.Errorf("collector: %w", err)
	}
	return after.GetFlows(), nil
}

// ingest measures from gRPC to committed rows, the senders on the same processors.
func (c *collector) ingest(ctx context.Context, total int, who string) (result, error) {
	var rates []float64
	var sent int
	var spent time.Duration
	busy, err := processTime(c.command.Process.Pid)
	if err != nil {
		return result{}, err
	}
	for sent < total && ctx.Err() == nil {
		flows, err := c.prepare(min(prepared, (total-sent+batchFlows-1)/batchFlows))
		if err != nil {
			return result{}, err
		}
		began := time.Now()
		if err := c.push(); err != nil {
			return result{}, err
		}
		took := time.Since(began)
		spent += took
		rates = append(rates, float64(flows)/took.Seconds())
		sent += flows
	}
	after, err := processTime(c.command.Process.Pid)
	return result{"ingest, gRPC to committed rows", "flowaudit-collector, " + who, []string{
		fmt.Sprintf("%.0f flows/s (%.0f to %.0f)", float64(sent)/spent.Seconds(), slices.Min(rates), slices.Max(rates)),
		perEvent(after-busy, uint64(sent)),
	}}, err
}

// prepare encodes so many batches, spread over the agents, before the clock runs.
func (c *collector) prepare(batches int) (flows int, err error) {
	for i, a := range c.agents {
		n, err := a.prepare((batches + i) / len(c.agents))
		if err != nil {
			return 0, err
		}
		flows += n
	}
	return flows, nil
}

// push sends what is prepared and waits until all is acknowledged.
func (c *collector) push() error {
	var group errgroup.Group
	for _, a := range c.agents {
		group.Go(a.push)
	}
	return group.Wait()
}

// sender is an agent that sends what was prepared.
type sender struct {
	stream  flowauditv1.Ingest_ReportClient
	made    *storetest.Generator
	name    string
	epoch   uint64
	seq     uint64
	batches []*grpc.PreparedMsg
}

func (s *sender) prepare(n int) (flows int, err error) {
	now := time.Now()
	s.batches = nil
	for range n {
		s.seq++
		b := flow.Batch{
			Key: flow.BatchKey{Cluster: "bench", Instance: s.name, Epoch: s.epoch, Sequence: s.seq}, Node: s.name,
			Start: now.Add(-10 * time.Second), End: now, Flows: s.made.Flows(batchFlows, now.Add(-10*time.Second), 10*time.Second),
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

func (s *sender) push() error {
	acks := make(chan error, 1)
	go func() { acks <- s.acknowledged(len(s.batches)) }()
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

// acknowledged waits for so many acknowledgements.
func (s *sender) acknowledged(batches int) error {
	for range batches {
		ack, err := s.stream.Recv()
		if err == nil && (ack.GetRefused() || ack.GetRejected() > 0) {
			err = errors.New(ack.GetError())
		}
		if err != nil {
			return err
		}
	}
	return nil
}
