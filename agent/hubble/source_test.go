package hubble

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"math/big"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"github.com/cilium/cilium/api/v1/relay"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/flowaudit/flowaudit/flow"
)

// observer serves Hubble's API as a node's agent does: a ring of flows, from
// which a request's since is taken, and what comes after.
type observer struct {
	observerpb.UnimplementedObserverServer
	began time.Time

	mu       sync.Mutex
	ring     []*observerpb.GetFlowsResponse
	changed  chan struct{}
	cut      chan struct{} // closed to end all streams
	requests []*observerpb.GetFlowsRequest
}

func newObserver() *observer {
	return &observer{began: time.Now(), changed: make(chan struct{}), cut: make(chan struct{})}
}

func (o *observer) ServerStatus(context.Context, *observerpb.ServerStatusRequest) (*observerpb.ServerStatusResponse, error) {
	return &observerpb.ServerStatusResponse{UptimeNs: uint64(time.Since(o.began))}, nil
}

func (o *observer) GetFlows(r *observerpb.GetFlowsRequest, stream observerpb.Observer_GetFlowsServer) error {
	o.mu.Lock()
	o.requests = append(o.requests, r)
	cut := o.cut
	o.mu.Unlock()
	for next := 0; ; {
		o.mu.Lock()
		ring, changed := o.ring[next:], o.changed
		next = len(o.ring)
		o.mu.Unlock()
		for _, m := range ring {
			if f := m.GetFlow(); f != nil && f.GetTime().AsTime().Before(r.GetSince().AsTime()) {
				continue
			}
			if err := stream.Send(m); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-cut:
			return nil
		case <-stream.Context().Done():
			return nil
		}
	}
}

func (o *observer) add(m *observerpb.GetFlowsResponse) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ring = append(o.ring, m)
	close(o.changed)
	o.changed = make(chan struct{})
}

// deny adds a denial, and says when.
func (o *observer) deny(port uint32, at time.Time) {
	o.add(&observerpb.GetFlowsResponse{ResponseTypes: &observerpb.GetFlowsResponse_Flow{Flow: &flowpb.Flow{
		Time: timestamppb.New(at), Verdict: flowpb.Verdict_DROPPED, DropReasonDesc: flowpb.DropReason_POLICY_DENY,
		IP:        &flowpb.IP{Source: "10.0.0.1", Destination: "10.0.0.2"},
		L4:        &flowpb.Layer4{Protocol: &flowpb.Layer4_TCP{TCP: &flowpb.TCP{SourcePort: port, DestinationPort: 80}}},
		EventType: &flowpb.CiliumEventType{Type: eventVerdict}, TrafficDirection: flowpb.TrafficDirection_INGRESS,
		IngressDeniedBy: []*flowpb.Policy{{Kind: "CiliumNetworkPolicy", Namespace: "shop", Name: "db"}},
	}}})
}

// cutStreams ends all streams, as a broken connection does.
func (o *observer) cutStreams() {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.cut)
	o.cut = make(chan struct{})
}

// serve answers on a socket until stop.
func serve(t *testing.T, l net.Listener, o *observer, opts ...grpc.ServerOption) (stop func()) {
	t.Helper()
	server := grpc.NewServer(opts...)
	observerpb.RegisterObserverServer(server, o)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			server.Stop()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

func listen(t *testing.T, path string) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// reader is a source that runs, and what it delivered.
type reader struct {
	options Options
	seen    chan flow.Observation
	gaps    chan flow.Gap
	said    *bytes.Buffer
	source  *Source
	ended   chan error
	stop    func()
}

func newReader(path string) *reader {
	r := &reader{seen: make(chan flow.Observation, 1000), gaps: make(chan flow.Gap, 100), said: &bytes.Buffer{}}
	r.options = Options{
		Node: "n1", Address: "unix:" + path, Memory: &Memory{},
		Conn: func() (*grpc.ClientConn, error) {
			return grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
		},
		Deliver: func(s []flow.Observation) []flow.Observation {
			for _, o := range s {
				r.seen <- o
			}
			return make([]flow.Observation, 0, 8)
		},
		Lost: func(g flow.Gap) { r.gaps <- g }, Logger: slog.New(slog.NewTextHandler(r.said, nil)),
	}
	return r
}

func (r *reader) run(t *testing.T) {
	t.Helper()
	s, err := Open(r.options)
	if err != nil {
		t.Fatal(err)
	}
	s.retry = time.Microsecond
	r.source, r.ended = s, make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { r.ended <- s.Run(ctx) }()
	r.stop = func() {
		cancel()
		if err := <-r.ended; err != nil {
			t.Error(err)
		}
	}
}

// want holds that the next denial has a source port.
func (r *reader) want(t *testing.T, port uint16) {
	t.Helper()
	if o := <-r.seen; o.Original.SrcPort != port {
		t.Errorf("got the denial from port %d, want %d", o.Original.SrcPort, port)
	}
}

func TestVerdictsArriveAsOurs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hubble.sock")
	o := newObserver()
	o.deny(1, time.Now().Add(-time.Hour)) // before the agent ran
	serve(t, listen(t, path), o)
	r := newReader(path)
	r.run(t)
	at := time.Now().Add(time.Minute)
	o.deny(2, at)
	got := <-r.seen
	want := flow.Observation{
		Time: at.UnixNano(), Source: flow.SourceHubble, Event: flow.EventPacket, Verdict: flow.VerdictDenied, Protocol: flow.TCP,
		Original: got.Original, Told: got.Told,
	}
	if got != want || got.Original.SrcPort != 2 || len(got.Told.Policies) != 1 || got.Told.Direction != flow.DirectionIngress {
		t.Errorf("got %+v, want %+v", got, want)
	}
	r.stop()
	request := o.requests[0]
	if !request.GetFollow() || request.GetNumber() != 0 || len(request.GetWhitelist()) != 4 {
		t.Errorf("asked %v", request)
	}
}

