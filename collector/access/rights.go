package access

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/cache"

	"github.com/flowaudit/flowaudit/flow"
)

// Right is what somebody must be allowed in a namespace, or in all of them.
type Right struct {
	Verb, Resource, Group, Subresource string
}

// ParseRight reads a right as kubectl auth can-i does: get pods/log, or update
// networkpolicies.networking.k8s.io.
func ParseRight(text string) (Right, error) {
	words := strings.Fields(text)
	if len(words) != 2 {
		return Right{}, fmt.Errorf("%q is no right: want a verb and a resource, such as 'get pods/log'", text)
	}
	r := Right{Verb: words[0]}
	resource, subresource, _ := strings.Cut(words[1], "/")
	r.Resource, r.Group, _ = strings.Cut(resource, ".")
	r.Subresource = subresource
	if r.Resource == "" || strings.Contains(r.Subresource, "/") {
		return Right{}, fmt.Errorf("%q is no right: want a verb and a resource, such as 'get pods/log'", text)
	}
	return r, nil
}

// String writes what ParseRight reads.
func (r Right) String() string {
	out := r.Verb + " " + r.Resource
	if r.Group != "" {
		out += "." + r.Group
	}
	if r.Subresource != "" {
		out += "/" + r.Subresource
	}
	return out
}

// Authorizer asks the API server what somebody may.
type Authorizer interface {
	Create(ctx context.Context, review *authorizationv1.SubjectAccessReview, opts metav1.CreateOptions) (*authorizationv1.SubjectAccessReview, error)
}

// RightsOptions say how rights are found out.
type RightsOptions struct {
	Authorizer Authorizer
	Cluster    string // whose namespaces these are
	// Namespaces lists the cluster's; an error says that they are not known yet.
	Namespaces func() ([]string, error)
	Read       Right // to read flows
	Write      Right // to acknowledge and silence alerts
}

// Rights knows what readers may. Decisions are believed for ten seconds.
type Rights struct {
	RightsOptions
	sights    *cache.LRUExpireCache // flow.Sight by key
	decisions *cache.LRUExpireCache // bool by decision
	turns     chan struct{}
}

type decision struct {
	reader    key
	right     Right
	namespace string
}

// NewRights makes Rights.
func NewRights(o RightsOptions) *Rights {
	return &Rights{RightsOptions: o, sights: cache.NewLRUExpireCache(maxRemembered), decisions: cache.NewLRUExpireCache(maxRemembered), turns: make(chan struct{}, atOnce)}
}

// Sight is what a reader may see.
func (r *Rights) Sight(ctx context.Context, reader *Reader) (flow.Sight, error) {
	k := reader.key()
	if s, ok := r.sights.Get(k); ok {
		return s.(flow.Sight), nil
	}
	s, err := r.sight(ctx, reader)
	if err == nil {
		r.sights.Add(k, s, remembered)
	}
	return s, err
}

func (r *Rights) sight(ctx context.Context, reader *Reader) (flow.Sight, error) {
	everywhere, err := r.ask(ctx, reader, r.Read, "")
	switch {
	case err != nil:
		return flow.Sight{}, err
	case everywhere:
		return flow.SeeAll(), nil
	}
	all, err := r.Namespaces()
	if err != nil {
		return flow.Sight{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	var mu sync.Mutex
	var may []string
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for _, namespace := range all {
		group.Go(func() error {
			ok, err := r.ask(ctx, reader, r.Read, namespace)
			if ok {
				mu.Lock()
				defer mu.Unlock()
				may = append(may, namespace)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return flow.Sight{}, err
	}
	return flow.SeeNamespaces(r.Cluster, may...), nil
}

// MayWrite reports whether a reader may acknowledge and silence what concerns
// each of the namespaces; without namespaces, what concerns all.
func (r *Rights) MayWrite(ctx context.Context, reader *Reader, namespaces ...string) (bool, error) {
	everywhere, err := r.decide(ctx, reader, "")
	if err != nil || everywhere || len(namespaces) == 0 {
		return everywhere, err
	}
	for _, n := range namespaces {
		if ok, err := r.decide(ctx, reader, n); err != nil || !ok || n == "" {
			return false, err
		}
	}
	return true, nil
}

func (r *Rights) decide(ctx context.Context, reader *Reader, namespace string) (bool, error) {
	d := decision{reader.key(), r.Write, namespace}
	if allowed, ok := r.decisions.Get(d); ok {
		return allowed.(bool), nil
	}
	allowed, err := r.ask(ctx, reader, r.Write, namespace)
	if err == nil {
		r.decisions.Add(d, allowed, remembered)
	}
	return allowed, err
}

// ask asks the API server; no namespace is all of them.
func (r *Rights) ask(ctx context.Context, reader *Reader, right Right, namespace string) (bool, error) {
	select {
	case r.turns <- struct{}{}:
		defer func() { <-r.turns }()
	case <-ctx.Done():
		return false, fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
	}
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: reader.Name, UID: reader.UID, Groups: reader.Groups,
		ResourceAttributes: &authorizationv1.ResourceAttributes{
			Namespace: namespace, Verb: right.Verb, Group: right.Group, Resource: right.Resource, Subresource: right.Subresource,
		},
	}}
	if len(reader.Extra) > 0 {
		review.Spec.Extra = make(map[string]authorizationv1.ExtraValue)
		for k, v := range reader.Extra {
			review.Spec.Extra[k] = v
		}
	}
	answer, err := r.Authorizer.Create(ctx, review, metav1.CreateOptions{})
	if err != nil {
		return false, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return answer.Status.Allowed && !answer.Status.Denied, nil
}

// ErrStarting says that the cluster's namespaces are not known yet.
var ErrStarting = errors.New("the collector has just started, and is reading the cluster: ask again in a moment")
