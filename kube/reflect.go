package kube

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// listWatch lists and watches one kind at the API server.
type listWatch interface {
	List(ctx context.Context, o metav1.ListOptions) (runtime.Object, error)
	Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error)
}

// follower keeps an index up to date with one kind. It is the store of a
// client-go reflector: no object is kept but in the index.
type follower struct {
	kind
	index  *Index
	source listWatch
	asked  chan struct{} // closed when the kind was told whole, or cannot be
	once   sync.Once

	mu    sync.Mutex
	state following
}

// following is how it stands with a kind.
type following struct {
	synced    bool      // it was told whole once
	current   bool      // changes come as they happen
	since     time.Time // since when it is not current
	fresh     time.Time // up to when all changes were told, before the last break
	resumed   time.Time // when the last break ended
	refusedAt time.Time // since when what was allowed before is refused; zero if it is not
	err       error     // why it is not current; nil if nobody said
}

func newFollower(k kind, x *Index, s listWatch) *follower {
	return &follower{kind: k, index: x, source: s, asked: make(chan struct{}), state: following{since: time.Now()}}
}

// run follows the kind until ctx ends. A watch goes on where it broke off
// wherever the API server can still tell from there; all waits grow and are
// spread at random, so that a server that comes back is not overrun.
func (f *follower) run(ctx context.Context, heard func() time.Time) {
	backoff := wait.Backoff{Duration: 500 * time.Millisecond, Factor: 2, Jitter: 1, Cap: 10 * time.Second, Steps: 16}
	r := cache.NewReflectorWithOptions(f.listWatch(heard), f.object, f, cache.ReflectorOptions{Name: f.name(), Backoff: &backoff})
	delay := backoff
	for ctx.Err() == nil {
		err := r.ListAndWatchWithContext(ctx)
		if err == nil {
			delay = backoff
		} else {
			f.fail(err)
		}
		select {
		case <-time.After(delay.Step()):
		case <-ctx.Done():
		}
	}
}

func (f *follower) listWatch(heard func() time.Time) cache.ListerWatcher {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			f.lose(heard())
			o.FieldSelector = f.field
			list, err := f.source.List(ctx, o)
			if err != nil {
				f.fail(err)
			}
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			f.lose(heard())
			o.FieldSelector = f.field
			w, err := f.source.Watch(ctx, o)
			if err != nil {
				err = f.excused(err)
				f.fail(err)
				return nil, retriable(ctx, err)
			}
			// A stream that begins with what there is tells by Replace when that is over.
			if o.SendInitialEvents == nil {
				f.gain()
			}
			return w, nil
		},
	}
}

// retriable makes the reflector go on from where it was, and not list all
// again, whatever kept it from reaching the server. It does so by itself only
// where a connection was refused.
func retriable(ctx context.Context, err error) error {
	var status apierrors.APIStatus
	if errors.As(err, &status) || ctx.Err() != nil {
		return err // the server was reached
	}
	return errors.Join(err, syscall.ECONNREFUSED)
}

// readyTime is how long an API server that has just come back may refuse what
// it allowed before: it listens before it has read who may do what.
const readyTime = 30 * time.Second

// excused makes of such a refusal an error like that of a server that is away.
func (f *follower) excused(err error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !apierrors.IsForbidden(err) || !f.state.synced {
		return err
	}
	if f.state.refusedAt.IsZero() {
		f.state.refusedAt = time.Now()
	}
	if time.Since(f.state.refusedAt) > readyTime {
		return err
	}
	return fmt.Errorf("the API server is not ready: %s", err.Error())
}

// lose notes that a watch ended. It was good until the server was last heard.
func (f *follower) lose(heard time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.state.current {
		return
	}
	f.state.current, f.state.err = false, nil
	f.state.since = heard
	f.state.fresh = heard
}

func (f *follower) gain() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state.current, f.state.err, f.state.resumed, f.state.refusedAt = true, nil, time.Now(), time.Time{}
}

