package agent

import (
	"log/slog"
	"slices"
	"time"

	"github.com/flowaudit/flowaudit/agent/conntrack"
	"github.com/flowaudit/flowaudit/flow"
)

// loop owns the table: it feeds it, closes its windows and hands batches on.
type loop struct {
	loopOptions
	table   *table
	naming  *naming
	inbox   *inbox
	out     func(*flow.Batch)
	clock   nodeClock
	covered time.Time // up to here batches have told what was seen
	saved   time.Time
	seen    map[string]uint64 // malformed messages told, by source
	pulse   *pulse
}

type loopOptions struct {
	Node     string // who reports
	Scope    flow.Scope
	Window   time.Duration
	StateDir string
	Log      *slog.Logger
	// Status describes the agent but for what the table counts.
	Status func() flow.AgentStatus
	// Ask asks conntrack whether connections are tracked; false if it cannot be
	// asked now.
	Ask func([]conntrack.Question) bool
	// Full is how much of its bound the queue has used, in percent.
	Full func() int
	// Apart gives refused flows batches of their own.
	Apart bool
	// Wall is the node's time; nil takes the real one.
	Wall func() time.Time
	// Malformed counts messages that could not be decoded, by source.
	Malformed func() map[string]uint64
}

const (
	// earlyInterval bounds how long a first denial waits.
	earlyInterval = 100 * time.Millisecond
	// saveInterval bounds what a killed agent forgets.
	saveInterval = time.Minute
)

func newLoop(o loopOptions, t *table, in *inbox, out func(*flow.Batch)) *loop {
	if o.Wall == nil {
		o.Wall = time.Now
	}
	return &loop{loopOptions: o, clock: newClock(o.Wall), table: t, naming: newNaming(t.window), inbox: in, out: out, seen: make(map[string]uint64), pulse: &pulse{}}
}

// run works until the inbox is closed, and then gives out what is open.
func (l *loop) run() {
	l.covered = l.clock.now()
	l.saved = l.covered
	if gaps := l.windowGaps(l.covered); len(gaps) > 0 {
		l.send(nil, l.covered, gaps) // a run that is killed in its first window must have told them
	}
	early := time.NewTicker(earlyInterval)
	defer early.Stop()
	window := time.NewTimer(l.untilWindowEnd())
	defer window.Stop()
	for {
		select {
		case observations, ok := <-l.inbox.full:
			if !ok {
				l.stop()
				return
			}
			l.take(observations)
		case <-early.C:
			l.adjust()
			now := l.clock.now()
			l.look(now)
			l.sendEarly(now)
			l.pulse.tell(l.table, now)
		case <-window.C:
			l.adjust()
			l.closeWindow()
			window.Reset(l.untilWindowEnd())
		}
	}
}

// sendEarly gives first denials, and flows that had to wait for a name.
func (l *loop) sendEarly(now time.Time) {
	flows := append(l.naming.take(l.table.earlyFlows(), now, now.Add(maxEarlyWait)), l.naming.due(now)...)
	if len(flows) > 0 {
		l.send(flows, l.covered, nil)
	}
}

// untilWindowEnd aligns windows to the clock, so that those of all nodes are
// the same.
func (l *loop) untilWindowEnd() time.Duration {
	now, window := l.clock.now(), harder(l.Window, l.Full())
	return now.Truncate(window).Add(window).Sub(now)
}

// maxHarder is the longest window that a full queue makes of a shorter one.
const maxHarder = 5 * time.Minute

// harder lengthens windows while the queue fills: merging more costs a flow's
// exact time, where dropping would cost the flow.
func harder(window time.Duration, full int) time.Duration {
	switch {
	case full < 50:
		return window
	case full < 75:
		return max(window, min(6*window, maxHarder))
	}
	return max(window, min(30*window, maxHarder))
}

func (l *loop) take(observations []flow.Observation) {
	for i := range observations {
		l.table.observe(&observations[i])
	}
	l.inbox.release(observations)
	if l.table.full() {
		l.closeWindow()
	}
}

// look decides attempts that have waited long enough.
func (l *loop) look(now time.Time) {
	questions := l.table.look(now.UnixNano())
	if len(questions) > 0 && !l.Ask(questions) {
		l.table.unasked(questions)
	}
	if l.table.full() {
		l.closeWindow()
	}
}

func (l *loop) closeWindow() { l.closeWindowAt(l.clock.now()) }

func (l *loop) closeWindowAt(now time.Time) {
	flows := append(l.naming.take(l.table.closeWindow(now), now, time.Time{}), l.inbox.takeFlows()...)
	l.send(flows, now, l.windowGaps(now))
	if l.StateDir != "" && now.Sub(l.saved) >= saveInterval {
		l.save(now)
	}
}

// windowGaps collects what was lost since the last window.
func (l *loop) windowGaps(now time.Time) []flow.Gap {
	gaps := l.inbox.takeGaps()
	if n := l.table.takeRefused(); n > 0 {
		gaps = append(gaps, flow.Gap{
			Source: "conntrack", Kind: flow.GapTable, Start: l.covered, End: now, Lost: n,
			Detail: "more connections than the agent's table holds: raise --max-connections",
		})
	}
	if n := l.table.takeDropped(); n > 0 {
		gaps = append(gaps, flow.Gap{
			Source: "tap", Kind: flow.GapTable, Start: l.covered, End: now, Lost: n,
			Detail: "more connection attempts at once than the agent can watch",
		})
	}
	for source, n := range l.Malformed() {
		if d := n - l.seen[source]; d > 0 {
			gaps = append(gaps, flow.Gap{Source: source, Kind: flow.GapMalformed, Start: l.covered, End: now, Lost: d})
			l.seen[source] = n
		}
	}
	for i := range gaps {
		gaps[i].Node = l.Node
	}
	return gaps
}

// send gives out a batch that covers the time up to until.
func (l *loop) send(flows []flow.Flow, until time.Time, gaps []flow.Gap) {
	status := l.Status()
	status.Observations = l.table.stats.observations
	status.Connections = uint64(l.table.conns.len())
	status.Contradicted = l.table.stats.contradicted
	if l.table.stats.untracked > 0 {
		status.Limits = append(slices.Clip(status.Limits), limitUntracked)
	}
	for _, b := range split(flow.Batch{
		Node: l.Node, Scope: l.Scope, Start: l.covered, End: until, Flows: flows, Gaps: gaps, Agent: status,
	}, l.Apart) {
		l.out(b)
	}
	l.covered = until
}

// stop gives out what is open. What still waits for a verdict is kept for the
// next run where there is a place, else it is told as it stands.
func (l *loop) stop() {
	l.adjust()
	now := l.clock.now()
	l.table.leaveUnconfirmed()
	flows := l.table.closeWindow(now)
	if l.StateDir == "" || !l.save(now) {
		l.table.pendingFlows(now)
	}
	l.table.settle(now.UnixNano(), true)
	flows = append(flows, l.table.window.close()...)
	flows = append(append(l.naming.take(flows, now, time.Time{}), l.naming.rest(now)...), l.inbox.takeFlows()...)
	l.send(flows, now, l.windowGaps(now))
}

func (l *loop) save(now time.Time) bool {
	l.saved = now
	if err := l.table.saveState(l.StateDir, now); err != nil {
		l.Log.Error("state is not kept, a restart may count live connections again", "error", err)
		return false
	}
	return true
}
