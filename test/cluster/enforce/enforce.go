package enforce

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// Node takes a rule set.
type Node interface {
	NFT(rules string) error
}

// Enforcer keeps the rules of all nodes as the policies say.
type Enforcer struct {
	client  kubernetes.Interface
	nodes   map[string]Node
	options Options

	mu      sync.Mutex // one writer of rules
	written map[string]string
	synced  time.Time
	idle    bool // suspended
}

// catchUp is how far a watch may be behind the API server.
const catchUp = 500 * time.Millisecond

// Start writes rules until the context ends.
func Start(ctx context.Context, client kubernetes.Interface, nodes map[string]Node, o Options) (*Enforcer, error) {
	e := &Enforcer{client: client, nodes: maps.Clone(nodes), options: o, written: make(map[string]string)}
	changed := make(chan struct{}, 1)
	changes := cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { notify(changed) },
		UpdateFunc: func(_, _ any) { notify(changed) },
		DeleteFunc: func(any) { notify(changed) },
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	pods, namespaces, policies := factory.Core().V1().Pods(), factory.Core().V1().Namespaces(), factory.Networking().V1().NetworkPolicies()
	for _, informer := range []cache.SharedIndexInformer{pods.Informer(), namespaces.Informer(), policies.Informer()} {
		if _, err := informer.AddEventHandler(changes); err != nil {
			return nil, fmt.Errorf("watch the cluster: %w", err)
		}
	}
	factory.Start(ctx.Done())
	go follow(ctx, changed, func() {
		// Rules of an older state must not follow those of Sync.
		time.Sleep(time.Until(e.lastSync().Add(catchUp)))
		s := State{
			Pods:       cached[corev1.Pod](pods.Informer().GetStore()),
			Namespaces: cached[corev1.Namespace](namespaces.Informer().GetStore()),
			Policies:   cached[networkingv1.NetworkPolicy](policies.Informer().GetStore()),
		}
		_ = e.write(s) // the next Sync tells of it
	})
	return e, e.Sync(ctx)
}

// cached are the objects of a watch.
func cached[T any](store cache.Store) []T {
	var all []T
	for _, object := range store.List() {
		all = append(all, *object.(*T))
	}
	return all
}

func notify(changed chan struct{}) {
	select {
	case changed <- struct{}{}:
	default: // a change waits already
	}
}

// follow joins changes that come together.
func follow(ctx context.Context, changed <-chan struct{}, write func()) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(100 * time.Millisecond):
		}
		write()
	}
}

// Add makes a node one whose rules are written.
func (e *Enforcer) Add(ctx context.Context, name string, n Node) error {
	e.mu.Lock()
	e.nodes[name] = n
	e.mu.Unlock()
	return e.Sync(ctx)
}

// Configure changes how refusals look from now on.
func (e *Enforcer) Configure(ctx context.Context, o Options) error {
	e.mu.Lock()
	e.options = o
	e.mu.Unlock()
	return e.Sync(ctx)
}

// Sync writes the rules of what the API server has now. When it returns they
// are in force.
func (e *Enforcer) Sync(ctx context.Context) error {
	s, err := e.state(ctx)
	if err != nil {
		return err
	}
	e.mu.Lock()
	e.synced = time.Now()
	e.mu.Unlock()
	return e.write(s)
}

func (e *Enforcer) lastSync() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.synced
}

// Suspend removes the rules of all nodes and writes none until Resume, as a
// network plugin that knows no policies.
func (e *Enforcer) Suspend() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.idle = true
	var errs []error
	for name, node := range e.nodes {
		if err := node.NFT(fmt.Sprintf("table inet %s\ndelete table inet %s\n", table, table)); err != nil {
			errs = append(errs, fmt.Errorf("remove the rules of %s: %w", name, err))
		}
		delete(e.written, name)
	}
	return errors.Join(errs...)
}

// Resume enforces again.
func (e *Enforcer) Resume(ctx context.Context) error {
	e.mu.Lock()
	e.idle = false
	e.mu.Unlock()
	return e.Sync(ctx)
}

func (e *Enforcer) write(s State) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.idle {
		return nil
	}
	var errs []error
	for name, node := range e.nodes {
		rules, err := Rules(name, s, e.options)
		if err == nil && rules != e.written[name] {
			err = node.NFT(rules)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("write the rules of %s: %w", name, err))
			continue
		}
		e.written[name] = rules
	}
	return errors.Join(errs...)
}

func (e *Enforcer) state(ctx context.Context) (s State, err error) {
	pods, err := e.client.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return s, fmt.Errorf("list pods: %w", err)
	}
	namespaces, err := e.client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return s, fmt.Errorf("list namespaces: %w", err)
	}
	policies, err := e.client.NetworkingV1().NetworkPolicies("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return s, fmt.Errorf("list network policies: %w", err)
	}
	return State{pods.Items, namespaces.Items, policies.Items}, nil
}
