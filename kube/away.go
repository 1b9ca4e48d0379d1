package kube

import (
	"context"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// away is a time in which the API server could not be reached.
type away struct {
	told  bool      // it lasts, and was said
	until time.Time // up to where it was told as a gap
}

const (
	// awayAfter is how long a break may last that is none: watches end and
	// begin anew all the time.
	awayAfter = 2 * time.Second
	// gapInterval is how much time a gap may cover before it is told.
	gapInterval = 10 * time.Second
	mindEvery   = 500 * time.Millisecond
)

// mind looks whether changes are told, and tells of the times when they are not.
func (w *Watch) mind(ctx context.Context) error {
	tick := time.NewTicker(mindEvery)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			w.look(now)
			_, skew := w.contact.state()
			w.Index.SetSkew(skew)
			if w.Node != "" {
				w.Index.SetSlack(skew.Abs())
			}
		case <-ctx.Done():
			w.tellGap(time.Now())
			return nil
		}
	}
}

// look compares what is with what was told.
func (w *Watch) look(now time.Time) {
	since, why := w.broken()
	w.mu.Lock()
	was := w.away.told
	switch {
	case !since.IsZero() && !was && now.Sub(since) > awayAfter:
		w.away = away{told: true, until: since}
	case since.IsZero() && was:
		w.mu.Unlock()
		w.tellGap(now)
		w.mu.Lock()
		w.away = away{}
	}
	is, until := w.away.told, w.away.until
	w.mu.Unlock()
	switch {
	case is && !was:
		w.Log.Warn("API server is away, names are those known so far", "server", w.config.Host, "since", since, "error", why)
	case was && !is:
		w.Log.Info("API server is back", "server", w.config.Host)
	case is && now.Sub(until) >= gapInterval:
		w.tellGap(now)
	}
}

// broken says since when a kind that could be had is not told, and why; the
// zero time if all are told.
func (w *Watch) broken() (since time.Time, why error) {
	for _, f := range w.followers {
		s := f.now()
		if s.current || s.refused() || f.waits() {
			continue
		}
		if since.IsZero() || s.since.Before(since) {
			since, why = s.since, s.err
		}
	}
	return since, why
}

// waits reports whether the kind was not asked for yet.
func (f *follower) waits() bool {
	s := f.now()
	return f.last && !s.synced && s.err == nil
}

// tellGap tells the time away that was not told yet.
func (w *Watch) tellGap(now time.Time) {
	w.mu.Lock()
	from, is := w.away.until, w.away.told
	w.away.until = now
	w.mu.Unlock()
	if !is || w.Lost == nil {
		return
	}
	w.Lost(flow.Gap{
		Source: "kubernetes", Kind: flow.GapNames, Start: from, End: now,
		Detail: "the API server could not be reached: names are those that were known before",
	})
}