func TestABrokenStreamLosesNothingAndRepeatsNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hubble.sock")
	o := newObserver()
	serve(t, listen(t, path), o)
	r := newReader(path)
	r.run(t)
	now := time.Now()
	o.deny(1, now.Add(time.Second))
	o.deny(2, now.Add(2*time.Second))
	r.want(t, 1)
	r.want(t, 2)
	o.cutStreams()
	o.deny(3, now.Add(3*time.Second))
	r.want(t, 3)
	r.stop()
	if len(r.gaps) > 0 {
		t.Errorf("gap %+v, though the ring still had all", <-r.gaps)
	}
	// The source is opened again, by an agent that kept its memory.
	o.deny(4, now.Add(4*time.Second))
	r.run(t)
	r.want(t, 4)
	r.stop()
}

func TestARestartOfCiliumIsAGap(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hubble.sock")
	first := newObserver()
	stop := serve(t, listen(t, path), first)
	r := newReader(path)
	r.run(t)
	now := time.Now()
	first.deny(1, now.Add(time.Second))
	r.want(t, 1)
	stop()
	again := newObserver()
	again.began = time.Now().Add(time.Hour) // after all that was read
	again.deny(2, now.Add(2*time.Second))
	serve(t, listen(t, path), again)
	select {
	case err := <-r.ended: // it gave up while the socket was away
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("ended with %v, want an error that names the socket", err)
		}
		r.run(t)
	case g := <-r.gaps:
		r.gaps <- g
	}
	r.want(t, 2)
	if g := <-r.gaps; g.Kind != flow.GapSource || g.Node != "n1" || g.Source != "hubble" || !g.End.After(g.Start) {
		t.Errorf("gap %+v", g)
	}
	r.stop()
}

func TestLostEventsAreAGap(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hubble.sock")
	o := newObserver()
	serve(t, listen(t, path), o)
	r := newReader(path)
	r.run(t)
	first, last := time.Unix(1_700_000_000, 0).UTC(), time.Unix(1_700_000_009, 0).UTC()
	o.add(&observerpb.GetFlowsResponse{ResponseTypes: &observerpb.GetFlowsResponse_LostEvents{LostEvents: &flowpb.LostEvent{
		Source: flowpb.LostEventSource_HUBBLE_RING_BUFFER, NumEventsLost: 42, First: timestamppb.New(first), Last: timestamppb.New(last),
	}}})
	want := flow.Gap{Node: "n1", Source: "hubble", Kind: flow.GapOverrun, Start: first, End: last, Lost: 42, Detail: "Cilium lost events: HUBBLE_RING_BUFFER"}
	if g := <-r.gaps; g != want {
		t.Errorf("gap %+v, want %+v", g, want)
	}
	o.add(&observerpb.GetFlowsResponse{ResponseTypes: &observerpb.GetFlowsResponse_LostEvents{LostEvents: &flowpb.LostEvent{NumEventsLost: 1}}})
	if g := <-r.gaps; g.Lost != 1 || g.End.Before(g.Start) || g.Start.IsZero() {
		t.Errorf("gap %+v, want one until now", g)
	}
	r.stop()
}

func TestFlowsThatCannotBeReadAreCountedAndShownOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hubble.sock")
	o := newObserver()
	serve(t, listen(t, path), o)
	r := newReader(path)
	r.run(t)
	now := time.Now()
	o.deny(70000, now.Add(time.Second))
	o.deny(80000, now.Add(time.Second))
	o.deny(1, now.Add(time.Second))
	r.want(t, 1)
	r.stop()
	if n := r.source.Malformed(); n != 2 || strings.Count(r.said.String(), "cannot be read") != 1 {
		t.Errorf("%d malformed, said %q", n, r.said)
	}
}

func TestRelayIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hubble.sock")
	o := newObserver()
	o.add(&observerpb.GetFlowsResponse{ResponseTypes: &observerpb.GetFlowsResponse_NodeStatus{NodeStatus: &relay.NodeStatusEvent{}}})
	serve(t, listen(t, path), o)
	r := newReader(path)
	r.run(t)
	if err := <-r.ended; err == nil || !strings.Contains(err.Error(), "Relay") {
		t.Errorf("error %v, want one that says what is there", err)
	}
}

func TestAMissingSocketIsSaidPlainly(t *testing.T) {
	r := newReader(filepath.Join(t.TempDir(), "none.sock"))
	_, err := Open(r.options)
	if err == nil || !strings.Contains(err.Error(), r.options.Address) || !strings.Contains(err.Error(), "hubble.enabled=true") {
		t.Errorf("error %v, want one that names the socket and what to do", err)
	}
	if _, err := Open(Options{}); err == nil {
		t.Error("opened without options")
	}
}

func TestTLS(t *testing.T) {
	cert, roots := certificate(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := newObserver()
	serve(t, l, o, grpc.Creds(credentials.NewServerTLSFromCert(&cert)))
	r := newReader("")
	r.options.Conn = func() (*grpc.ClientConn, error) {
		return grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: "hubble"})))
	}
	r.run(t)
	o.deny(7, time.Now().Add(time.Minute))
	r.want(t, 7)
	r.stop()
}

func certificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"hubble"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(parsed)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots
}
