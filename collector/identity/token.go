package identity

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Reviewer asks the API server whose a token is.
type Reviewer interface {
	Create(ctx context.Context, review *authenticationv1.TokenReview, opts metav1.CreateOptions) (*authenticationv1.TokenReview, error)
}

// Tokens proves agents by ServiceAccount tokens that are bound to a pod and to
// an audience. Nothing of a token is kept.
type Tokens struct {
	Reviewer Reviewer
	Cluster  string // whose API server is asked
	Audience string // that the token must be for
	// Accounts may report for whole nodes, as namespace/name. A pod of any other
	// account may report for itself only.
	Accounts []string
}

// ErrUnavailable says that nobody could say whose a token is.
var ErrUnavailable = errors.New("the API server cannot be asked whose a token is")

// Claims of a ServiceAccount's token, as TokenReview gives them
// (k8s.io/apiserver/pkg/authentication/serviceaccount); the node's since
// Kubernetes 1.30.
const (
	claimPod  = "authentication.kubernetes.io/pod-name"
	claimNode = "authentication.kubernetes.io/node-name"

	accountPrefix = "system:serviceaccount:"
)

// Agent asks whose a token is.
func (t *Tokens) Agent(ctx context.Context, token string) (Agent, error) {
	review, err := t.Reviewer.Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{t.Audience}},
	}, metav1.CreateOptions{})
	if err != nil {
		return Agent{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return t.agent(&review.Status)
}

// agent reads a review.
func (t *Tokens) agent(s *authenticationv1.TokenReviewStatus) (Agent, error) {
	switch {
	case !s.Authenticated && s.Error != "":
		return Agent{}, fmt.Errorf("the token is not valid: %s", s.Error)
	case !s.Authenticated:
		return Agent{}, errors.New("the token is not valid")
	case !slices.Contains(s.Audiences, t.Audience):
		// A server that knows no audiences answers without them.
		return Agent{}, fmt.Errorf("the token is not for the audience %q", t.Audience)
	}
	account, ok := strings.CutPrefix(s.User.Username, accountPrefix)
	namespace, name, whole := strings.Cut(account, ":")
	if !ok || !whole {
		return Agent{}, fmt.Errorf("the token is of %q, which is no ServiceAccount", s.User.Username)
	}
	pod, node := claim(s, claimPod), claim(s, claimNode)
	switch {
	case pod == "":
		return Agent{}, errors.New("the token is bound to no pod: want a projected one (a serviceAccountToken volume)")
	case !slices.Contains(t.Accounts, namespace+"/"+name):
		return Agent{Cluster: t.Cluster, Namespace: namespace, Pod: pod}, nil
	case node == "":
		return Agent{}, errors.New("the token does not say its node: the API server does from Kubernetes 1.30 on; before that give agents certificates")
	}
	return Agent{Cluster: t.Cluster, Node: node}, nil
}

func claim(s *authenticationv1.TokenReviewStatus, key string) string {
	if v := s.User.Extra[key]; len(v) == 1 {
		return v[0]
	}
	return ""
}
