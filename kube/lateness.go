package kube

import (
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
	maxLateness    = 8 * time.Second
)

// notice takes in that something happened at a time, at the latest, and became
// known at another.
func (l *lateness) notice(happened, known int64) {
	if known-l.turned.Load() > int64(latenessPeriod) {
		l.turned.Store(known)
		l.before.Store(l.now.Swap(0))
	}
	l.now.Store(max(l.now.Load(), min(known-happened, int64(maxLateness))))
}

func (l *lateness) get() time.Duration {
	return time.Duration(max(l.now.Load(), l.before.Load()))
}
