package collector

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/collector/identity"
	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/kube"
	"github.com/flowaudit/flowaudit/proto/dial"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

func TestAgentOptions(t *testing.T) {
	tls := ListenOptions{Address: ":4245", Cert: "c", Key: "k"}
	mutual := tls
	mutual.ClientCA = "a"
	local := ListenOptions{Address: "127.0.0.1:1"}
	cluster := kube.Access{InCluster: true}
	for name, c := range map[string]struct {
		options Options
		want    []Proof // that hold
		err     string
	}{
		"on this machine":               {Options{Listen: local}, []Proof{ProofNone}, ""},
		"mutual TLS":                    {Options{Listen: mutual, Access: cluster}, []Proof{ProofCertificate}, ""},
		"TLS in a cluster":              {Options{Listen: tls, Access: cluster}, []Proof{ProofToken}, ""},
		"TLS elsewhere":                 {Options{Listen: tls}, []Proof{ProofNone}, ""},
		"both":                          {Options{Listen: mutual, Access: cluster, Agents: AgentOptions{Proofs: []Proof{ProofToken, ProofCertificate}}}, []Proof{ProofToken, ProofCertificate}, ""},
		"none, said so":                 {Options{Listen: mutual, Agents: AgentOptions{Proofs: []Proof{ProofNone}}}, []Proof{ProofNone}, ""},
		"tokens on this machine":        {Options{Listen: local, Access: cluster, Agents: AgentOptions{Proofs: []Proof{ProofToken}}}, []Proof{ProofToken}, ""},
		"unknown":                       {Options{Listen: local, Agents: AgentOptions{Proofs: []Proof{"password"}}}, nil, `--agent-proof "password"`},
		"none and another":              {Options{Listen: mutual, Agents: AgentOptions{Proofs: []Proof{ProofNone, ProofCertificate}}}, nil, "goes with no other"},
		"certificates, no authority":    {Options{Listen: tls, Agents: AgentOptions{Proofs: []Proof{ProofCertificate}}}, nil, "needs --tls-client-ca"},
		"tokens, no API server":         {Options{Listen: tls, Agents: AgentOptions{Proofs: []Proof{ProofToken}}}, nil, "needs an API server"},
		"tokens in the clear":           {Options{Listen: ListenOptions{Address: ":1", Insecure: true}, Access: cluster, Agents: AgentOptions{Proofs: []Proof{ProofToken}}}, nil, "in the clear"},
		"an account without namespace":  {Options{Listen: local, Agents: AgentOptions{Accounts: []string{"agent"}}}, nil, "--agent-account"},
		"less than no flow in a second": {Options{Listen: local, Agents: AgentOptions{Rate: -1}}, nil, "--agent-rate"},
	} {
		err := c.options.Validate()
		if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: %v, want %q", name, err, c.err)
		}
		if got := c.options.proofs(); c.err == "" && !equalProofs(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func equalProofs(a, b []Proof) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// agent issues a certificate with the name of an agent; "" is none.
func (a *authority) agent(t *testing.T, uri string) (cert, key string) {
	t.Helper()
	template := &x509.Certificate{Subject: pkix.Name{CommonName: "agent"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if uri != "" {
		u, err := url.Parse(uri)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = []*url.URL{u}
	}
	return a.issue(t, template, strings.ReplaceAll(strings.TrimPrefix(uri, "flowaudit://"), "/", "-")+"-agent")
}

// reportOne reports a batch over a connection of its own.
func reportOne(t *testing.T, o dial.Options, b flow.Batch) error {
	t.Helper()
	conn, err := o.Conn()
	if err != nil {
		return err
	}
	defer conn.Close()
	return reportBatch(t.Context(), flowauditv1.NewIngestClient(conn), b)
}

func reportBatch(ctx context.Context, client flowauditv1.IngestClient, b flow.Batch) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.Report(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(flowauditv1.FromBatch(&b)); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	_, err = stream.Recv()
	return err
}

// TestAnAgentReportsForItselfOnly, as its certificate names it.
func TestAnAgentReportsForItselfOnly(t *testing.T) {
	a := newAuthority(t, "ours")
	cert, key := a.server(t)
	store := &memory{}
	address := run(t, Options{Store: store, Cluster: "c", Listen: ListenOptions{Address: "127.0.0.1:0", Cert: cert, Key: key, ClientCA: a.ca}}).String()
	pod := batchFrom("shop/web-0", 1)
	pod.Scope = flow.ScopePod
	for name, c := range map[string]struct {
		uri   string
		batch flow.Batch
		code  codes.Code
	}{
		"own node":          {"flowaudit://c/node/node-1", batchFrom("node-1", 1, denied(1)...), codes.OK},
		"own pod":           {"flowaudit://c/pod/shop/web-0", pod, codes.OK},
		"another node":      {"flowaudit://c/node/node-1", batchFrom("node-2", 1), codes.PermissionDenied},
		"another cluster":   {"flowaudit://d/node/node-1", batchFrom("node-1", 1), codes.PermissionDenied},
		"a node for a pod":  {"flowaudit://c/node/node-1", pod, codes.PermissionDenied},
		"a reader":          {"", batchFrom("node-1", 1), codes.Unauthenticated},
		"a name of nothing": {"flowaudit://c/reader/x", batchFrom("node-1", 1), codes.Unauthenticated},
	} {
		agentCert, agentKey := a.agent(t, c.uri)
		o := dial.Options{Address: address, CA: a.ca, Cert: agentCert, Key: agentKey}
		if err := reportOne(t, o, c.batch); status.Code(err) != c.code {
			t.Errorf("%s: %v, want %s", name, err, c.code)
		}
		if err := ask(t, o); err != nil {
			t.Errorf("%s may not ask: %v", name, err)
		}
	}
	if got := store.stored(); len(got) != 2 {
		t.Errorf("%d batches stored, want those of the two that may", len(got))
	}
}

// reviews answers for tokens as an API server does.
type reviews map[string]authenticationv1.TokenReviewStatus

func (r reviews) Create(_ context.Context, review *authenticationv1.TokenReview, _ metav1.CreateOptions) (*authenticationv1.TokenReview, error) {
	if review.Spec.Token == "away" {
		return nil, errors.New("connection refused")
	}
	return &authenticationv1.TokenReview{Status: r[review.Spec.Token]}, nil
}

func TestAnAgentProvesItselfByToken(t *testing.T) {
	c := serveAdmitting(t, &memory{}, Options{}, &authenticator{proofs: []Proof{ProofToken}, tokens: &identity.Tokens{
		Cluster: "c", Audience: "us", Accounts: []string{"flowaudit/agent"},
		Reviewer: reviews{"good": reviewed("node-1")},
	}})
	defer c.close(t)
	for name, test := range map[string]struct {
		header string
		node   string
		code   codes.Code
	}{
		"own node":               {"Bearer good", "node-1", codes.OK},
		"another node":           {"Bearer good", "node-2", codes.PermissionDenied},
		"a bad token":            {"Bearer bad", "node-1", codes.Unauthenticated},
		"no token":               {"", "node-1", codes.Unauthenticated},
		"another kind":           {"Basic good", "node-1", codes.Unauthenticated},
		"the API server is away": {"Bearer away", "node-1", codes.Unavailable},
	} {
		ctx := t.Context()
		if test.header != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", test.header)
		}
		if err := reportBatch(ctx, c.ingest(), batchFrom(test.node, 1)); status.Code(err) != test.code {
			t.Errorf("%s: %v, want %s", name, err, test.code)
		}
	}
	if _, err := c.query().Status(t.Context(), &flowauditv1.StatusRequest{}); err != nil {
		t.Errorf("who asks needs no agent's token: %v", err)
	}
}

// TestATokenIsShownAnew: an agent's stream ends when the token has been believed
// for long enough; who asks and follows is not cut off.
func TestATokenIsShownAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := serveAdmitting(t, &memory{}, Options{}, &authenticator{proofs: []Proof{ProofToken}, tokens: &identity.Tokens{
			Cluster: "c", Audience: "us", Accounts: []string{"flowaudit/agent"}, Reviewer: reviews{"good": reviewed("node-1")},
		}})
		defer c.close(t)
		follow, stop := context.WithCancel(t.Context())
		defer stop()
		asked, err := c.query().Observe(follow, &flowauditv1.ObserveRequest{Follow: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := asked.Recv(); err != nil { // what is stored, and its coverage
			t.Fatal(err)
		}
		stream, err := c.ingest().Report(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer good"))
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		send(t, stream, batchFrom("node-1", 1))
		receiveAck(t, stream)
		if _, err := stream.Recv(); status.Code(err) != codes.Unavailable || time.Since(began) != tokenAge {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
		ended := make(chan error, 1)
		go func() {
			_, err := asked.Recv()
			ended <- err
		}()
		time.Sleep(2 * tokenAge)
		select {
		case err := <-ended:
			t.Errorf("who follows was cut off: %v", err)
		default:
		}
	})
}

// reviewed is the review of a token of a node's agent.
func reviewed(node string) authenticationv1.TokenReviewStatus {
	return authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: []string{"us"}, User: authenticationv1.UserInfo{
		Username: "system:serviceaccount:flowaudit:agent",
		Extra: map[string]authenticationv1.ExtraValue{
			"authentication.kubernetes.io/pod-name": {"agent-1"}, "authentication.kubernetes.io/node-name": {node},
		},
	}}
}

// TestRenewedCertificates: what is in the files when a connection begins counts,
// and a broken file takes nothing away.
func TestRenewedCertificates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, renewed := newAuthority(t, "old"), newAuthority(t, "new")
		dir := t.TempDir()
		listen := ListenOptions{Cert: filepath.Join(dir, "crt"), Key: filepath.Join(dir, "key"), ClientCA: filepath.Join(dir, "ca")}
		written := time.Now()
		install := func(a *authority) {
			cert, key := a.server(t)
			written = written.Add(time.Minute) // a bubble's clock is not the disk's
			for from, to := range map[string]string{cert: listen.Cert, key: listen.Key, a.ca: listen.ClientCA} {
				text, err := os.ReadFile(from)
				if err == nil {
					err = errors.Join(os.WriteFile(to, text, 0o600), os.Chtimes(to, written, written))
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		install(old)
		c, err := openCertificates(&listen, 0, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		issuer := func() string {
			leaf, err := x509.ParseCertificate(c.current().Certificates[0].Certificate[0])
			if err != nil {
				t.Fatal(err)
			}
			return leaf.Issuer.CommonName
		}
		if got := issuer(); got != "old" {
			t.Errorf("at the start: %s", got)
		}
		if err := os.WriteFile(listen.Key, []byte("half a fi"), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * checkInterval)
		if got := issuer(); got != "old" {
			t.Errorf("with a broken key: %s", got)
		}
		install(renewed)
		time.Sleep(2 * checkInterval)
		if got := issuer(); got != "new" {
			t.Errorf("renewed: %s", got)
		}
	})
}

// TestLimits: one agent's streams and flows are bounded, and others' are not touched.
func TestLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		as := func(node string) context.Context {
			return context.WithValue(t.Context(), agentContext{}, identity.Agent{Cluster: "c", Node: node})
		}
		l := newLimits(100)
		var leave []func()
		for range maxStreams {
			_, out, err := l.enter(as("n1"))
			if err != nil {
				t.Fatal(err)
			}
			leave = append(leave, out)
		}
		if _, _, err := l.enter(as("n1")); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("one stream too many: %v", err)
		}
		other, out, err := l.enter(as("n2"))
		if err != nil {
			t.Fatal(err)
		}
		defer out()
		for _, f := range leave {
			f()
		}
		one, out, err := l.enter(as("n1"))
		if err != nil {
			t.Fatalf("after all have left: %v", err)
		}
		defer out()
		began := time.Now()
		for range 30 { // 3000 flows, of which 1000 may come at once
			if err := one.wait(t.Context(), 100); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took != 20*time.Second {
			t.Errorf("3000 flows took %s", took)
		}
		began = time.Now()
		if err := other.wait(t.Context(), 1000); err != nil || time.Since(began) != 0 {
			t.Errorf("another agent waited %s: %v", time.Since(began), err)
		}
		if err := other.wait(t.Context(), 5000); err != nil {
			t.Errorf("more than a burst: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := other.wait(ctx, 1000); err == nil {
			t.Error("who has gone is waited for")
		}
	})
}

// peerAt is the context of a call from an address.
func peerAt(ctx context.Context, address string) context.Context {
	return peer.NewContext(ctx, &peer.Peer{Addr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(address))})
}

// TestAUnixSocketIsNotLimited: all agents there look the same.
func TestAUnixSocketIsNotLimited(t *testing.T) {
	ctx := peer.NewContext(t.Context(), &peer.Peer{Addr: &net.UnixAddr{Net: "unix", Name: "@"}})
	l := newLimits(1)
	for range 2 * maxStreams {
		one, _, err := l.enter(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := one.wait(ctx, 1e6); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCaller(t *testing.T) {
	for want, ctx := range map[string]context.Context{
		"nobody":               t.Context(),
		"10.0.0.1":             peerAt(t.Context(), "10.0.0.1:77"),
		"node n1 of cluster c": context.WithValue(peerAt(t.Context(), "10.0.0.1:77"), agentContext{}, identity.Agent{Cluster: "c", Node: "n1"}),
		"fd00::1":              peerAt(t.Context(), "[fd00::1]:77"),
	} {
		if got := caller(ctx); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
