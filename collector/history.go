package collector

import (
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy"
)

// history holds the policies as they were, so that a flow that comes late is
// judged by what held when it ran.
type history struct {
	mu       sync.Mutex
	engine   *policy.Engine
	restored bool // an earlier run knew what was before
	// found is when deletions were found that nobody told of: any time before
	// could be theirs. It is set once.
	found atomic.Pointer[time.Time]
	// moments are the states by the time from which they held, oldest first.
	// They share what did not change between them.
	moments atomic.Pointer[[]moment]
}

type moment struct {
	from  time.Time
	state *policy.Snapshot
}

const (
	// maxMoments bounds what is remembered of a cluster whose policies change
	// all the time. Flows from before it are judged by the oldest state kept.
	maxMoments = 4096
	// historyKept covers what an agent may hold back while the collector is away.
	historyKept = 6 * time.Hour
)

func newHistory() (*history, error) {
	engine, err := policy.New(policy.Options{})
	if err != nil {
		return nil, fmt.Errorf("make policy engine: %w", err)
	}
	h := &history{engine: engine}
	h.moments.Store(&[]moment{{state: engine.Snapshot()}})
	return h, nil
}

// apply takes changes of policies and namespaces in, in the order of their
// time. What a change says that cannot be read is an error that names it; the
// others are taken in.
func (h *history) apply(changes []flow.Change) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var bad error
	moments := slices.Clone(*h.moments.Load())
	for i := range changes {
		c := &changes[i]
		if err := applyChange(h.engine, c); err != nil {
			if bad == nil {
				bad = fmt.Errorf("read %s %s/%s of the timeline: %w", c.Kind, c.Namespace, c.Name, err)
			}
			continue
		}
		state := h.engine.Snapshot()
		if last := &moments[len(moments)-1]; last.state == state {
			continue // an identity, which flows bring themselves
		} else if !c.Time.After(last.from) {
			last.state = state // the same moment, or a clock that went back
			continue
		}
		moments = append(moments, moment{c.Time, state})
	}
	h.moments.Store(new(trim(moments)))
	return bad
}

// begin says that all that was there at the start is applied, and when it was
// found last that something is gone; the zero time if nothing is. Where nothing
// is known of the time before, it is judged by what was found.
func (h *history) begin(found time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !found.IsZero() && h.restored {
		h.found.Store(&found)
	}
	if !h.restored {
		h.moments.Store(&[]moment{{state: h.engine.Snapshot()}})
	}
}

// trim forgets states that no flow will ask for.
func trim(moments []moment) []moment {
	oldest := moments[len(moments)-1].from.Add(-historyKept)
	n := max(0, len(moments)-maxMoments)
	for n+1 < len(moments) && moments[n+1].from.Before(oldest) {
		n++
	}
	return moments[n:]
}

// at returns the policies as they were at a time.
func (h *history) at(t time.Time) *policy.Snapshot {
	moments := *h.moments.Load()
	for i := len(moments) - 1; i > 0; i-- { // most flows are new
		if !t.Before(moments[i].from) {
			return moments[i].state
		}
	}
	return moments[0].state
}

// within returns the policies as they were from one time to another: a state
// for each change, and the one before. A time before deletions were found that
// nobody told of may have been without what is gone.
func (h *history) within(since, until time.Time) (states []*policy.Snapshot) {
	moments := *h.moments.Load()
	for i := len(moments) - 1; i >= 0; i-- {
		if i > 0 && moments[i].from.After(until) {
			continue
		}
		states = append(states, moments[i].state)
		if !moments[i].from.After(since) {
			break
		}
	}
	if found := h.found.Load(); found != nil && until.Before(*found) {
		states = append(states, h.at(*found))
	}
	return states
}

func applyChange(e *policy.Engine, c *flow.Change) error {
	switch {
	case c.Kind == flow.ChangePolicy && c.Deleted:
		e.DeletePolicy(c.Namespace, c.Name)
	case c.Kind == flow.ChangePolicy:
		p := &networkingv1.NetworkPolicy{}
		if err := json.Unmarshal(c.Object, p); err != nil {
			return err
		}
		p.Namespace, p.Name = c.Namespace, c.Name
		e.SetPolicy(p)
	case c.Kind == flow.ChangeNamespace && c.Deleted:
		e.DeleteNamespace(c.Name)
	case c.Kind == flow.ChangeNamespace:
		labels := make(map[string]string)
		if err := json.Unmarshal(c.Object, &labels); err != nil {
			return err
		}
		e.SetNamespace(c.Name, labels)
	}
	return nil
}
