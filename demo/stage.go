package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"

	"github.com/flowaudit/flowaudit/test/netlab"
	"github.com/flowaudit/flowaudit/test/netlab/traffic"
)

//go:embed rules.nft
var rules string

// stage is the node and its pods, with servers in db and api.
type stage struct {
	node         *netlab.Node
	web, api, db *netlab.Pod
	closers      []io.Closer
	long         net.Conn
}

func newStage() (*stage, error) {
	node, err := netlab.NewNode("node")
	if err != nil {
		return nil, err
	}
	s := &stage{node: node}
	if err := s.build(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *stage) build() error {
	for i, pod := range []**netlab.Pod{&s.web, &s.api, &s.db} {
		label := []string{"web", "api", "db"}[i]
		v4, v6 := netip.AddrFrom4([4]byte{10, 1, 0, byte(i + 1)}), netip.MustParseAddr(fmt.Sprintf("fd00:1::%d", i+1))
		var err error
		if *pod, err = s.node.AddPod(label, v4, v6); err != nil {
			return err
		}
	}
	if err := s.node.NFT(rules); err != nil {
		return err
	}
	return errors.Join(s.serve(s.db, 3306), s.serve(s.db, 5432), s.serve(s.api, 8080))
}

// serve echoes what clients send, on all of a pod's addresses.
func (s *stage) serve(pod *netlab.Pod, port uint16) error {
	server, err := traffic.Serve(pod, port)
	if err == nil {
		s.closers = append(s.closers, server)
	}
	return err
}

func (s *stage) Close() error {
	var errs []error
	if s.long != nil {
		errs = append(errs, s.long.Close())
	}
	for _, c := range s.closers {
		errs = append(errs, c.Close())
	}
	return errors.Join(append(errs, s.node.Close())...)
}

// deed is what the demo did, and what flowaudit must say of it.
type deed struct {
	verdict, source, destination, protocol string
	ip                                     string // of the destination
	port                                   int
	service                                string
	connections                            uint64
	bytes                                  uint64 // at least, in each direction; 0 does not matter
}

// act makes the connections.
func (s *stage) act(ctx context.Context) ([]deed, error) {
	const payload = 4096
	var ledger []deed
	allowed := func(from *netlab.Pod, source, destination, addr string, d deed) error {
		d.verdict, d.source, d.destination, d.protocol, d.bytes = "allowed", source, destination, "tcp", payload*d.connections
		for range d.connections {
			if err := traffic.Talk(ctx, from, "tcp", addr, payload); err != nil {
				return err
			}
		}
		ledger = append(ledger, d)
		return nil
	}
	denied := func(from *netlab.Pod, source, network, ip string, port int, n uint64) error {
		for range n {
			if err := traffic.Knock(ctx, from, network, net.JoinHostPort(ip, fmt.Sprint(port))); err != nil {
				return err
			}
		}
		ledger = append(ledger, deed{verdict: "denied", source: source, destination: "db", protocol: network, ip: ip, port: port, connections: n})
		return nil
	}
	dbIP, dbIP6 := s.db.IPv4.String(), s.db.IPv6.String()
	for _, step := range []func() error{
		func() error { return s.hold(ctx) },
		func() error {
			return allowed(s.api, "api", "db", "10.96.0.33:3306", deed{ip: dbIP, port: 3306, service: "db", connections: 3})
		},
		func() error {
			return allowed(s.api, "api", "db", net.JoinHostPort(dbIP6, "3306"), deed{ip: dbIP6, port: 3306, connections: 2})
		},
		func() error {
			return allowed(s.web, "web", "api", s.api.IPv4.String()+":8080", deed{ip: s.api.IPv4.String(), port: 8080, connections: 2})
		},
		func() error { return denied(s.web, "web", "tcp", dbIP, 3306, 3) },
		func() error { return denied(s.web, "web", "tcp", dbIP6, 3306, 1) },
		func() error { return denied(s.api, "api", "tcp", dbIP, 5432, 1) },
		func() error { return denied(s.web, "web", "udp", dbIP, 5353, 1) },
		func() error { return s.chat() },
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	// The long connection goes to the same place as those through the Service.
	ledger[0].connections++
	ledger[0].bytes += 2 * payload
	return ledger, nil
}

// hold opens a connection that stays.
func (s *stage) hold(ctx context.Context) (err error) {
	if s.long, err = traffic.Connect(ctx, s.api, "tcp", s.db.IPv4.String()+":3306"); err != nil {
		return fmt.Errorf("open a long connection: %w", err)
	}
	return s.chat()
}

// chat sends something over the long connection.
func (s *stage) chat() error { return traffic.Exchange(s.long, 4096) }
