package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

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

// benchStore sends flows to a collector, and asks it while more come.
func benchStore(ctx context.Context, o options) (all []result, err error) {
	dir := o.store
	if dir == "" {
		if dir, err = os.MkdirTemp(o.dir, "flowaudit-bench-"); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	} else if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	c, err := startCollector(ctx, dir, "--data", filepath.Join(dir, "data"), "--retain", "0")
	if err != nil {
		return nil, err
	}
	before, err := c.query.Status(ctx, &flowauditv1.StatusRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return nil, err
	}
	if missing := o.flows - int(before.GetFlows()); missing > 0 {
		r, err := c.ingest(ctx, missing, "duckdb")
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	asked, err := c.ask(ctx)
	if err != nil {
		return nil, err
	}
	flows, err := c.stop(ctx)
	if err != nil {
		return nil, err
	}
	size, err := folderSize(filepath.Join(dir, "data"))
	all = append(all, result{fmt.Sprintf("disk, %d flows", flows), "duckdb", []string{fmt.Sprintf("%.1f bytes a flow", float64(size)/float64(flows))}})
	return append(all, asked...), err
}

func folderSize(dir string) (size int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		size += info.Size()
		return err
	})
	return size, err
}

// collector is one with a store of its own.
type collector struct {
	command *exec.Cmd
	conn    *grpc.ClientConn
	query   flowauditv1.QueryClient
	stream  flowauditv1.Ingest_ReportClient
	made    *storetest.Generator
	epoch   uint64
	seq     uint64
}

func startCollector(ctx context.Context, dir string, args ...string) (*collector, error) {
	socket := filepath.Join(dir, "c.sock")
	c := &collector{
		command: exec.CommandContext(ctx, "bin/flowaudit-collector", append([]string{"--listen", "unix:" + socket}, args...)...),
		made:    storetest.NewGenerator(1), epoch: uint64(time.Now().UnixNano()),
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
	c.stream, err = flowauditv1.NewIngestClient(conn).Report(ctx, grpc.UseCompressor(zstd.Name), grpc.WaitForReady(true))
	return c, err
}

// stop ends the collector, and says how many flows it holds.
func (c *collector) stop(ctx context.Context) (flows uint64, err error) {
	if err := c.stream.CloseSend(); err != nil {
		return 0, err
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

// benchIngest measures the ingest into a store of the collector's.
func benchIngest(ctx context.Context, dir string, total int, who string, args ...string) ([]result, error) {
	c, err := startCollector(ctx, dir, args...)
	if err != nil {
		return nil, err
	}
	r, err := c.ingest(ctx, total, who)
	if err != nil {
		return nil, err
	}
	_, err = c.stop(ctx)
	return []result{r}, err
}

// ingest measures from gRPC to committed rows, the sender on the same processors.
func (c *collector) ingest(ctx context.Context, total int, who string) (result, error) {
	var rates []float64
	var sent int
	var spent time.Duration
	busy, err := processTime(c.command.Process.Pid)
	if err != nil {
		return result{}, err
	}
	for sent < total && ctx.Err() == nil {
		batches, flows, err := c.prepare(min(prepared, (total-sent+batchFlows-1)/batchFlows))
		if err != nil {
			return result{}, err
		}
		began := time.Now()
		if err := push(c.stream, batches); err != nil {
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

// prepare encodes batches before the clock runs.
func (c *collector) prepare(n int) (out []*grpc.PreparedMsg, flows int, err error) {
	now := time.Now()
	for range n {
		c.seq++
		b := flow.Batch{
			Key: flow.BatchKey{Cluster: "bench", Instance: "n1", Epoch: c.epoch, Sequence: c.seq}, Node: "n1",
			Start: now.Add(-10 * time.Second), End: now, Flows: c.made.Flows(batchFlows, now.Add(-10*time.Second), 10*time.Second),
		}
		flows += len(b.Flows)
		m := &grpc.PreparedMsg{}
		if err := m.Encode(c.stream, flowauditv1.FromBatch(&b)); err != nil {
			return nil, 0, err
		}
		out = append(out, m)
	}
	return out, flows, nil
}

// push sends batches and waits until all are acknowledged.
func push(stream flowauditv1.Ingest_ReportClient, batches []*grpc.PreparedMsg) error {
	acks := make(chan error, 1)
	go func() { acks <- acknowledged(stream, len(batches)) }()
	for _, m := range batches {
		if err := stream.SendMsg(m); err != nil {
			if errors.Is(err, io.EOF) {
				break // the reason is what Recv gets
			}
			return err
		}
	}
	return <-acks
}

// acknowledged waits for so many acknowledgements.
func acknowledged(stream flowauditv1.Ingest_ReportClient, batches int) error {
	for range batches {
		ack, err := stream.Recv()
		if err == nil && (ack.GetRefused() || ack.GetRejected() > 0) {
			err = errors.New(ack.GetError())
		}
		if err != nil {
			return err
		}
	}
	return nil
}
