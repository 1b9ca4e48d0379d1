package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
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
	// Others, if set, is told the policies of other kinds than NetworkPolicy,
	// whenever they were looked for. They must not be changed.
	Others func([]OtherPolicy)
	Log    *slog.Logger
}

// Watch keeps an index up to date with an API server.
type Watch struct {
	WatchOptions
	*server
	contact   *contact
	followers []*follower
	synced    chan struct{}
	kinds     atomic.Pointer[[]string] // of policies beside NetworkPolicy
	looked    chan struct{}            // closed when these were looked for once

	mu   sync.Mutex
	away away
}

// OpenWatch prepares a watch. It fails where the access cannot be read; an API
// server that cannot be reached is waited for by Run.
func OpenWatch(o WatchOptions) (*Watch, error) {
	config, err := o.Access.Config(o.UserAgent)
	if err != nil {
		return nil, err
	}
	return newWatch(o, config)
}

func newWatch(o WatchOptions, config *rest.Config) (w *Watch, err error) {
	w = &Watch{WatchOptions: o, contact: &contact{}, synced: make(chan struct{}), looked: make(chan struct{})}
	config.Wrap(w.contact.wrap)
	if w.server, err = newServer(config); err != nil {
		return nil, err
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
	} else {
		close(w.looked)
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
	select {
	case <-w.looked:
	case <-ctx.Done():
		return nil
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
