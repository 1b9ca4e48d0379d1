package collector

import (
	"context"
	"fmt"
	"time"

	"github.com/flowaudit/flowaudit/collector/store"
)

// Retain says how long what is kept.
type Retain struct {
	Flows  time.Duration // 0 keeps them all
	Denied time.Duration // refused ones; less than Flows means as long as these
	Edges  time.Duration // 0 keeps them all
	Bytes  uint64        // on disk; 0 is no bound
}

func (r *Retain) validate() error {
	for flag, d := range map[string]time.Duration{"--retain": r.Flows, "--retain-denied": r.Denied, "--retain-edges": r.Edges} {
		if d < 0 {
			return fmt.Errorf("%s %s: a time to keep flows cannot be negative", flag, d)
		}
	}
	return nil
}

const retainInterval = time.Minute

// kept is what a store keeps at a time.
func (r *Retain) kept(now time.Time) store.Retention {
	k := store.Retention{Bytes: r.Bytes}
	if r.Flows > 0 {
		k.Since = now.Add(-r.Flows)
		k.Denied = now.Add(-max(r.Flows, r.Denied))
	}
	return k
}

// retain deletes what is older than it may be, or too much.
func (c *collector) retain(ctx context.Context) error {
	ticker := time.NewTicker(retainInterval)
	defer ticker.Stop()
	for {
		c.retainOnce(ctx)
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (c *collector) retainOnce(ctx context.Context) {
	now := time.Now()
	c.tellRetained(ctx, "alerts", 0, c.alerting.retain(ctx, now))
	if c.Retain.Flows > 0 || c.Retain.Bytes > 0 {
		if err := c.buryBefore(ctx, now); err != nil {
			c.tellRetained(ctx, "flows", 0, fmt.Errorf("sign what is deleted: %w", err))
			return
		}
		freed, err := c.Store.Retain(ctx, c.Retain.kept(now))
		c.tellRetained(ctx, "flows", freed, err)
	}
	if c.Retain.Edges > 0 {
		freed, err := c.Store.RetainEdges(ctx, now.Add(-c.Retain.Edges))
		c.tellRetained(ctx, "edges", freed, err)
	}
}

func (c *collector) tellRetained(ctx context.Context, what string, freed int64, err error) {
	switch {
	case ctx.Err() != nil:
	case err != nil:
		c.Log.Error("old "+what+" were not deleted", "error", err)
	case freed > 0:
		c.Log.Info("old "+what+" deleted", "bytes", freed)
	}
}