func (f *follower) fail(err error) {
	f.mu.Lock()
	f.state.current, f.state.err = false, err
	f.mu.Unlock()
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		f.once.Do(func() { close(f.asked) }) // the others need not wait for it
	}
}

func (f *follower) now() following {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state
}

// catchUp is how long a watch that goes on may tell what happened in the
// break, at most: after a short one, such as that between a list and the watch
// from there on, it is over soon.
const catchUp = 5 * time.Second

// catchesUp reports whether what is told may be from the last break.
func (s *following) catchesUp(now time.Time) bool {
	return !s.current || now.Sub(s.resumed) < min(catchUp, s.resumed.Sub(s.fresh)+lag)
}

// moment is now, as a reflector tells something.
func (f *follower) moment() moment {
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	m := moment{now: now.UnixNano(), asOf: now.UnixNano(), slack: f.index.slack.Load()}
	if s := &f.state; !s.fresh.IsZero() && s.catchesUp(now) {
		m.asOf = s.fresh.UnixNano()
	}
	return m
}

// Add implements cache.ReflectorStore.
func (f *follower) Add(o any) error {
	m := f.moment()
	f.index.mu.Lock()
	defer f.index.mu.Unlock()
	f.set(f.index, f.trimmed(o), m)
	return nil
}

// Update implements cache.ReflectorStore.
func (f *follower) Update(o any) error { return f.Add(o) }

// Delete implements cache.ReflectorStore. The object comes as it was last, so
// that what ended it is known.
func (f *follower) Delete(o any) error {
	last, ok := f.trimmed(o).(named)
	if !ok {
		return nil
	}
	m := f.moment()
	f.index.mu.Lock()
	defer f.index.mu.Unlock()
	if facts, ok := last.(*podFacts); ok {
		f.set(f.index, facts, m)
	}
	f.remove(f.index, f.key(last), m)
	return nil
}

// named is what each object can say of itself.
type named interface {
	GetNamespace() string
	GetName() string
}

func (f *follower) key(o named) podKey {
	if f.resource == core("nodes") || f.resource == core("namespaces") {
		return podKey{name: o.GetName()}
	}
	return podKey{orDefault(o.GetNamespace()), o.GetName()}
}

func (f *follower) trimmed(o any) any {
	if _, done := o.(*podFacts); done {
		return o
	}
	return f.trim(o)
}

// chunk is how many objects of a list are taken in before others get a turn.
const chunk = 256

// Replace implements cache.ReflectorStore: what is not in the list went at a
// time that nobody told.
func (f *follower) Replace(list []any, _ string) error {
	m := f.moment()
	m.first, m.listed = !f.now().synced, true
	listed := make(map[podKey]struct{}, len(list))
	for i, o := range list {
		list[i] = f.trimmed(o)
		if n, ok := list[i].(named); ok {
			listed[f.key(n)] = struct{}{}
		}
	}
	f.index.mu.Lock()
	for _, k := range f.known(f.index) {
		if _, ok := listed[k]; !ok {
			f.remove(f.index, k, m)
		}
	}
	for i, o := range list {
		if i%chunk == chunk-1 {
			f.index.mu.Unlock()
			f.index.mu.Lock()
		}
		f.set(f.index, o, m)
		list[i] = nil
	}
	f.index.compare(f.told, m)
	f.index.mu.Unlock()
	f.mu.Lock()
	f.state.synced, f.state.current, f.state.err = true, true, nil
	f.state.resumed, f.state.refusedAt = time.Now(), time.Time{}
	f.mu.Unlock()
	f.once.Do(func() { close(f.asked) })
	return nil
}

// Resync implements cache.ReflectorStore; there is nothing to do.
func (f *follower) Resync() error { return nil }

// Transformer implements cache.TransformingStore: a first list of a large
// cluster is never held as it comes.
func (f *follower) Transformer() cache.TransformFunc {
	return func(o any) (any, error) { return f.trimmed(o), nil }
}

var _ cache.TransformingStore = (*follower)(nil)
