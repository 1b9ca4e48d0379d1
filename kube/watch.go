package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/flowaudit/flowaudit/flow"
)

// WatchOptions configure a Watch.
type WatchOptions struct {
	Access Access
	// Node restricts it to this node and the pods there; empty for the whole cluster.
	Node string
	// UserAgent says to the API server who asks.
	UserAgent string
	Index     *Index
	// Lost is told the times in which the API server could not be reached.
	Lost func(flow.Gap)
	Log  *slog.Logger
}

// Watch keeps an index up to date with an API server.
type Watch struct {
	WatchOptions
	config    *rest.Config
	client    *http.Client
	contact   *contact
	followers []*follower
	synced    chan struct{}
	other     atomic.Pointer[[]string] // kinds of policy beside NetworkPolicy

	mu   sync.Mutex
	away away
}

// OpenWatch prepares a watch. It fails where the access cannot be read; an API
// server that cannot be reached is waited for by Run.
func OpenWatch(o WatchOptions) (*Watch, error) {
	config, err := o.Access.config(o.UserAgent)
	if err != nil {
		return nil, err
	}
	return newWatch(o, config)
}

func newWatch(o WatchOptions, config *rest.Config) (w *Watch, err error) {
	w = &Watch{WatchOptions: o, config: config, contact: &contact{}, synced: make(chan struct{})}
	config.Wrap(w.contact.wrap)
	if w.client, err = rest.HTTPClientFor(config); err != nil {
		return nil, fmt.Errorf("make a client of the API server: %w", err)
	}
	kinds := clusterKinds()
	if o.Node != "" {
		kinds = nodeKinds(o.Node)
	}
	for _, k := range kinds {
		s, err := w.source(k)
		if err != nil {
			return nil, fmt.Errorf("make a client of %s: %w", k.name(), err)
		}
		w.followers = append(w.followers, newFollower(k, o.Index, s))
	}
	return w, nil
}

// source makes the client of a kind.
func (w *Watch) source(k kind) (listWatch, error) {
	if k.metadata {
		client, err := metadata.NewForConfigAndClient(w.config, w.client)
		if err != nil {
			return nil, err
		}
		return metadataSource{client.Resource(k.resource)}, nil
	}
	client, err := restClient(w.config, w.client, k.resource.GroupVersion())
	if err != nil {
		return nil, err
	}
	return restSource{client, k.resource.Resource}, nil
}

func restClient(config *rest.Config, client *http.Client, v schema.GroupVersion) (*rest.RESTClient, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, discoveryv1.AddToScheme, networkingv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	c := rest.CopyConfig(config)
	c.GroupVersion, c.APIPath = &v, "/apis"
	if v.Group == "" {
		c.APIPath = "/api"
	}
	c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	return rest.RESTClientForConfigAndClient(c, client)
}

type restSource struct {
	client   *rest.RESTClient
	resource string
}

func (s restSource) List(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	return s.client.Get().Resource(s.resource).VersionedParams(&o, metav1.ParameterCodec).Do(ctx).Get()
}

func (s restSource) Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	o.Watch = true
	return s.client.Get().Resource(s.resource).VersionedParams(&o, metav1.ParameterCodec).Watch(ctx)
}

type metadataSource struct{ metadata.Getter }

func (s metadataSource) List(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	return s.Getter.List(ctx, o)
}

// Run watches until ctx ends.
func (w *Watch) Run(ctx context.Context) error {
	// The client library tells through the context's logger what it retries.
	ctx = klog.NewContext(ctx, logr.FromSlogHandler(w.Log.Handler()))
	group, ctx := errgroup.WithContext(ctx)
	heard := func() time.Time {
		at, _ := w.contact.state()
		return at
	}
	for _, f := range w.followers {
		group.Go(func() error {
			if f.last && !w.others(ctx, f) {
				return nil
			}
			f.run(ctx, heard)
			return nil
		})
	}
	group.Go(func() error { return w.tellSynced(ctx) })
	group.Go(func() error { return w.mind(ctx) })
	if w.Node == "" {
		group.Go(func() error { return w.discover(ctx) })
	}
	return group.Wait()
}

// othersTimeout bounds how long pods wait for what explains them.
const othersTimeout = 30 * time.Second

// others waits until the kinds before f were told, or cannot be.
func (w *Watch) others(ctx context.Context, f *follower) bool {
	timeout := time.NewTimer(othersTimeout)
	defer timeout.Stop()
	for _, other := range w.followers {
		if other == f {
			continue
		}
		select {
		case <-other.asked:
		case <-timeout.C:
			return true
		case <-ctx.Done():
			return false
		}
	}
	return true
}

func (w *Watch) tellSynced(ctx context.Context) error {
	for _, f := range w.followers {
		select {
		case <-f.asked:
		case <-ctx.Done():
			return nil
		}
	}
	close(w.synced)
	return nil
}

// Synced is closed when every kind was told once, or cannot be.
func (w *Watch) Synced() <-chan struct{} { return w.synced }

// WatchStatus says how it stands with the API server.
type WatchStatus struct {
	Server string // its address
	Away   bool   // it cannot be reached, or does not tell what changes
	Heard  time.Time
	// Skew is how far its clock is ahead; 0 if less than can be told.
	Skew time.Duration
	// Problems name the kinds that cannot be watched, and why.
	Problems []string
}

// Status describes the present state.
func (w *Watch) Status() WatchStatus {
	s := WatchStatus{Server: w.config.Host}
	s.Heard, s.Skew = w.contact.state()
	for _, f := range w.followers {
		if p := f.problem(); p != "" {
			s.Problems = append(s.Problems, p)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	s.Away = w.away.told
	return s
}

// problem says in plain words why a kind is not watched; empty if it is, or if
// the server is only away.
func (f *follower) problem() string {
	err := f.now().err
	var status apierrors.APIStatus
	switch {
	case err == nil:
		return ""
	case apierrors.IsForbidden(err):
		return fmt.Sprintf("no permission for %s (%v): the ClusterRoles in deploy/rbac have what is needed", f.name(), err)
	case errors.As(err, &status):
		return fmt.Sprintf("watch %s: %v", f.name(), err)
	}
	return ""
}

// refused reports whether the server answered that this kind cannot be had,
// which is a problem and no absence of the server.
func (s *following) refused() bool {
	return apierrors.IsForbidden(s.err) || apierrors.IsNotFound(s.err)
}
