package collector

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	authclient "k8s.io/client-go/kubernetes/typed/authentication/v1"

	"github.com/flowaudit/flowaudit/collector/access"
	"github.com/flowaudit/flowaudit/collector/identity"
)

// Proof is how an agent may prove which one it is.
type Proof string

// The proofs.
const (
	ProofAuto        Proof = "auto"        // whatever Listen and Access allow
	ProofNone        Proof = "none"        // whoever reaches the collector may report for anybody
	ProofCertificate Proof = "certificate" // a client's certificate that names its node or pod
	ProofToken       Proof = "token"       // a ServiceAccount's token that is bound to its pod
)

// AgentOptions say how agents prove which ones they are.
type AgentOptions struct {
	// Proofs of which one is enough; empty means auto.
	Proofs []Proof
	// Audience is what agents' tokens must be for.
	Audience string
	// Accounts are ServiceAccounts, as namespace/name, whose agents report for nodes.
	Accounts []string
	// Rate is how many flows a second one agent may report in the long run; what
	// it sends beyond waits. 0 is no bound.
	Rate float64
}

// Defaults of AgentOptions.
const (
	DefaultAudience = "flowaudit-collector"
	DefaultAccount  = "flowaudit/flowaudit-agent"
)

// proofs are those that hold: without a word about it, what is there is asked for.
func (o *Options) proofs() []Proof {
	p := o.Agents.Proofs
	if len(p) > 0 && !slices.Equal(p, []Proof{ProofAuto}) {
		return p
	}
	switch {
	case o.Listen.ClientCA != "":
		return []Proof{ProofCertificate}
	case o.Listen.Cert != "" && o.Access.Wanted():
		return []Proof{ProofToken}
	}
	return []Proof{ProofNone}
}

func (o *Options) validateProofs() error {
	known := []Proof{ProofAuto, ProofNone, ProofCertificate, ProofToken}
	for _, p := range o.Agents.Proofs {
		switch {
		case !slices.Contains(known, p):
			return fmt.Errorf("--agent-proof %q: want auto, none, certificate or token", p)
		case len(o.Agents.Proofs) > 1 && (p == ProofAuto || p == ProofNone):
			return fmt.Errorf("--agent-proof %s goes with no other", p)
		case p == ProofCertificate && o.Listen.ClientCA == "":
			return errors.New("--agent-proof certificate needs --tls-client-ca, whose certificates agents must show")
		case p == ProofToken && !o.Access.Wanted():
			return errors.New("--agent-proof token needs an API server that knows the tokens: give --in-cluster or --kubeconfig")
		case p == ProofToken && o.Listen.Cert == "" && !o.Listen.local():
			return errors.New("--agent-proof token needs --tls-cert and --tls-key: in the clear anybody on the way could take the token")
		}
	}
	if o.Agents.Rate < 0 {
		return fmt.Errorf("--agent-rate %g: want flows a second, or 0 for no bound", o.Agents.Rate)
	}
	for _, a := range o.Agents.Accounts {
		if namespace, name, ok := strings.Cut(a, "/"); !ok || namespace == "" || name == "" {
			return fmt.Errorf("--agent-account %q: want namespace/name", a)
		}
	}
	return nil
}

// authenticator says who calls.
type authenticator struct {
	proofs  []Proof
	tokens  *identity.Tokens
	readers *access.Gate
	// optional says that readers may show something else than a certificate.
	optional bool
}

func (o *Options) authenticator() (*authenticator, error) {
	a := &authenticator{proofs: o.proofs(), optional: !slices.Equal(o.readerProofs(), []Proof{ProofCertificate})}
	if !slices.Contains(a.proofs, ProofToken) {
		return a, nil
	}
	config, err := o.Access.Config("flowaudit-collector/" + o.Version)
	if err != nil {
		return nil, err
	}
	client, err := authclient.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("prepare to ask whose a token is: %w", err)
	}
	a.tokens = &identity.Tokens{Reviewer: client.TokenReviews(), Cluster: o.Cluster, Audience: o.Agents.Audience, Accounts: o.Agents.Accounts}
	return a, nil
}

