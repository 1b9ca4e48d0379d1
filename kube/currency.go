package kube

import (
	"math"
	"sync/atomic"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// currency is how current the news of pods is. An API server that is
// overloaded tells changes half a minute late and more, and who is told nothing
// cannot know: the times that it gave to changes say how late they come, and
// silence where there was none says that they do not.
//
// One writes, who holds the index's lock.
type currency struct {
	skew atomic.Int64 // how far the API server's clock is ahead, nanoseconds
	lag  lateness     // of changes, by the API server's own times
	told atomic.Int64 // the newest time of a change
	came atomic.Int64 // when the last change came
	gap  atomic.Int64 // the mean time between changes lately
}

const (
	// busyGap is the mean time between changes below which silence is odd.
	busyGap = 200 * time.Millisecond
	// leastLag is how late news may be that counts as prompt: answers wait for
	// that much anyway.
	leastLag = time.Second
	// leastSilence is how long no change may come, however many came before.
	leastSilence = time.Second
	// lagMemory is how long it is remembered, at least, that news was late,
	// where none comes any more.
	lagMemory = 20 * time.Second
)

// notice takes in that a change came that the API server has given a time.
func (c *currency) notice(happened, came int64) {
	happened -= c.skew.Load()
	c.lag.notice(happened+second, came, math.MaxInt64)
	c.told.Store(max(c.told.Load(), happened))
	gap := int64(maxSettling)
	if last := c.came.Load(); last != 0 {
		gap = (7*c.gap.Load() + min(gap, came-last)) / 8
	}
	c.gap.Store(gap)
	c.came.Store(came)
}

// horizon is up to when what happened is known; forever if nothing is late.
func (c *currency) horizon(now int64) int64 {
	h, silence := int64(forever), now-c.came.Load()
	if lag := int64(c.lag.get()); lag > int64(leastLag) && silence < 4*lag+int64(lagMemory) {
		// Changes come in their order, but some are stamped before they are written.
		h = max(now-2*lag, c.told.Load()-2*second)
	}
	if gap := c.gap.Load(); gap < int64(busyGap) && silence > max(int64(leastSilence), 10*gap) && silence < int64(maxSettling) {
		h = min(h, c.came.Load()-int64(settling))
	}
	return h
}

// SetSkew says how far the API server's clock is ahead of this one.
func (x *Index) SetSkew(d time.Duration) { x.currency.skew.Store(int64(d)) }

// noticeChange learns from the times that the API server gives to a pod.
func (x *Index) noticeChange(r *podRecord, l *podLife, m moment) {
	known := r != nil
	if m.ofPast() {
		return
	}
	switch {
	case l.asked != 0 && (!known || !r.asked):
		x.currency.notice(l.asked, m.now)
	case !known && l.created != 0:
		x.currency.notice(l.created, m.now)
	}
}

// upTo makes a moment say up to when all is known where news is late.
func (x *Index) upTo(m moment) moment {
	if h := x.currency.horizon(m.now); !m.exact && h < m.asOf {
		m.asOf, m.late = h, true
	}
	return m
}

// doubted is what remains of an answer where another pod may have had the
// address by then, of which no news has come.
func (x *Index) doubted(e *flow.Endpoint) *flow.Endpoint {
	switch e.Kind {
	case flow.EndpointPod:
		return x.ambiguous.get([]string{podKey{e.Namespace, e.Pod}.String()})
	case flow.EndpointOutside:
		return nobody
	}
	return e
}
