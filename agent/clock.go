package agent

import "time"

// nodeClock tells the node's time, and notices when it is set: by hand, by the
// first answer of a time server, or because the machine slept.
type nodeClock struct {
	wall  func() time.Time // the node's time
	began time.Time        // with a monotonic reading
	first time.Time        // the node's time then
	drift time.Duration    // how much more the node's time has moved than time has passed
}

// maxDrift is how far a clock may go wrong between two looks without being set:
// time servers correct small errors by half a millisecond a second.
const maxDrift = 250 * time.Millisecond

func newClock(wall func() time.Time) nodeClock {
	return nodeClock{wall: wall, began: time.Now(), first: wall()}
}

// now is the node's time, without a monotonic reading.
func (c *nodeClock) now() time.Time { return c.wall().Round(0) }

// step is how far the clock was set since the last call; 0 if it was not.
func (c *nodeClock) step() time.Duration {
	drift := c.now().Sub(c.first.Round(0)) - time.Since(c.began)
	step := drift - c.drift
	c.drift = drift
	if step.Abs() <= maxDrift {
		return 0
	}
	return step
}

// adjust notices that the clock was set: the window so far ends by the old time,
// and whatever waits, waits as long as before.
func (l *loop) adjust() {
	step := l.clock.step()
	if step == 0 {
		return
	}
	now := l.clock.now()
	l.Log.Warn("the node's clock was set", "by", step.Round(time.Millisecond))
	l.closeWindowAt(now.Add(-step))
	l.covered = now
	l.saved = l.saved.Add(step)
	l.table.shift(step)
	l.naming.shift(step)
}

// shift moves what the table knows of times along with a clock that was set.
func (t *table) shift(by time.Duration) {
	d := int64(by)
	for _, i := range t.conns.index {
		c := t.conns.at(i)
		c.start += d
		c.earliest += d
	}
	for k, at := range t.denied {
		t.denied[k] = at + d
	}
	for _, a := range t.allowances {
		a.first += d
		a.last += d
	}
	for k, s := range t.known {
		s.Start += d
		s.Earliest += d
		t.known[k] = s
	}
	if t.attempts.turned != 0 {
		t.attempts.turned += d
	}
	t.unconfirmed.shift(d)
}

func (u *unconfirmed) shift(d int64) {
	for k, w := range u.waiting {
		w.first += d
		w.last += d
		w.asked += d
		u.waiting[k] = w
	}
	for _, m := range []map[connKey]sighting{u.early, u.earlier} {
		for k, s := range m {
			s.at += d
			m[k] = s
		}
	}
	u.turned += d
	u.now += d
	if u.lost != 0 {
		u.lost += d
	}
}

// shift moves the times at which flows are looked at again.
func (n *naming) shift(by time.Duration) {
	for i := range n.waiting {
		w := &n.waiting[i]
		w.look = w.look.Add(by)
		if !w.last.IsZero() {
			w.last = w.last.Add(by)
		}
	}
}
