package kube

import (
	"sync"
	"sync/atomic"
	"time"
)

// lateness is how late news has come lately: where the API server or a kubelet
// is slow, names are sure later too.
type lateness struct {
	now, before atomic.Int64 // the latest news of this period and the last, nanoseconds
	turned      atomic.Int64 // when this period began
}

const (
	latenessPeriod = 10 * time.Second
	maxLateness    = 4 * time.Second
)

// notice takes in that something happened at a time, at the latest, and became
// known at another. More than a bound is told by clocks that differ.
func (l *lateness) notice(happened, known, bound int64) {
	if known-l.turned.Load() > int64(latenessPeriod) {
		l.turned.Store(known)
		l.before.Store(l.now.Swap(0))
	}
	l.now.Store(max(l.now.Load(), min(known-happened, bound)))
}

func (l *lateness) get() time.Duration {
	return time.Duration(max(l.now.Load(), l.before.Load()))
}

// births are the pods of each node that have begun and whose address is not
// told yet: it may be one that another pod had until a moment ago.
type births struct {
	mu    sync.RWMutex
	nodes map[string]map[podKey]int64 // and when they were first seen, nanoseconds
}

// birthTime is how long a pod's address may be awaited: one that gets none for
// longer waits for something else, such as a volume.
const birthTime = 20 * time.Second

func (b *births) set(node string, k podKey, awaited bool, now int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	pods := b.nodes[node]
	_, known := pods[k]
	switch {
	case awaited && !known:
		if pods == nil {
			pods = make(map[podKey]int64)
			b.nodes[node] = pods
		}
		pods[k] = now
	case !awaited && known:
		if delete(pods, k); len(pods) == 0 {
			delete(b.nodes, node)
		}
	}
}

// near reports whether a pod's address was awaited on a node at about a time.
func (b *births) near(node string, at int64) bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	for _, seen := range b.nodes[node] {
		if at-seen < int64(birthTime) {
			return true
		}
	}
	return false
}
