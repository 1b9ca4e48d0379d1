// Command box is what a machine's containers run, and the machine's own first process.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
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
box machine CONFIG           be the first process of a machine`

// The machine's namespaces are a thread's, and its daemons start from that one.
func init() { runtime.LockOSThread() }

func main() {
	if err := run(os.Args[1:]); err != nil {
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
