package alert

import "time"

// window measures what happened in the last while, by the time of the events:
// what agents held back counts when it happened.
type window interface {
	// add takes in an event: n connections, and an item that may be new.
	add(at time.Time, item uint64, n uint64)
	// value is the measure of the time before at.
	value(at time.Time) int
}

func newWindow(c *Count) window {
	if c.Of == "connections" {
		return &tally{within: time.Duration(c.Within)}
	}
	return &distinct{within: time.Duration(c.Within), seen: make(map[uint64]int64)}
}

const tallyBuckets = 12

// tally counts connections, by parts of its time.
type tally struct {
	within time.Duration
	newest int64 // number of the newest part
	counts [tallyBuckets]uint64
}

func (t *tally) number(at time.Time) int64 {
	return at.UnixNano() / int64(max(1, t.within/tallyBuckets))
}

// forward forgets the parts between the newest and another one.
func (t *tally) forward(to int64) {
	for n := max(t.newest+1, to-tallyBuckets+1); n <= to; n++ {
		t.counts[n%tallyBuckets] = 0
	}
	t.newest = max(t.newest, to)
}

func (t *tally) add(at time.Time, _ uint64, n uint64) {
	i := t.number(at)
	t.forward(i)
	if i > t.newest-tallyBuckets {
		t.counts[i%tallyBuckets] += n
	}
}

func (t *tally) value(at time.Time) int {
	t.forward(t.number(at))
	var sum uint64
	for _, c := range t.counts {
		sum += c
	}
	return int(min(sum, 1<<40))
}

// maxDistinct bounds what one group remembers; beyond it the measure is "at least".
const maxDistinct = 4096

// distinct counts the items that were seen.
type distinct struct {
	within time.Duration
	seen   map[uint64]int64 // when last, in Unix nanoseconds
	swept  int64
}

func (d *distinct) add(at time.Time, item uint64, _ uint64) {
	t := at.UnixNano()
	if last, known := d.seen[item]; known {
		d.seen[item] = max(last, t)
		return
	}
	if len(d.seen) < maxDistinct {
		d.seen[item] = t
	}
}

func (d *distinct) value(at time.Time) int {
	from := at.Add(-d.within).UnixNano()
	// A value that is a little old is too large by what has just left: an
	// exact one for each event of a scan would cost its square.
	if at.UnixNano()-d.swept > int64(d.within)/64 {
		d.swept = at.UnixNano()
		for item, t := range d.seen {
			if t < from {
				delete(d.seen, item)
			}
		}
	}
	return len(d.seen)
}
