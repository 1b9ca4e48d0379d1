package kube

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// contact watches the traffic with the API server: when it was last heard, and
// how far its clock is ahead.
type contact struct {
	mu    sync.Mutex
	heard time.Time
	skew  skew
}

// skew bounds how far another clock is ahead of this one. Each answer's Date
// has whole seconds; many answers together tell more.
type skew struct {
	least, most time.Duration
	since       time.Time // of the first answer that these bounds stand on
}

// skewMemory is how long an answer bounds the skew: clocks drift.
const skewMemory = 10 * time.Minute

// add takes in that an answer of the time date was asked for and came.
func (s *skew) add(asked, came, date time.Time) {
	least, most := date.Sub(came), date.Add(time.Second).Sub(asked)
	if s.since.IsZero() || came.Sub(s.since) > skewMemory || least > s.most || most < s.least {
		*s = skew{least, most, came}
		return
	}
	s.least, s.most = max(s.least, least), min(s.most, most)
}

// value is the middle of what is possible, and 0 where that includes 0.
func (s *skew) value() time.Duration {
	if s.least <= 0 && s.most >= 0 {
		return 0
	}
	return (s.least + s.most) / 2
}

// wrap makes a transport tell what it hears.
func (c *contact) wrap(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		asked := time.Now()
		resp, err := next.RoundTrip(r)
		if err != nil {
			return nil, err
		}
		now := time.Now()
		c.mu.Lock()
		c.heard = now
		if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
			c.skew.add(asked, now, date)
		}
		c.mu.Unlock()
		resp.Body = &listener{resp.Body, c}
		return resp, nil
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// listener is a body that tells when it is read.
type listener struct {
	io.ReadCloser
	contact *contact
}

func (l *listener) Read(b []byte) (int, error) {
	n, err := l.ReadCloser.Read(b)
	if n > 0 || toldByPeer(err) {
		l.contact.hear(time.Now())
	}
	return n, err
}

// toldByPeer reports whether the other side ended the body: a connection that
// went silent is given up long after it was last good.
func toldByPeer(err error) bool {
	var timeout interface{ Timeout() bool }
	switch {
	case err == nil, errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return false
	case errors.As(err, &timeout) && timeout.Timeout():
		return false
	}
	return !strings.Contains(err.Error(), "client connection lost") // the transport's words for no answer to a ping
}

func (c *contact) hear(at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard = at
}

func (c *contact) state() (heard time.Time, skew time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.heard, c.skew.value()
}
