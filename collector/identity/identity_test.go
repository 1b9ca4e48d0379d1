package identity

import (
	"context"
	"crypto/x509"
	"errors"
	"net/url"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/flow"
)

func TestFromCertificate(t *testing.T) {
	for _, c := range []struct {
		uris []string
		want Agent
		err  string
	}{
		{[]string{"flowaudit://prod/node/n1"}, Agent{Cluster: "prod", Node: "n1"}, ""},
		{[]string{"flowaudit://prod/pod/shop/web-0"}, Agent{Cluster: "prod", Namespace: "shop", Pod: "web-0"}, ""},
		{[]string{"spiffe://x/ns/a", "flowaudit://prod/node/n1.example"}, Agent{Cluster: "prod", Node: "n1.example"}, ""},
		{nil, Agent{}, "no URI name"},
		{[]string{"spiffe://x/node/n1"}, Agent{}, "no URI name"},
		{[]string{"flowaudit://prod/node/n1", "flowaudit://prod/node/n2"}, Agent{}, "several names"},
		{[]string{"flowaudit:///node/n1"}, Agent{}, "none of an agent"},
		{[]string{"flowaudit://prod/node/"}, Agent{}, "none of an agent"},
		{[]string{"flowaudit://prod/node/a/b"}, Agent{}, "none of an agent"},
		{[]string{"flowaudit://prod/pod/shop"}, Agent{}, "none of an agent"},
		{[]string{"flowaudit://prod/reader/x"}, Agent{}, "none of an agent"},
	} {
		var cert x509.Certificate
		for _, text := range c.uris {
			u, err := url.Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			cert.URIs = append(cert.URIs, u)
		}
		got, err := FromCertificate(&cert)
		if got != c.want || c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%v: %+v, %v; want %+v, %q", c.uris, got, err, c.want, c.err)
		}
	}
}

// TestANamesakeIsNobodyElse: a slash inside of a name is no step of the path.
func TestANamesakeIsNobodyElse(t *testing.T) {
	u, err := url.Parse("flowaudit://prod/pod/shop%2Fweb/x")
	if err != nil {
		t.Fatal(err)
	}
	a, err := FromCertificate(&x509.Certificate{URIs: []*url.URL{u}})
	if err == nil && a.Namespace == "shop" {
		t.Errorf("%+v", a)
	}
}

func TestCheck(t *testing.T) {
	node := Agent{Cluster: "prod", Node: "n1"}
	pod := Agent{Cluster: "prod", Namespace: "shop", Pod: "web-0"}
	batch := func(change func(*flow.Batch)) *flow.Batch {
		b := &flow.Batch{Key: flow.BatchKey{Cluster: "prod"}, Node: "n1", Flows: []flow.Flow{{Node: "n1", Cluster: "prod"}}, Gaps: []flow.Gap{{Node: "n1"}}}
		if change != nil {
			change(b)
		}
		return b
	}
	for name, c := range map[string]struct {
		agent Agent
		batch *flow.Batch
		err   string
	}{
		"own node":                     {node, batch(nil), ""},
		"another node":                 {node, batch(func(b *flow.Batch) { b.Node = "n2" }), `batch is of node "n2"`},
		"another cluster":              {node, batch(func(b *flow.Batch) { b.Key.Cluster = "test" }), `cluster "test"`},
		"a flow of another node":       {node, batch(func(b *flow.Batch) { b.Flows[0].Node = "n2" }), `flow 0 is of node "n2"`},
		"a flow of another cluster":    {node, batch(func(b *flow.Batch) { b.Flows[0].Cluster = "x" }), `flow 0`},
		"a gap of another node":        {node, batch(func(b *flow.Batch) { b.Gaps[0].Node = "n2" }), `gap 0 is of node "n2"`},
		"a node's agent for a pod":     {node, batch(func(b *flow.Batch) { b.Scope = flow.ScopePod }), `batch is of pod "n1"`},
		"own pod":                      {pod, &flow.Batch{Key: flow.BatchKey{Cluster: "prod"}, Node: "shop/web-0", Scope: flow.ScopePod}, ""},
		"another pod":                  {pod, &flow.Batch{Key: flow.BatchKey{Cluster: "prod"}, Node: "shop/web-1", Scope: flow.ScopePod}, `batch is of pod "shop/web-1"`},
		"a pod's agent for a node":     {pod, batch(nil), `batch is of node "n1"`},
		"a node that is named as pods": {Agent{Cluster: "prod", Node: "shop/web-0"}, &flow.Batch{Key: flow.BatchKey{Cluster: "prod"}, Node: "shop/web-0", Scope: flow.ScopePod}, "batch is of pod"},
	} {
		if err := c.agent.Check(c.batch); c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: %v, want %q", name, err, c.err)
		}
	}
}

