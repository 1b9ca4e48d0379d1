package main

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"

	"github.com/flowaudit/flowaudit/flow"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// sink is a collector that only counts.
type sink struct {
	flowauditv1.UnimplementedIngestServer
	path   string
	server *grpc.Server
	first  chan struct{}
	once   sync.Once

	packets, connections atomic.Uint64
	named                atomic.Uint64 // connections of a known pod
}

func newSink(dir string) (*sink, error) {
	s := &sink{path: filepath.Join(dir, "sink.sock"), first: make(chan struct{}), server: grpc.NewServer(grpc.MaxRecvMsgSize(64 << 20))}
	if err := os.RemoveAll(s.path); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", s.path)
	if err != nil {
		return nil, err
	}
	flowauditv1.RegisterIngestServer(s.server, s)
	go func() { _ = s.server.Serve(l) }() // ends with Stop
	return s, nil
}

func (s *sink) Report(stream flowauditv1.Ingest_ReportServer) error {
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		b, _, _, err := m.ToBatch()
		if err != nil {
			return err
		}
		for i := range b.Flows {
			f := &b.Flows[i]
			s.connections.Add(f.Connections)
			if f.Source != nil && f.Source.Kind == flow.EndpointPod {
				s.named.Add(f.Connections)
			}
			if f.Verdict == flow.VerdictDenied {
				s.packets.Add(f.Sent.Packets)
			}
		}
		s.once.Do(func() { close(s.first) })
		if err := stream.Send(&flowauditv1.Ack{Key: m.Key}); err != nil {
			return err
		}
	}
}
