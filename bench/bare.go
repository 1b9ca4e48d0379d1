package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/flowaudit/flowaudit/agent/conntrack"
	"github.com/flowaudit/flowaudit/agent/nlmsg"
	"github.com/flowaudit/flowaudit/flow"
)

// bareReader is the argument that makes this program a bare reader of
// conntrack events: it reads and decodes in place, and counts.
const bareReader = "bare-reader"

func readBare() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	n, err := countEvents(ctx)
	fmt.Println(n)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func countEvents(ctx context.Context) (n uint64, err error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return 0, err
	}
	if err := nlmsg.ReceiveBuffer(conn, 32<<20); err != nil {
		return 0, err
	}
	for group := uint32(1); group <= 3; group++ { // NFNLGRP_CONNTRACK_NEW, _UPDATE, _DESTROY
		if err := conn.JoinGroup(group); err != nil {
			return 0, err
		}
	}
	r, err := nlmsg.NewReader(conn, 8<<10)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	defer r.StopWith(ctx)()
	for {
		b, err := r.Next()
		switch {
		case errors.Is(err, nlmsg.ErrStopped):
			return n, nil
		case errors.Is(err, unix.ENOBUFS):
			continue
		case err != nil:
			return n, err
		}
		for len(b) > 0 {
			h, payload, rest, err := nlmsg.Message(b)
			if err != nil {
				return n, err
			}
			b = rest
			var o flow.Observation
			if conntrack.Decode(h, payload, &o) == nil {
				n++
			}
		}
	}
}
