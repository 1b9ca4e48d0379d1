package agent

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// tally counts what batches have told, by words of which there are few.
type tally struct {
	mu          sync.Mutex
	flows       [verdicts]uint64
	connections [verdicts]uint64
	gaps        [gapKinds]gapTally
}

// gapTally is what the gaps of one kind come to.
type gapTally struct {
	count, lost uint64
	time        time.Duration
}

const (
	verdicts = flow.VerdictUnanswered + 1
	gapKinds = flow.GapNames + 1
)

// add counts a batch.
func (t *tally) add(b *flow.Batch) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range b.Flows {
		f := &b.Flows[i]
		v := f.Verdict
		if v >= verdicts {
			v = flow.VerdictUnknown
		}
		t.flows[v]++
		t.connections[v] += f.Connections
	}
	for i := range b.Gaps {
		g := &b.Gaps[i]
		k := g.Kind
		if k >= gapKinds {
			k = flow.GapUnknown
		}
		t.gaps[k].count++
		t.gaps[k].lost += g.Lost
		t.gaps[k].time += max(0, g.End.Sub(g.Start))
	}
}

// told gives what was counted so far.
func (t *tally) told() (flows, connections [verdicts]uint64, gaps [gapKinds]gapTally) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.flows, t.connections, t.gaps
}

// pulse is what the loop says of the table, which only it may look into. It is
// brought up to date with every early batch, ten times a second.
type pulse struct {
	beat                       atomic.Int64 // Unix nanoseconds; 0 before the loop runs
	observations, contradicted atomic.Uint64
	connections, flows         atomic.Int64
}

// tell brings the pulse up to date.
func (p *pulse) tell(t *table, now time.Time) {
	p.observations.Store(t.stats.observations)
	p.contradicted.Store(t.stats.contradicted)
	p.connections.Store(int64(t.conns.len()))
	p.flows.Store(int64(t.window.len()))
	p.beat.Store(now.UnixNano())
}

// maxStill is how long the loop may take over one thing.
const maxStill = time.Minute

// still returns for how long the loop has stood still, if that is too long.
func (p *pulse) still(now time.Time) time.Duration {
	beat := p.beat.Load()
	if d := now.Sub(time.Unix(0, beat)); beat != 0 && d > maxStill {
		return d
	}
	return 0
}