// clientAuth is what TLS asks of clients, where it knows authorities.
func (a *authenticator) clientAuth() tls.ClientAuthType {
	if slices.Contains(a.proofs, ProofToken) || a.optional {
		return tls.VerifyClientCertIfGiven
	}
	return tls.RequireAndVerifyClientCert
}

// tokenAge is how long what a token has proven is believed: a kubelet renews
// projected tokens within the hour. The agent's stream ends then, and its next
// one shows the token that the file has by now.
const tokenAge = time.Hour

// agentContext is the key of the agent that calls.
type agentContext struct{}

// agentOf is the agent that calls, if it had to prove which one it is.
func agentOf(ctx context.Context) (identity.Agent, bool) {
	a, ok := ctx.Value(agentContext{}).(identity.Agent)
	return a, ok
}

// agent proves which agent calls.
func (a *authenticator) agent(ctx context.Context) (identity.Agent, error) {
	var problems []error
	for _, p := range a.proofs {
		var agent identity.Agent
		var err error
		switch p {
		case ProofCertificate:
			agent, err = byCertificate(ctx)
		case ProofToken:
			agent, err = a.byToken(ctx)
		}
		if err == nil {
			return agent, nil
		}
		if errors.Is(err, identity.ErrUnavailable) {
			return agent, status.Error(codes.Unavailable, err.Error())
		}
		problems = append(problems, err)
	}
	return identity.Agent{}, status.Error(codes.Unauthenticated, errors.Join(problems...).Error())
}

func byCertificate(ctx context.Context) (identity.Agent, error) {
	if c := access.CertificateOf(ctx); c != nil {
		return identity.FromCertificate(c)
	}
	return identity.Agent{}, errors.New("the agent shows no certificate: give it --tls-cert and --tls-key")
}

const bearer = "Bearer "

func (a *authenticator) byToken(ctx context.Context) (identity.Agent, error) {
	for _, v := range metadata.ValueFromIncomingContext(ctx, "authorization") {
		if token, ok := strings.CutPrefix(v, bearer); ok && token != "" {
			return a.tokens.Agent(ctx, token)
		}
	}
	return identity.Agent{}, errors.New("the agent shows no token: give it --token-file")
}

// reports reports whether a method is for agents.
func reports(method string) bool { return strings.HasPrefix(method, "/flowaudit.v1.Ingest/") }

// admit lets an agent in, and says in its context which one calls.
func (a *authenticator) admit(ctx context.Context) (context.Context, error) {
	if slices.Contains(a.proofs, ProofNone) {
		return ctx, nil
	}
	agent, err := a.agent(ctx)
	if err != nil {
		return ctx, err
	}
	return context.WithValue(ctx, agentContext{}, agent), nil
}

// unary lets readers in: no agent calls what has one answer.
func (a *authenticator) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	return a.readers.Unary(ctx, req, info, handler)
}

func (a *authenticator) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if !reports(info.FullMethod) {
		return a.readers.Stream(srv, stream, info, handler)
	}
	ctx, err := a.admit(stream.Context())
	if err != nil {
		return err
	}
	if _, proven := agentOf(ctx); !proven || !slices.Contains(a.proofs, ProofToken) {
		return handler(srv, admitted{stream, ctx})
	}
	ctx, cancel := context.WithTimeout(ctx, tokenAge)
	defer cancel()
	err = handler(srv, admitted{stream, ctx})
	if ctx.Err() != nil && stream.Context().Err() == nil {
		return status.Errorf(codes.Unavailable, "what the token has proven is %s old: show it anew", tokenAge)
	}
	return err
}

// admitted is a stream whose context says who calls.
type admitted struct {
	grpc.ServerStream
	ctx context.Context
}

func (s admitted) Context() context.Context { return s.ctx }
