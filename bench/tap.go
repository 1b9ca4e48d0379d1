package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/flowaudit/flowaudit/test/netlab"
)

// refusedPort is refused by a rule that logs nothing.
const refusedPort = 9001

const tapRules = `table inet cni {
	chain pods { type filter hook forward priority 0;
		ct state established,related accept
		udp dport 9001 drop
	}
}`

// benchTap measures what the tap adds: to the agent, and to a connection.
func benchTap(ctx context.Context, o options) (all []result, err error) {
	l, err := newLab(tapRules)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	if err := roomForConnections(); err != nil {
		return nil, err
	}
	server, err := l.node.AddPod("bench-c", netip.AddrFrom4([4]byte{10, 9, 0, 3}), netip.MustParseAddr("fd09::3"))
	if err != nil {
		return nil, err
	}
	stop, err := accept(server)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	const rate = 20_000
	var cost [2]time.Duration
	for i, with := range tapModes() {
		r, perConnection, err := l.tapped(ctx, rate, rate*o.seconds, with.args...)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", with.who, err)
		}
		r.who, cost[i] = with.who, perConnection
		all = append(all, r)
	}
	packets, connects, err := l.tapDelays(ctx, server)
	if err != nil {
		return nil, err
	}
	for i, with := range tapModes() {
		all = append(all,
			result{"first packet of a connection, through the node", with.who, quantiles(packets[i])},
			result{"TCP connect, from call to return", with.who, quantiles(connects[i])})
	}
	return append(all, result{"what the tap adds to a connection", "", []string{
		fmt.Sprintf("%.2f µs of the agent's processor time", micros(cost[1]-cost[0])),
		fmt.Sprintf("%+.2f µs to its first packet", micros(median(packets[1])-median(packets[0]))),
		fmt.Sprintf("%+.1f µs to a TCP connect", micros(median(connects[1])-median(connects[0]))),
	}}), nil
}

// tapMode is an agent without its tap, or with it.
type tapMode struct {
	who  string
	args []string
}

func tapModes() [2]tapMode {
	return [2]tapMode{{"flowaudit-agent without its tap", nil}, {"flowaudit-agent with its tap", []string{"--tap"}}}
}

// tapped runs an agent under connections that come and go.
func (l *lab) tapped(ctx context.Context, rate, total int, args ...string) (r result, perConnection time.Duration, err error) {
	s, err := newSink(l.dir)
	if err != nil {
		return r, 0, err
	}
	defer s.server.Stop()
	p, err := startAgent(ctx, l.node.Namespace, s, args...)
	if err != nil {
		return r, 0, err
	}
	before, err := p.cpu()
	if err != nil {
		return r, 0, err
	}
	if err := l.churnSome(ctx, rate, total); err != nil {
		return r, 0, err
	}
	time.Sleep(3 * time.Second) // the last refusals are decided
	after, err := p.cpu()
	if err != nil {
		return r, 0, err
	}
	if _, err := p.stop(); err != nil {
		return r, 0, err
	}
	perConnection = (after - before) / time.Duration(total)
	return result{fmt.Sprintf("%d connections/s begin and end, a tenth refused", rate), "", []string{
		fmt.Sprintf("%.2f µs a connection", micros(perConnection)),
		fmt.Sprintf("%d of %d refusals seen", s.packets.Load(), total/10),
	}}, perConnection, nil
}

// tapDelays measures how long packets and connections take, with and without
// the tap by turns. The round with the lowest median counts: what else the
// machine does can only add.
func (l *lab) tapDelays(ctx context.Context, server *netlab.Pod) (packets, connects [2][]time.Duration, err error) {
	const rounds = 3
	for round := range 2 * rounds {
		i := round % 2
		p, c, err := l.delays(ctx, server, round, tapModes()[i].args)
		if err != nil {
			return packets, connects, err
		}
		if packets[i] == nil || median(p) < median(packets[i]) {
			packets[i] = p
		}
		if connects[i] == nil || median(c) < median(connects[i]) {
			connects[i] = c
		}
	}
	return packets, connects, nil
}

