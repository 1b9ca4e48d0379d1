// Command demo shows flowaudit on a real Kubernetes: API server, kube-proxy, Deployments, Services and policies.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/flowaudit/flowaudit/test/cluster"
	"github.com/flowaudit/flowaudit/test/cluster/enforce"
	"github.com/flowaudit/flowaudit/test/cluster/ledger"
	"github.com/flowaudit/flowaudit/test/cluster/product"
	"github.com/flowaudit/flowaudit/test/cluster/shop"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "demo: it makes network namespaces, which needs root: sudo make demo-cluster")
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

// play makes the cluster, acts in it, asks, compares, and takes everything down.
func play(ctx context.Context) (err error) {
	bin, err := product.Build(ctx)
	if err != nil {
		return err
	}
	fmt.Println("Starting Kubernetes " + cluster.Release + " with two nodes …")
	o := cluster.DefaultOptions()
	o.Progress = os.Stdout
	c, err := cluster.Start(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	nodes := make(map[string]enforce.Node)
	for _, n := range c.Nodes {
		nodes[n.Name] = n
	}
	// The watches end before the API server does.
	watching, done := context.WithCancel(ctx)
	defer done()
	e, err := enforce.Start(watching, c.Client, nodes, enforce.DefaultOptions())
	if err != nil {
		return err
	}
	p, err := product.Start(ctx, c, product.Options{Bin: bin})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	if err := act(ctx, c, e, p); err != nil {
		return err
	}
	if os.Getenv("KEEP") == "" {
		fmt.Println("\nEverything is as it was done. KEEP=1 make demo-cluster leaves this running, to ask more.")
		return nil
	}
	invite(c, p)
	<-ctx.Done()
	fmt.Println("\nCleaning up.")
	return nil
}

// act opens the shop, makes its traffic, and holds the answers against it.
func act(ctx context.Context, c *cluster.Cluster, e *enforce.Enforcer, p *product.Product) error {
	fmt.Println("Opening a shop: Deployments, a StatefulSet, a DaemonSet, Services, and policies: only api may reach db, and probes its metrics …")
	s, err := shop.Open(ctx, c, e, "shop")
	if err != nil {
		return err
	}
	fmt.Println("Connecting: on one node and between nodes, by pod and Service, IPv4 and IPv6, TCP and UDP …")
	deeds, err := s.Act(ctx)
	if err != nil {
		return err
	}
	const answerBy = 30 * time.Second
	if err := p.Until(ctx, answerBy, "the answers to agree with what was done", func() error {
		flows, err := p.Flows(ctx, "-n", s.Namespace, "--verdict", "allowed,denied,unanswered,unknown")
		if err != nil {
			return err
		}
		return ledger.Compare(deeds, flows)
	}); err != nil {
		return err
	}
	return show(ctx, p)
}

// show prints what a person would ask.
func show(ctx context.Context, p *product.Product) error {
	for _, q := range [][]string{
		{"observe", "--verdict", "denied", "--to-workload", "shop/db", "--all", "--color", "never"},
		{"observe", "--verdict", "allowed", "-n", "shop", "--all", "-o", "table"},
		{"query", "denied-by-port"},
	} {
		fmt.Printf("\n$ flowaudit %s\n", strings.Join(q, " "))
		cmd := p.Command(ctx, q...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("flowaudit %s: %w", strings.Join(q, " "), err)
		}
	}
	return nil
}

// invite says how to ask more.
func invite(c *cluster.Cluster, p *product.Product) {
	kubectl := c.KubectlCommand(context.Background())
	fmt.Printf(`
It runs until Ctrl-C. In another terminal:

  export FLOWAUDIT_SERVER=%s
  bin/cluster/flowaudit status
  bin/cluster/flowaudit observe -f
  %s get pods -A -o wide
`, p.Server, strings.Join(kubectl.Args, " "))
}
