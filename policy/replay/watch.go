package replay

import (
	"fmt"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy"
	"github.com/flowaudit/flowaudit/policy/history"
)

// Watch judges flows as they come against a change that is not applied.
// It may be used concurrently, but for Update.
type Watch struct {
	change        Change
	before, after *policy.Snapshot
	state         *history.History
}

// NewWatch returns a Watch for the cluster as it is at the end of a history.
func NewWatch(c Change, h *history.History) (*Watch, error) {
	w := &Watch{change: c}
	return w, w.Update(h)
}

// Update takes a newer state of the cluster in.
func (w *Watch) Update(h *history.History) error {
	if err := w.change.Validate(); err != nil {
		return err
	}
	before, err := policy.New(policy.Options{Classes: h.Classes(), Policies: (&Change{}).After(h)})
	if err != nil {
		return fmt.Errorf("make policy engine: %w", err)
	}
	after, err := policy.New(policy.Options{Classes: h.Classes(), Policies: w.change.After(h)})
	if err != nil {
		return fmt.Errorf("make policy engine: %w", err)
	}
	w.before, w.after, w.state = before.Snapshot(), after.Snapshot(), h
	return nil
}

// Problems are what of the change could not be compiled.
func (w *Watch) Problems() []policy.Problem { return w.after.Problems() }

// Judge returns how the change would decide a flow otherwise; nil if it would not.
func (w *Watch) Judge(f *flow.Flow) (*Flip, error) {
	b := flow.NewEdgeBuilder()
	b.Add([]flow.Flow{*f})
	edges := b.Edges()
	if len(edges) == 0 {
		return nil, nil
	}
	e := w.state.Join(edges[0])
	c := w.state.Connection(e)
	before, after := w.before.Decide(&c), w.after.Decide(&c)
	if before.Verdict == after.Verdict || before.Verdict == flow.VerdictUnknown && f.Expected == after.Verdict {
		return nil, nil
	}
	return Describe(e, before.Verdict, &after), nil
}
