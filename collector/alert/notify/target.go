package notify

import (
	"context"
	"errors"
	"net/url"
	"time"

	"github.com/flowaudit/flowaudit/collector/alert"
)

// Sender tells somebody of alerts. An error means that none was told; it is
// tried again, but for what refusedError wraps.
type Sender interface {
	Send(ctx context.Context, alerts []alert.Alert) error
	// Batch is how many alerts it takes at once.
	Batch() int
}

// refresher is a Sender that must be told again of what still fires.
type refresher interface {
	Refresh(ctx context.Context, firing []alert.Alert) error
}

// holder is a Sender that wants some alerts later: it returns until when.
type holder interface {
	Hold(a *alert.Alert) time.Time
}

// refusedError is an answer that another try would not change.
type refusedError struct{ error }

func (e refusedError) Unwrap() error { return e.error }

// laterError is an answer that says when to try again.
type laterError struct {
	error
	after time.Duration
}

func (e laterError) Unwrap() error { return e.error }

// withoutURL leaves the URL out of an error: it may hold a secret.
func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// Target is a notifier, and which alerts it is told of.
type Target struct {
	Name, Type string
	match      []alert.Matcher
	resolved   bool
	giveUp     time.Duration
	sender     Sender
}

// wants reports whether the target is told of an alert.
func (t *Target) wants(a *alert.Alert) bool {
	return (t.resolved || a.State == alert.Firing) && alert.MatchAll(t.match, a.Labels)
}
