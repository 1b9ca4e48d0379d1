package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/flowaudit/flowaudit/test/netlab"
)

// lab is a node with a sending pod, and a silent one.
type lab struct {
	node *netlab.Node
	pod  *netlab.Pod
	dir  string
}

// target takes everything, and answers nothing.
func target() netip.Addr { return netip.AddrFrom4([4]byte{10, 9, 0, 2}) }

func newLab(rules string) (l *lab, err error) {
	l = &lab{}
	if l.dir, err = os.MkdirTemp("", "flowaudit-bench-"); err != nil {
		return nil, err
	}
	if l.node, err = netlab.NewNode("bench"); err != nil {
		return nil, err
	}
	if l.pod, err = l.node.AddPod("bench-a", netip.AddrFrom4([4]byte{10, 9, 0, 1}), netip.MustParseAddr("fd09::1")); err != nil {
		return nil, errors.Join(err, l.close())
	}
	steps := []func() error{
		func() error { return l.node.NFT(rules) },
		func() error {
			silent, err := l.node.AddPod("bench-b", target(), netip.MustParseAddr("fd09::2"))
			if err != nil {
				return err
			}
			return silent.NFT("table inet silent {\n chain in { type filter hook input priority 0; drop\n }\n}")
		},
		func() error { return l.node.IP("route", "add", "10.200.0.0/16", "dev", l.pod.Veth) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, errors.Join(err, l.close())
		}
	}
	return l, nil
}

func (l *lab) close() error { return errors.Join(l.node.Close(), os.RemoveAll(l.dir)) }

func benchNFLOG(ctx context.Context, o options) (all []result, err error) {
	l, err := newLab("table inet cni {\n chain pods { type filter hook forward priority 0; ip daddr 10.9.0.2 log group 100\n ip daddr 10.9.0.2 drop\n }\n}")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	for _, rate := range []int{50_000, 200_000, 500_000} {
		r, err := l.nflogAgent(ctx, rate, o.seconds)
		if err != nil {
			return nil, err
		}
		all = append(all, r)
		if installed("ulogd") && rate <= 200_000 {
			if r, err = l.nflogULOGD(ctx, rate, o.seconds); err != nil {
				return nil, err
			}
			all = append(all, r)
		}
	}
	return all, nil
}

func (l *lab) nflogAgent(ctx context.Context, rate, seconds int) (result, error) {
	s, err := newSink(l.dir)
	if err != nil {
		return result{}, err
	}
	defer s.server.Stop()
	p, err := startAgent(ctx, l.node.Namespace, s, "--nflog-group", "100", "--conntrack=false")
	if err != nil {
		return result{}, err
	}
	before, err := p.cpu()
	if err != nil {
		return result{}, err
	}
	sent, took, err := l.flood(ctx, rate, seconds)
	if err != nil {
		return result{}, err
	}
	time.Sleep(time.Second)
	after, err := p.cpu()
	if err != nil {
		return result{}, err
	}
	anonymous, resident, err := p.memory()
	if err != nil {
		return result{}, err
	}
	if _, err := p.stop(); err != nil {
		return result{}, err
	}
	return result{nflogName(rate, sent, took), "flowaudit-agent", []string{
		perEvent(after-before, s.packets.Load()), lossText(sent, s.packets.Load()),
		fmt.Sprintf("%d MiB anonymous, %d MiB resident", anonymous>>20, resident>>20),
	}}, nil
}

func nflogName(rate int, sent uint64, took time.Duration) string {
	return fmt.Sprintf("NFLOG at %d/s (%.0f/s reached)", rate, float64(sent)/took.Seconds())
}

func (l *lab) nflogULOGD(ctx context.Context, rate, seconds int) (result, error) {
	config, output, err := ulogdConfig(l.dir, "log1:NFLOG,base1:BASE,ifi1:IFINDEX,ip2str1:IP2STR,json1:JSON",
		"[log1]\ngroup=100\nnetlink_socket_buffer_size=16777216\nnetlink_socket_buffer_maxsize=16777216\nnetlink_qthreshold=96\nnetlink_qtimeout=5")
	if err != nil {
		return result{}, err
	}
	p, err := start(ctx, l.node.Namespace, "ulogd", "-c", config)
	if err != nil {
		return result{}, err
	}
	time.Sleep(time.Second) // it has no way to say that it is ready
	before, err := p.cpu()
	if err != nil {
		return result{}, err
	}
	sent, took, err := l.flood(ctx, rate, seconds)
	if err != nil {
		return result{}, err
	}
	time.Sleep(2 * time.Second)
	after, err := p.cpu()
	if err != nil {
		return result{}, err
	}
	if _, err := p.stop(); err != nil {
		return result{}, err
	}
	seen, err := lines(output)
	if err != nil {
		return result{}, err
	}
	return result{nflogName(rate, sent, took), "ulogd2, JSON", []string{perEvent(after-before, seen), lossText(sent, seen)}}, os.Remove(output)
}

