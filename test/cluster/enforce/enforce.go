package enforce

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

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
}

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
	for _, informer := range []cache.SharedIndexInformer{
		factory.Core().V1().Pods().Informer(), factory.Core().V1().Namespaces().Informer(), factory.Networking().V1().NetworkPolicies().Informer(),
	} {
		if _, err := informer.AddEventHandler(changes); err != nil {
			return nil, fmt.Errorf("watch the cluster: %w", err)
		}
	}
	factory.Start(ctx.Done())
	go e.follow(ctx, changed)
	return e, e.Sync(ctx)
}

func notify(changed chan struct{}) {
	select {
	case changed <- struct{}{}:
	default: // a change waits already
	}
}

// follow joins changes that come together.
func (e *Enforcer) follow(ctx context.Context, changed <-chan struct{}) {
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
		_ = e.Sync(ctx) // with the API server away, the rules stay as they are
	}
}

// Add makes a node one whose rules are written.
func (e *Enforcer) Add(ctx context.Context, name string, n Node) error {
	e.mu.Lock()
	e.nodes[name] = n
	e.mu.Unlock()
	return e.Sync(ctx)
}

// Sync writes the rules of what the API server has now. When it returns they
// are in force.
func (e *Enforcer) Sync(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	s, err := e.state(ctx)
	if err != nil {
		return err
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
