// Command demo shows flowaudit on real kernel events: a node with three pods,
// a network policy, and connections that are allowed and refused.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "demo: it makes network namespaces, which needs root: sudo make demo")
		return 1
	}
	err := play(ctx)
	switch {
	case err == nil:
		return 0
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "demo: interrupted, everything is cleaned up")
		return 130
	}
	fmt.Fprintf(os.Stderr, "demo: %v\n", err)
	return 1
}

// play makes the stage, acts, asks, compares, and takes everything down.
func play(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "flowaudit-demo-")
	if err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	fmt.Println("Making a node with the pods web, api and db, and db-policy: only api may reach db, on TCP 3306 …")
	s, err := newStage()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()

	p := &programs{bin: "bin", socket: filepath.Join(dir, "collector.sock"), dir: dir}
	defer func() { err = errors.Join(err, p.stop()) }()
	if err := p.start(ctx, s.node); err != nil {
		return err
	}

	fmt.Println("Connecting: api and web to db, by pod, Service, IPv6, UDP, on the right port and a wrong one …")
	ledger, err := s.act(ctx)
	if err != nil {
		return err
	}
	if err := p.compare(ctx, ledger); err != nil {
		return err
	}
	if err := p.show(ctx); err != nil {
		return err
	}
	if os.Getenv("KEEP") == "" {
		fmt.Println("\nEverything is as it was done. KEEP=1 make demo leaves this running, to ask more.")
		return nil
	}
	p.invite()
	<-ctx.Done()
	fmt.Println("\nCleaning up.")
	return nil
}
