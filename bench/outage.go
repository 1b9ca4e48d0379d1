package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/flowaudit/flowaudit/proto/dial"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

const (
	outageRate = 20_000 // flows a second, each another key
	lookEvery  = 200 * time.Millisecond
)

// outage is an agent whose collector goes away while flows come.
type outage struct {
	*lab
	agent     *process
	collector *process
	socket    string
	spool     string
	asker
}

// benchOutage takes the collector away for a while, and measures how the agent
// catches up while flows go on.
func benchOutage(ctx context.Context, o options) (all []result, err error) {
	l, err := newLab("table inet cni {\n chain pods { type filter hook forward priority 0; ip daddr 10.9.0.2 log group 100 queue-threshold 100\n ip daddr 10.9.0.2 drop\n }\n}")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	b := &outage{lab: l, socket: filepath.Join(l.dir, "c.sock"), spool: filepath.Join(l.dir, "state", "spool")}
	conn, err := dial.Options{Address: "unix:" + b.socket}.Conn()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	b.asker = asker{flowauditv1.NewQueryClient(conn)}
	if b.agent, err = start(ctx, l.node.Namespace, "bin/flowaudit-agent", "--collector", "unix:"+b.socket, "--node-name", "n1",
		"--nflog-group", "100=allowed", "--conntrack=false", "--state-dir", filepath.Join(l.dir, "state")); err != nil {
		return nil, err
	}
	time.Sleep(time.Second) // until its socket is open
	sending, stop := context.WithCancel(ctx)
	defer stop()
	sent := make(chan uint64, 1)
	go func() { sent <- l.pour(sending, outageRate) }()
	time.Sleep(o.outage)
	return b.measure(ctx, func() uint64 { stop(); return <-sent }, o.outage)
}

// pour sends packets that each make a flow, and says how many.
func (l *lab) pour(ctx context.Context, rate int) (sent uint64) {
	err := l.pod.Do(func() error {
		r, err := newRawUDP(target())
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(r.fd) }() // nothing is buffered
		return pace(ctx, rate, 1<<31, func(from, until int) error {
			for n := from; n < until; n++ {
				window := n / (10 * rate)
				k := uint32(n%(10*rate)) * 2654435761 // scattered, and each once a window, as another connection
				if err := r.send(netip.AddrFrom4([4]byte{10, 200, byte(k >> 24), byte(k >> 16)}), uint16(1024+window), uint16(k)); err != nil {
					return err
				}
				sent++
			}
			return nil
		})
	})
	if err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "bench: send:", err)
	}
	return sent
}

// measure starts the collector and watches what comes.
func (b *outage) measure(ctx context.Context, end func() uint64, away time.Duration) ([]result, error) {
	anonymous, resident, err := b.agent.memory()
	if err != nil {
		return nil, err
	}
	waiting := spoolBytes(b.spool)
	if b.collector, err = start(ctx, b.node.Namespace, "bin/flowaudit-collector", "--listen", "unix:"+b.socket, "--data", filepath.Join(b.dir, "data")); err != nil {
		return nil, err
	}
	back := time.Now()
	behind, late, err := b.watch(ctx, back)
	if err != nil {
		return nil, err
	}
	sent := end()
	time.Sleep(time.Second) // what the kernel holds
	if _, err := b.agent.stop(); err != nil {
		return nil, err
	}
	stored, lost, err := b.count(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := b.collector.stop(); err != nil {
		return nil, err
	}
	slices.Sort(late)
	backlog := float64(outageRate) * away.Seconds()
	return []result{
		{fmt.Sprintf("collector away for %s, %d flows/s", away, outageRate), "flowaudit-agent", []string{
			fmt.Sprintf("%.1f bytes a flow on disk", float64(waiting)/backlog), fmt.Sprintf("%d MiB in the spool", waiting>>20),
			fmt.Sprintf("%d MiB anonymous, %d MiB resident", anonymous>>20, resident>>20),
		}},
		{"catching up", "flowaudit-agent", []string{
			fmt.Sprintf("%.0f flows/s of the backlog beside the live ones, %.1f times their rate, %.1f s", backlog/behind.Seconds(), backlog/behind.Seconds()/outageRate, behind.Seconds()),
			fmt.Sprintf("live windows committed after %.1f s at most (%d windows)", slices.Max(append(late, 0)).Seconds(), len(late)),
			fmt.Sprintf("%s of %d, %d told as dropped", lossText(sent, stored), sent, lost),
		}},
	}, nil
}

// watch looks at what is committed until nothing from before the collector came
// back waits, and then for two windows more: how long that took, and how late
// each window since was.
func (b *outage) watch(ctx context.Context, back time.Time) (behind time.Duration, late []time.Duration, err error) {
	seen := make(map[int64]bool)
	for deadline := back.Add(10 * time.Minute); time.Now().Before(deadline); time.Sleep(lookEvery) {
		rows, err := b.ask(ctx, fmt.Sprintf("SELECT DISTINCT end_ms FROM coverage WHERE end_ms > %d", back.UnixMilli()))
		if err != nil {
			return 0, nil, err
		}
		now := time.Now()
		for _, r := range rows {
			if end := int64(r[0].(float64)); !seen[end] {
				seen[end] = true
				late = append(late, now.Sub(time.UnixMilli(end)))
			}
		}
		if behind == 0 && spoolBytes(b.spool) < liveBytes {
			behind = now.Sub(back)
		}
		if behind > 0 && len(late) >= 4 {
			return behind, late, nil
		}
	}
	return 0, nil, errors.New("the agent does not catch up")
}

// liveBytes is more than what a window of live flows needs on disk.
const liveBytes = 8 << 20

func (b *outage) count(ctx context.Context) (stored, lost uint64, err error) {
	rows, err := b.ask(ctx, "SELECT sum(connections) FROM flows")
	if err != nil {
		return 0, 0, err
	}
	gaps, err := b.ask(ctx, "SELECT coalesce(sum(lost), 0) FROM gaps")
	if err != nil {
		return 0, 0, err
	}
	return uint64(rows[0][0].(float64)), uint64(gaps[0][0].(float64)), nil
}

// asker asks a collector.
type asker struct{ query flowauditv1.QueryClient }

func (b asker) ask(ctx context.Context, sql string) (all [][]any, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	stream, err := b.query.Select(ctx, &flowauditv1.SelectRequest{Query: sql}, grpc.WaitForReady(true))
	if err != nil {
		return nil, err
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			if strings.Contains(err.Error(), "EOF") {
				return all, nil
			}
			return nil, fmt.Errorf("ask %s: %w", sql, err)
		}
		for _, r := range m.GetRows() {
			all = append(all, r.AsSlice())
		}
	}
}

func spoolBytes(dir string) (total int64) {
	all, _ := filepath.Glob(filepath.Join(dir, "*.spool")) // the pattern is right
	for _, f := range all {
		if info, err := os.Stat(f); err == nil { // it may be gone by now
			total += info.Size()
		}
	}
	return total
}