func (l *lab) delays(ctx context.Context, server *netlab.Pod, round int, args []string) (packets, connects []time.Duration, err error) {
	s, err := newSink(l.dir)
	if err != nil {
		return nil, nil, err
	}
	defer s.server.Stop()
	p, err := startAgent(ctx, l.node.Namespace, s, append([]string{"--window", "1s"}, args...)...)
	if err != nil {
		return nil, nil, err
	}
	if packets, err = l.timeFirstPackets(round); err == nil {
		connects, err = l.timeConnects(server)
	}
	_, stopped := p.stop()
	return packets, connects, errors.Join(err, stopped)
}

// churnSome begins and ends connections, a tenth of which is refused.
func (l *lab) churnSome(ctx context.Context, rate, total int) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return l.pod.Do(func() error {
			r, err := newRawUDP(target())
			if err != nil {
				return err
			}
			defer func() { _ = unix.Close(r.fd) }() // nothing is buffered
			return pace(ctx, rate, total, func(from, until int) error {
				for n := from; n < until; n++ {
					port := uint16(connectionPort)
					if n%10 == 0 {
						port = refusedPort
					}
					if err := r.send(connection(n).Addr(), connection(n).Port(), port); err != nil {
						return fmt.Errorf("send: %w", err)
					}
				}
				return nil
			})
		})
	})
	group.Go(func() error {
		time.Sleep(connectionLife)
		return l.end(ctx, rate, total)
	})
	return group.Wait()
}

// timeFirstPackets measures how long packets take through the node, each the
// first of its connection: a veth delivers before the send returns.
func (l *lab) timeFirstPackets(round int) (took []time.Duration, err error) {
	const n, burst = 10_000, 10
	err = l.pod.Do(func() error {
		r, err := newRawUDP(target())
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(r.fd) }() // nothing is buffered
		for i := range n {
			c := connection(1<<23 + round*n + i)
			began := time.Now()
			if err := r.send(c.Addr(), c.Port(), connectionPort); err != nil {
				return fmt.Errorf("send: %w", err)
			}
			took = append(took, time.Since(began))
			if i%burst == burst-1 {
				time.Sleep(time.Millisecond)
			}
		}
		return nil
	})
	return took, err
}

// timeConnects measures how long it takes to connect.
func (l *lab) timeConnects(server *netlab.Pod) (took []time.Duration, err error) {
	const n = 3000
	to := net.TCPAddrFromAddrPort(netip.AddrPortFrom(server.IPv4, connectionPort))
	err = l.pod.Do(func() error {
		for range n {
			began := time.Now()
			c, err := net.DialTCP("tcp", nil, to)
			if err != nil {
				return err
			}
			took = append(took, time.Since(began))
			if err := c.Close(); err != nil {
				return err
			}
		}
		return nil
	})
	return took, err
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

func quantile(took []time.Duration, q float64) time.Duration {
	slices.Sort(took)
	return took[int(q*float64(len(took)-1))]
}

func median(took []time.Duration) time.Duration { return quantile(took, 0.5) }

func quantiles(took []time.Duration) []string {
	return []string{fmt.Sprintf("median %.2f µs", micros(median(took))), fmt.Sprintf("99 %% below %.1f µs", micros(quantile(took, 0.99)))}
}

// accept takes connections in a pod and lets the client close them.
func accept(pod *netlab.Pod) (stop func() error, err error) {
	var listener net.Listener
	if err := pod.Do(func() (err error) {
		listener, err = net.Listen("tcp", fmt.Sprintf(":%d", connectionPort))
		return err
	}); err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(io.Discard, c) // until the client is gone
				_ = c.Close()
			}()
		}
	}()
	return listener.Close, nil
}