// roomForConnections lifts the kernel's bound, which it derives from the memory.
func roomForConnections() error {
	return os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_max", []byte("1048576"), 0)
}

const trackRules = "table inet cni {\n chain pods { type filter hook forward priority 0; ct state invalid drop\n }\n}"

func benchConntrack(ctx context.Context, o options) (all []result, err error) {
	l, err := newLab(trackRules)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	if err := roomForConnections(); err != nil {
		return nil, err
	}
	const rate = 20_000
	for _, peer := range []struct {
		name string
		run  func(context.Context, int, int) (result, error)
		have bool
	}{
		{"bare in-place reader", l.conntrackBare, true},
		{"flowaudit-agent", l.conntrackAgent, true},
		{"conntrack -E", l.conntrackTool, installed("conntrack")},
		{"ulogd2, JSON", l.conntrackULOGD, installed("ulogd")},
	} {
		if !peer.have {
			continue
		}
		r, err := peer.run(ctx, rate, rate*o.seconds)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", peer.name, err)
		}
		r.who = peer.name
		r.what = fmt.Sprintf("conntrack, %d connections/s, NEW and DESTROY", rate)
		all = append(all, r)
	}
	return all, nil
}

// measure drives connections past a process, and lets it read what is left.
func (l *lab) measure(ctx context.Context, p *process, rate, total int) (cpu time.Duration, err error) {
	before, err := p.cpu()
	if err != nil {
		return 0, err
	}
	if err := l.churn(ctx, rate, total); err != nil {
		return 0, err
	}
	time.Sleep(time.Second)
	after, err := p.cpu()
	return after - before, err
}

func (l *lab) conntrackAgent(ctx context.Context, rate, total int) (result, error) {
	s, err := newSink(l.dir)
	if err != nil {
		return result{}, err
	}
	defer s.server.Stop()
	p, err := startAgent(ctx, l.node.Namespace, s)
	if err != nil {
		return result{}, err
	}
	cpu, err := l.measure(ctx, p, rate, total)
	if err != nil {
		return result{}, err
	}
	if _, err := p.stop(); err != nil {
		return result{}, err
	}
	return result{figures: []string{perEvent(cpu, 2*uint64(total)), lossText(uint64(total), s.connections.Load())}}, nil
}

func (l *lab) conntrackBare(ctx context.Context, rate, total int) (result, error) {
	self, err := os.Executable()
	if err != nil {
		return result{}, err
	}
	p, err := start(ctx, l.node.Namespace, self, bareReader)
	if err != nil {
		return result{}, err
	}
	time.Sleep(500 * time.Millisecond)
	cpu, err := l.measure(ctx, p, rate, total)
	if err != nil {
		return result{}, err
	}
	if _, err := p.stop(); err != nil {
		return result{}, err
	}
	var events uint64
	if _, err := fmt.Sscan(p.log.String(), &events); err != nil {
		return result{}, fmt.Errorf("read its count %q: %w", p.log.String(), err)
	}
	return result{figures: []string{perEvent(cpu, events), lossText(2*uint64(total), events)}}, nil
}

func (l *lab) conntrackTool(ctx context.Context, rate, total int) (result, error) {
	output := filepath.Join(l.dir, "conntrack.txt")
	p, err := start(ctx, l.node.Namespace, "sh", "-c", "exec conntrack -E -b 33554432 -e NEW,DESTROY > "+output)
	if err != nil {
		return result{}, err
	}
	time.Sleep(500 * time.Millisecond)
	cpu, err := l.measure(ctx, p, rate, total)
	if err != nil {
		return result{}, err
	}
	if _, err := p.stop(); err != nil {
		return result{}, err
	}
	seen, err := lines(output)
	return result{figures: []string{perEvent(cpu, seen), lossText(2*uint64(total), seen)}}, errors.Join(err, os.Remove(output))
}

func (l *lab) conntrackULOGD(ctx context.Context, rate, total int) (result, error) {
	config, output, err := ulogdConfig(l.dir, "ct1:NFCT,ip2str1:IP2STR,json1:JSON",
		"[ct1]\nhash_enable=0\nnetlink_socket_buffer_size=33554432\nnetlink_socket_buffer_maxsize=33554432\nevent_mask=0x5")
	if err != nil {
		return result{}, err
	}
	p, err := start(ctx, l.node.Namespace, "ulogd", "-c", config)
	if err != nil {
		return result{}, err
	}
	time.Sleep(time.Second)
	cpu, err := l.measure(ctx, p, rate, total)
	if err != nil {
		return result{}, err
	}
	if _, err := p.stop(); err != nil {
		return result{}, err
	}
	seen, err := lines(output)
	return result{figures: []string{perEvent(cpu, seen), lossText(2*uint64(total), seen)}}, errors.Join(err, os.Remove(output))
}
