package policy

import (
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	networkingv1 "k8s.io/api/networking/v1"
)

// Engine holds a cluster's policies in compiled form, and optionally its
// namespaces and pods. Each change makes a new Snapshot and recompiles only
// what it touches. All methods may be used concurrently.
type Engine struct {
	mu       sync.Mutex // held by the one who makes the next snapshot
	snapshot atomic.Pointer[Snapshot]

	// What the next snapshot is made with; guarded by mu.
	groupNumbers map[string]uint32
	scopeNumbers map[string]int // indexes of Snapshot.scopes
	blockNumbers map[string]uint32
	blocks       []*block
	renumberAt   int // with more groups and blocks than this, number them anew
}

// Options are what an Engine begins with. The zero value is an empty cluster.
type Options struct {
	// Classes makes the classes of the pods below; nil means new ones. Engines
	// that decide about the same ends should share it.
	Classes    *Classes
	Policies   []*networkingv1.NetworkPolicy
	Namespaces map[string]map[string]string // labels by name
	// Pods are the cluster's pods. Their NamespaceLabels are ignored.
	Pods []Pod
	// CacheEntries bounds the remembered decisions; 0 means 262,144. One takes
	// about 100 bytes, once it is in use.
	CacheEntries int
}

// Validate reports what cannot be.
func (o *Options) Validate() error {
	if o.CacheEntries < 0 {
		return errors.New("CacheEntries is negative: give 0 for the default, or a number of decisions")
	}
	return nil
}

// New returns an engine. Policies that are not wholly valid are no error: see
// Snapshot.Problems. Policies must not be changed afterwards.
func New(o Options) (*Engine, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if o.Classes == nil {
		o.Classes = NewClasses()
	}
	e := &Engine{groupNumbers: make(map[string]uint32), scopeNumbers: make(map[string]int), blockNumbers: make(map[string]uint32)}
	e.renumberAt = unlimited
	first := emptySnapshot(o.Classes)
	first.shared = &shared{classes: o.Classes, cache: newCache(o.CacheEntries)}
	e.snapshot.Store(first)
	e.change(func(c *change) {
		for _, p := range o.Policies {
			c.setPolicy(p)
		}
		for name, labels := range o.Namespaces {
			c.setNamespace(name, labels)
		}
		for i := range o.Pods {
			c.setPod(o.Pods[i])
		}
		c.policies = true // the first revision, even if there are none
	})
	return e, nil
}

func emptySnapshot(classes *Classes) *Snapshot {
	return &Snapshot{
		engine: &identity{}, slot: classes.engines.Add(1) % engineSlots,
		policies: make(map[string]*namespacePolicies), own: make(map[string]*scope),
		table: newBlockTable(nil, 1), inventory: make(map[string]*namespace),
	}
}

// Fork returns an engine that begins as this one is now, without compiling
// anything again. Changes to one do not show in the other.
func (e *Engine) Fork() *Engine {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := *e.snapshot.Load()
	now.engine = &identity{}
	now.slot = now.shared.classes.engines.Add(1) % engineSlots
	now.shared = &shared{classes: now.shared.classes, cache: newCache(now.shared.cache.limit)}
	// Both append: neither may write behind the other's end.
	now.groups = slices.Clip(now.groups)
	f := &Engine{
		groupNumbers: maps.Clone(e.groupNumbers), scopeNumbers: maps.Clone(e.scopeNumbers), blockNumbers: maps.Clone(e.blockNumbers),
		blocks: slices.Clone(e.blocks), renumberAt: e.renumberAt,
	}
	f.snapshot.Store(&now)
	return f
}

// Classes returns what makes this engine's classes.
func (e *Engine) Classes() *Classes { return e.snapshot.Load().shared.classes }

// Snapshot returns the present state. It never changes, and costs nothing to ask for.
func (e *Engine) Snapshot() *Snapshot { return e.snapshot.Load() }

// SetPolicy adds a policy or replaces the one of the same namespace and name.
// It returns what of it could not be compiled; decisions which that could
// influence are unknown. The policy must not be changed afterwards.
func (e *Engine) SetPolicy(p *networkingv1.NetworkPolicy) []Problem {
	var problems []Problem
	e.change(func(c *change) { problems = c.setPolicy(p) })
	return problems
}

// DeletePolicy removes a policy, if it is there.
func (e *Engine) DeletePolicy(namespace, name string) {
	e.change(func(c *change) { c.deletePolicy(namespace, name) })
}

// SetNamespace makes a namespace and its labels known; nil means no labels.
func (e *Engine) SetNamespace(name string, labels map[string]string) {
	e.change(func(c *change) { c.setNamespace(name, labels) })
}

// DeleteNamespace forgets a namespace: the labels of pods that are still in it
// are no longer known. Its policies and pods stay until they are deleted.
func (e *Engine) DeleteNamespace(name string) {
	e.change(func(c *change) { c.deleteNamespace(name) })
}

// SetPod adds a pod or replaces the one of the same namespace and name. Its
// NamespaceLabels are ignored: SetNamespace gives them.
func (e *Engine) SetPod(p Pod) {
	e.change(func(c *change) { c.setPod(p) })
}

// DeletePod removes a pod, if it is there.
func (e *Engine) DeletePod(namespace, name string) {
	e.change(func(c *change) { c.deletePod(namespace, name) })
}

// change makes the next snapshot and puts it in the place of the present one.
func (e *Engine) change(do func(*change)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.begin()
	do(c)
	c.finish()
	e.snapshot.Store(c.next)
}
