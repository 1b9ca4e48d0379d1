package collector

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// pastStore answers questions about edges and changes only.
type pastStore struct {
	store.Store
	edges   []*flow.Edge
	changes []flow.Change
	asked   store.EdgesRequest
}

func (s *pastStore) Edges(_ context.Context, req store.EdgesRequest, yield func(*flow.Edge) bool) error {
	s.asked = req
	for _, e := range s.edges {
		if !yield(e) {
			break
		}
	}
	return nil
}

func (s *pastStore) Timeline(_ context.Context, _ flow.Sight, _, _ time.Time, yield func(flow.Change) bool) error {
	for _, c := range s.changes {
		if !yield(c) {
			break
		}
	}
	return nil
}

func (s *pastStore) Coverage(_ context.Context, _ flow.Sight, since, until time.Time) (flow.Coverage, error) {
	return flow.Coverage{Since: since, Until: until, Nodes: []flow.NodeCoverage{{Node: "n1", Covered: until.Sub(since)}}}, nil
}

func queryClient(t *testing.T, s store.Store) flowauditv1.QueryClient {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "query")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	flowauditv1.RegisterQueryServer(server, &query{store: s})
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return flowauditv1.NewQueryClient(conn)
}

func TestEdgesAndTimelineComeWhole(t *testing.T) {
	at := time.UnixMilli(1_790_000_000_000)
	s := &pastStore{}
	for n := range 5000 {
		e := &flow.Edge{First: at, Last: at.Add(time.Hour), Hours: 1, Connections: uint64(n)}
		e.Cluster, e.Protocol, e.Port = fmt.Sprint("c", n%2), flow.TCP, uint16(n)
		s.edges = append(s.edges, e)
		s.changes = append(s.changes, flow.Change{Time: at, Cluster: e.Cluster, Kind: flow.ChangePolicy, Namespace: "shop", Name: fmt.Sprint(n), Object: make([]byte, 1000)})
	}
	client := queryClient(t, s)
	edges, err := client.Edges(t.Context(), &flowauditv1.EdgesRequest{Cluster: "c1"})
	if err != nil {
		t.Fatal(err)
	}
	var got int
	var coverage *flowauditv1.Coverage
	for {
		part, err := edges.Recv()
		if err != nil {
			break
		}
		got += len(part.GetEdges())
		coverage = part.GetCoverage()
	}
	if got != 2500 || coverage.GetSince() != at.UnixMilli() || !s.asked.Since.IsZero() || s.asked.Until.IsZero() {
		t.Errorf("%d edges of one cluster, coverage from %d, asked for %+v; want 2500, coverage from the first edge on, until now", got, coverage.GetSince(), s.asked)
	}
	timeline, err := client.Timeline(t.Context(), &flowauditv1.TimelineRequest{})
	if err != nil {
		t.Fatal(err)
	}
	got = 0
	for {
		part, err := timeline.Recv()
		if err != nil {
			break
		}
		got += len(part.GetChanges())
	}
	if got != 5000 {
		t.Errorf("%d changes, want 5000", got)
	}
}

func TestARangeThatEndsBeforeItBeginsIsRefused(t *testing.T) {
	client := queryClient(t, &pastStore{})
	edges, err := client.Edges(t.Context(), &flowauditv1.EdgesRequest{Since: 2_000_000_000_000, Until: 1_000_000_000_000})
	if err == nil {
		_, err = edges.Recv()
	}
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("%v, want InvalidArgument", err)
	}
}
