package kernel

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/proto/goldmane"
	"github.com/flowaudit/flowaudit/test/netlab"
)

// observer serves Hubble's API: each refusal that is sent to it goes to the
// stream that is open, and a cut ends the stream.
type observer struct {
	observerpb.UnimplementedObserverServer
	refusals chan uint32 // source ports
	cut      chan struct{}
}

func (o *observer) ServerStatus(context.Context, *observerpb.ServerStatusRequest) (*observerpb.ServerStatusResponse, error) {
	return &observerpb.ServerStatusResponse{UptimeNs: uint64(time.Hour)}, nil
}

func (o *observer) GetFlows(_ *observerpb.GetFlowsRequest, stream observerpb.Observer_GetFlowsServer) error {
	for {
		select {
		case port := <-o.refusals:
			if err := stream.Send(&observerpb.GetFlowsResponse{ResponseTypes: &observerpb.GetFlowsResponse_Flow{Flow: &flowpb.Flow{
				Time: timestamppb.Now(), Verdict: flowpb.Verdict_DROPPED, DropReasonDesc: flowpb.DropReason_POLICY_DENY,
				IP:        &flowpb.IP{Source: "10.9.0.1", Destination: "10.9.0.2"},
				L4:        &flowpb.Layer4{Protocol: &flowpb.Layer4_TCP{TCP: &flowpb.TCP{SourcePort: port, DestinationPort: 4244}}},
				EventType: &flowpb.CiliumEventType{Type: 5}, TrafficDirection: flowpb.TrafficDirection_INGRESS,
				Source:          &flowpb.Endpoint{Namespace: "shop", PodName: "web-0"},
				IngressDeniedBy: []*flowpb.Policy{{Kind: "CiliumNetworkPolicy", Namespace: "shop", Name: "db"}},
			}}}); err != nil {
				return err
			}
		case <-o.cut:
			return nil
		case <-stream.Context().Done():
			return nil
		}
	}
}

// felixSends is Felix's side of its socket.
func felixSends(t *testing.T, path string, flows ...*goldmane.Flow) {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := goldmane.NewFlowCollectorClient(conn).Connect(t.Context(), grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range flows {
		if err := stream.Send(&goldmane.FlowUpdate{Flow: f}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
	}
}

// antreaRefuses appends refusals from source ports to Antrea's log.
func antreaRefuses(t *testing.T, path string, ports ...int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range ports {
		fmt.Fprintf(f, "%s IngressDefaultRule AntreaNetworkPolicy:shop/db deny Ingress Drop 16 shop/db-0 10.9.0.1 %d 10.9.0.2 80 TCP 60 <nil>\n",
			time.Now().UTC().Format("2006/01/02 15:04:05.000000"), p)
	}
}

// TestSourcesOfNetworkPlugins: several at once, through rotation, a broken
// stream and a restart of the agent; each refusal is reported once. One source
// that cannot be had stops none of the others.
func TestSourcesOfNetworkPlugins(t *testing.T) {
	node := netlab.NodeT(t, "src", 9, 0)
	dir := t.TempDir()
	np, hubble, felix := filepath.Join(dir, "np.log"), filepath.Join(dir, "hubble.sock"), filepath.Join(dir, "flows.sock")
	antreaRefuses(t, np, 1) // before the agent ever ran
	l, err := net.Listen("unix", hubble)
	if err != nil {
		t.Fatal(err)
	}
	o := &observer{refusals: make(chan uint32), cut: make(chan struct{})}
	server := grpc.NewServer()
	observerpb.RegisterObserverServer(server, o)
	go func() { _ = server.Serve(l) }() // ends with Stop
	t.Cleanup(server.Stop)

	owner := newSink(t)
	startAgent(t, node.Namespace, owner, nil, "--node-name", "owner", "--conntrack=false", "--nflog-group", "7")
	owner.reported("owner")

	s := newSink(t)
	run := func() *agent {
		return startAgent(t, node.Namespace, s, nil, "--node-name", "src", "--conntrack=false", "--state-dir", dir, "--nflog-group", "7",
			"--source", "antrea="+np, "--source", "hubble=unix:"+hubble, "--source", "felix="+felix)
	}
	a := run()
	s.reported("src")
	antreaRefuses(t, np, 2, 3)
	o.refusals <- 11
	refused := &goldmane.Flow{
		StartTime: time.Now().Unix() - 15, EndTime: time.Now().Unix(), PacketsIn: 3, NumConnectionsStarted: 2,
		Key: &goldmane.FlowKey{
			SourceName: "web-*", SourceNamespace: "shop", SourceType: goldmane.EndpointType_WorkloadEndpoint, DestPort: 3306, Proto: "tcp",
			DestName: "pub", DestNamespace: "-", DestType: goldmane.EndpointType_Network, Reporter: goldmane.Reporter_Src, Action: goldmane.Action_Deny,
		},
	}
	felixSends(t, felix, refused)
	s.until("what was refused first", func(all []flow.Batch) bool { return connections(all) == [3]uint64{2, 1, 2} })

	if err := os.Rename(np, np+".1"); err != nil {
		t.Fatal(err)
	}
	antreaRefuses(t, np, 4)
	o.cut <- struct{}{}
	o.refusals <- 12
	s.until("what came after a rotation and a broken stream", func(all []flow.Batch) bool { return connections(all) == [3]uint64{3, 2, 2} })

	a.stop()
	antreaRefuses(t, np, 5)
	a = run()
	felixSends(t, felix, refused) // again, as it does when it connects
	o.refusals <- 13
	antreaRefuses(t, np, 6)
	s.until("what came after a restart", func(all []flow.Batch) bool { return connections(all) == [3]uint64{5, 3, 2} })
	a.stop()
	if got := connections(s.all()); got != [3]uint64{5, 3, 2} {
		t.Errorf("connections %v in the end, by the log, Hubble and Felix", got)
	}
	for _, f := range flows(s.all(), nil) {
		if f.Verdict != flow.VerdictDenied || f.Sources != flow.SourceFelix && (len(f.Policies) != 1 || f.Policies[0].Name != "db") {
			t.Errorf("flow %s of %s with policies %v", f.Verdict, f.Sources, f.Policies)
		}
		if f.Sources == flow.SourceHubble && (f.Source == nil || f.Source.Pod != "web-0") {
			t.Errorf("source %+v, want as Hubble names it", f.Source)
		}
	}
	if said := a.log.String(); !strings.Contains(said, "already reads it") || !strings.Contains(said, "nflog:7") {
		t.Errorf("nothing is said of the taken group:\n%s", said)
	}
	if !gapOf(s.all(), "nflog:7") {
		t.Error("the taken group is no gap")
	}
}

// connections sums up what a log, Hubble and Felix told.
func connections(all []flow.Batch) (n [3]uint64) {
	for _, f := range flows(all, nil) {
		switch f.Sources {
		case flow.SourceLog:
			n[0] += f.Connections
		case flow.SourceHubble:
			n[1] += f.Connections
		case flow.SourceFelix:
			n[2] += f.Connections
		}
	}
	return n
}

func gapOf(all []flow.Batch, source string) bool {
	for _, b := range all {
		for _, g := range b.Gaps {
			if g.Source == source && g.Kind == flow.GapSource {
				return true
			}
		}
	}
	return false
}