// reviewer answers as a test says.
type reviewer struct {
	status authenticationv1.TokenReviewStatus
	err    error
	asked  authenticationv1.TokenReviewSpec
}

func (r *reviewer) Create(_ context.Context, review *authenticationv1.TokenReview, _ metav1.CreateOptions) (*authenticationv1.TokenReview, error) {
	r.asked = review.Spec
	return &authenticationv1.TokenReview{Status: r.status}, r.err
}

func TestTokens(t *testing.T) {
	good := func(change func(*authenticationv1.TokenReviewStatus)) authenticationv1.TokenReviewStatus {
		s := authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: []string{"flowaudit"}, User: authenticationv1.UserInfo{
			Username: "system:serviceaccount:flowaudit:flowaudit-agent",
			Extra:    map[string]authenticationv1.ExtraValue{claimPod: {"agent-x"}, claimNode: {"n1"}},
		}}
		if change != nil {
			change(&s)
		}
		return s
	}
	for name, c := range map[string]struct {
		status authenticationv1.TokenReviewStatus
		want   Agent
		err    string
	}{
		"a node's agent": {good(nil), Agent{Cluster: "prod", Node: "n1"}, ""},
		"a pod of another account": {
			good(func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "system:serviceaccount:shop:web" }),
			Agent{Cluster: "prod", Namespace: "shop", Pod: "agent-x"},
			"",
		},
		"the account's name in another namespace": {
			good(func(s *authenticationv1.TokenReviewStatus) {
				s.User.Username = "system:serviceaccount:shop:flowaudit-agent"
			}),
			Agent{Cluster: "prod", Namespace: "shop", Pod: "agent-x"},
			"",
		},
		"not valid":             {authenticationv1.TokenReviewStatus{}, Agent{}, "not valid"},
		"expired":               {authenticationv1.TokenReviewStatus{Error: "token has expired"}, Agent{}, "token has expired"},
		"another audience":      {good(func(s *authenticationv1.TokenReviewStatus) { s.Audiences = []string{"kubernetes"} }), Agent{}, "audience"},
		"no audience":           {good(func(s *authenticationv1.TokenReviewStatus) { s.Audiences = nil }), Agent{}, "audience"},
		"a person":              {good(func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "alice" }), Agent{}, "no ServiceAccount"},
		"an account's own name": {good(func(s *authenticationv1.TokenReviewStatus) { s.User.Username = accountPrefix + "x" }), Agent{}, "no ServiceAccount"},
		"not bound to a pod":    {good(func(s *authenticationv1.TokenReviewStatus) { delete(s.User.Extra, claimPod) }), Agent{}, "bound to no pod"},
		"without its node":      {good(func(s *authenticationv1.TokenReviewStatus) { delete(s.User.Extra, claimNode) }), Agent{}, "does not say its node"},
	} {
		r := &reviewer{status: c.status}
		tokens := Tokens{Reviewer: r, Cluster: "prod", Audience: "flowaudit", Accounts: []string{"flowaudit/flowaudit-agent"}}
		got, err := tokens.Agent(t.Context(), "secret")
		if got != c.want || c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: %+v, %v; want %+v, %q", name, got, err, c.want, c.err)
		}
		if r.asked.Token != "secret" || len(r.asked.Audiences) != 1 {
			t.Errorf("%s: asked %+v", name, r.asked)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the error tells the token: %v", name, err)
		}
	}
	tokens := Tokens{Reviewer: &reviewer{err: errors.New("connection refused")}}
	if _, err := tokens.Agent(t.Context(), "secret"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("API server away: %v", err)
	}
}
