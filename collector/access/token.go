package access

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/cache"
)

// Reviewer asks the API server whose a token is.
type Reviewer interface {
	Create(ctx context.Context, review *authenticationv1.TokenReview, opts metav1.CreateOptions) (*authenticationv1.TokenReview, error)
}

const (
	// remembered is how long a decision is believed.
	remembered = 10 * time.Second
	// maxRemembered bounds the decisions that are, of each kind.
	maxRemembered = 4096
	// atOnce bounds the questions to the API server that are under way.
	atOnce = 16
)

// Tokens proves readers by Kubernetes' tokens. Of a token no more is kept than
// its hash, for ten seconds.
type Tokens struct {
	reviewer  Reviewer
	audience  string
	apiTokens bool
	known     *cache.LRUExpireCache // proven, by the token's hash
	turns     chan struct{}
}

// proven is what a token has proven.
type proven struct {
	reader Reader
	err    error
}

// NewTokens asks a reviewer about tokens for an audience, and, with apiTokens,
// about those for the API server itself, which kubeconfigs hold.
func NewTokens(r Reviewer, audience string, apiTokens bool) *Tokens {
	return &Tokens{reviewer: r, audience: audience, apiTokens: apiTokens, known: cache.NewLRUExpireCache(maxRemembered), turns: make(chan struct{}, atOnce)}
}

// Prove implements Prover.
func (t *Tokens) Prove(ctx context.Context) (Reader, error) {
	token := tokenOf(ctx)
	if token == "" {
		return Reader{}, errNothingShown
	}
	hash := sha256.Sum256([]byte(token))
	if p, ok := t.known.Get(hash); ok {
		return p.(proven).reader, p.(proven).err
	}
	select {
	case t.turns <- struct{}{}:
		defer func() { <-t.turns }()
	case <-ctx.Done():
		return Reader{}, fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
	}
	reader, err := t.review(ctx, token, []string{t.audience})
	if t.apiTokens && errors.Is(err, errNotValid) {
		reader, err = t.review(ctx, token, nil)
	}
	if !errors.Is(err, ErrUnavailable) {
		t.known.Add(hash, proven{reader, err}, remembered)
	}
	return reader, err
}

var errNotValid = errors.New("the token is not valid")

// review asks whose a token is. Without audiences it must be for the API server.
func (t *Tokens) review(ctx context.Context, token string, audiences []string) (Reader, error) {
	review, err := t.reviewer.Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: audiences},
	}, metav1.CreateOptions{})
	if err != nil {
		return Reader{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	s := &review.Status
	// A server that knows no audiences answers without them.
	if !s.Authenticated || s.User.Username == "" || len(audiences) > 0 && !slices.ContainsFunc(audiences, func(a string) bool { return slices.Contains(s.Audiences, a) }) {
		return Reader{}, errNotValid
	}
	r := Reader{Name: s.User.Username, UID: s.User.UID, Groups: s.User.Groups, Proof: "token"}
	if len(s.User.Extra) > 0 {
		r.Extra = make(map[string][]string)
		for k, v := range s.User.Extra {
			r.Extra[k] = v
		}
	}
	return r, nil
}
