package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/flowaudit/flowaudit/agent/conntrack"
	"github.com/flowaudit/flowaudit/agent/nlmsg"
	"github.com/flowaudit/flowaudit/flow"
)

// bareReader is the argument that makes this program a bare reader of
// conntrack events: read(2), decode in place, count, and nothing else.
const bareReader = "bare-reader"

func readBare() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var n atomic.Uint64
	failed := make(chan error, 1)
	go func() { failed <- countEvents(&n) }()
	select {
	case <-ctx.Done():
		fmt.Println(n.Load())
		return 0
	case err := <-failed:
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
}

func countEvents(n *atomic.Uint64) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20); err != nil {
		return err
	}
	const events = 1<<0 | 1<<1 | 1<<2 // NFNLGRP_CONNTRACK_NEW, _UPDATE, _DESTROY
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: events}); err != nil {
		return err
	}
	buf := make([]byte, 8<<10)
	for {
		size, err := unix.Read(fd, buf)
		if err == unix.EINTR || err == unix.ENOBUFS {
			continue
		}
		if err != nil {
			return err
		}
		for b := buf[:size]; len(b) > 0; {
			h, payload, rest, err := nlmsg.Message(b)
			if err != nil {
				return err
			}
			b = rest
			var o flow.Observation
			if conntrack.Decode(h, payload, &o) == nil {
				n.Add(1)
			}
		}
	}
}
