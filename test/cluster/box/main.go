// Command box is what a machine's containers run, and the machine's own first process.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"github.com/flowaudit/flowaudit/test/cluster/machine"
	"github.com/flowaudit/flowaudit/test/netlab/traffic"
)

const usage = `want one of
box pause
box serve PORT...            echo TCP and UDP
box talk tcp|udp HOST:PORT   send 4096 bytes and read them back
box knock tcp|udp HOST:PORT  try where no answer may come
box machine CONFIG           be the first process of a machine
or, as agnhost:
agnhost pause
agnhost netexec --http-port=PORT [--udp-port=-1]
agnhost connect [--timeout=DURATION] HOST:PORT`

// The machine's namespaces are a thread's, and its daemons start from that one.
func init() { runtime.LockOSThread() }

func main() {
	do := run
	if filepath.Base(os.Args[0]) == "agnhost" {
		do = agnhost
	}
	if err := do(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "box:", err)
		os.Exit(1)
	}
}

// here is the network namespace in which the program runs.
type here struct{}

func (here) Do(f func() error) error { return f() }

func run(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch {
	case len(args) == 1 && args[0] == "pause":
		return pause(ctx)
	case len(args) > 1 && args[0] == "serve":
		return serve(ctx, args[1:])
	case len(args) == 3 && args[0] == "talk":
		const size = 4096
		return traffic.Talk(ctx, here{}, args[1], args[2], size)
	case len(args) == 3 && args[0] == "knock":
		return traffic.Knock(ctx, here{}, args[1], args[2])
	case len(args) == 2 && args[0] == "machine":
		return machine.Run(args[1])
	}
	return errors.New(usage)
}

// agnhost does what Kubernetes' program of that name does.
func agnhost(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(args) == 0 {
		return errors.New(usage)
	}
	fs := flag.NewFlagSet(args[0], flag.ContinueOnError)
	port, timeout := fs.String("http-port", "8080", ""), fs.Duration("timeout", 0, "")
	_ = fs.String("udp-port", "8081", "") // the server echoes UDP on the same port
	if err := fs.Parse(args[1:]); err != nil {
		return err
	}
	switch {
	case args[0] == "pause":
		return pause(ctx)
	case args[0] == "netexec":
		return serve(ctx, []string{*port})
	case args[0] == "connect" && fs.NArg() == 1:
		c, err := (&net.Dialer{Timeout: *timeout}).DialContext(ctx, "tcp", fs.Arg(0))
		if err != nil {
			return err
		}
		return c.Close()
	}
	return errors.New(usage)
}

func pause(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

func serve(ctx context.Context, ports []string) error {
	for _, p := range ports {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil {
			return fmt.Errorf("read port: %w", err)
		}
		s, err := traffic.Serve(here{}, uint16(n))
		if err != nil {
			return err
		}
		defer s.Close()
	}
	<-ctx.Done()
	return nil
}
