package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// benchMemory holds 100,000 connections live: of addresses that the agent does
// not know, and on a node with 250 pods that it watches.
func benchMemory(ctx context.Context, _ options) (all []result, err error) {
	l, err := newLab(trackRules)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	if err := errors.Join(roomForConnections(), l.node.Sysctl("netfilter/nf_conntrack_udp_timeout", "600")); err != nil {
		return nil, err
	}
	const pods = 250
	api, err := startAPIServer(l.node.Namespace, l.dir, pods)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, api.server.Close()) }()
	const live = 100_000
	alone, err := l.memory(ctx, live)
	if err != nil {
		return nil, err
	}
	alone.what = fmt.Sprintf("memory with %d live connections", live)
	watching, err := l.memory(ctx, live, "--kubeconfig", api.kubeconfig)
	watching.what = fmt.Sprintf("the same on a node with %d pods, by the API server; at most 40 MiB anonymous", pods)
	return []result{alone, watching}, err
}

// memory is what an agent holds that watches live connections.
func (l *lab) memory(ctx context.Context, live int, args ...string) (result, error) {
	s, err := newSink(l.dir)
	if err != nil {
		return result{}, err
	}
	defer s.server.Stop()
	p, err := startAgent(ctx, l.node.Namespace, s, append([]string{"--window", "1s", "--unanswered-after", "2s", "--dump-interval", "2s"}, args...)...)
	if err != nil {
		return result{}, err
	}
	if err := l.begin(ctx, 20_000, live); err != nil {
		return result{}, err
	}
	time.Sleep(8 * time.Second) // windows and dumps over the full table
	anonymous, resident, err := p.memory()
	if err != nil {
		return result{}, err
	}
	if _, err := p.stop(); err != nil {
		return result{}, err
	}
	err = l.end(ctx, 20_000, live) // the next agent is to see them begin
	figures := []string{
		fmt.Sprintf("%.1f MiB anonymous", float64(anonymous)/(1<<20)), fmt.Sprintf("%.1f MiB resident", float64(resident)/(1<<20)),
		fmt.Sprintf("%d connections reported", s.connections.Load()),
	}
	if n := s.named.Load(); n > 0 {
		figures = append(figures, fmt.Sprintf("%d of pods with names", n))
	}
	return result{who: "flowaudit-agent", figures: figures}, err
}
