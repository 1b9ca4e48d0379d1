package notify

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/flowaudit/flowaudit/collector/alert"
)

// Dispatcher tells targets of alerts, each at its own pace.
type Dispatcher struct {
	o Options

	mu      sync.Mutex
	workers map[string]*worker
	ctx     context.Context // of the workers; nil until Run
	running sync.WaitGroup
}

// Stat counts what became of a target's notifications since the start.
type Stat struct {
	Notifier, Type string
	Sent           uint64
	Failed         uint64 // tries
	GivenUp        uint64
	Queued         int
	Oldest         time.Time // of what is queued; zero if nothing is
	Error          string    // of the last try, if it failed
}

// worker serves one target. Its fields are guarded by the dispatcher's lock.
type worker struct {
	d      *Dispatcher
	target *Target
	queue  *queue
	wake   chan struct{}
	stop   context.CancelFunc
	stat   Stat
	failed int // tries in a row
	retry  time.Time
	hold   map[*item]time.Time
	fresh  []alert.Alert // to be told again, for a refresher
}

const (
	firstRetry = time.Second
	lastRetry  = time.Minute
	// sendTimeout bounds a try, whatever the target's own limits are.
	sendTimeout = time.Minute
)

// New returns a dispatcher without targets.
func New(o Options) *Dispatcher { return &Dispatcher{o: o, workers: make(map[string]*worker)} }

// Configure changes the targets. What waits for one that stays goes on waiting.
func (d *Dispatcher) Configure(targets []*Target) []alert.Problem {
	d.mu.Lock()
	defer d.mu.Unlock()
	var problems []alert.Problem
	for name, w := range d.workers {
		if !slices.ContainsFunc(targets, func(t *Target) bool { return t.Name == name }) {
			if n := len(w.queue.items); n > 0 {
				d.o.Log.Warn("a notifier is gone, what waits for it stays on disk", "notifier", name, "notifications", n)
			}
			if w.stop != nil {
				w.stop()
			}
			delete(d.workers, name)
		}
	}
	for _, t := range targets {
		if w := d.workers[t.Name]; w != nil {
			w.target, w.retry, w.failed = t, time.Time{}, 0
			w.stat.Type = t.Type
			w.poke()
			continue
		}
		q, broken, err := openQueue(filepath.Join(d.o.Dir, t.Name))
		if err != nil {
			problems = append(problems, alert.Problem{Of: "notifier " + t.Name, Text: err.Error()})
			continue
		}
		for _, file := range broken {
			d.o.Log.Error("a notification on disk cannot be read and is set aside", "notifier", t.Name, "file", file)
		}
		w := &worker{d: d, target: t, queue: q, wake: make(chan struct{}, 1), stat: Stat{Notifier: t.Name, Type: t.Type, GivenUp: uint64(len(broken))}, hold: make(map[*item]time.Time)}
		d.workers[t.Name] = w
		if d.ctx != nil {
			w.start(d.ctx)
		}
	}
	return problems
}

// Run serves the targets until ctx ends. What is not delivered waits on disk.
func (d *Dispatcher) Run(ctx context.Context) {
	d.mu.Lock()
	d.ctx = ctx
	for _, w := range d.workers {
		w.start(ctx)
	}
	d.mu.Unlock()
	<-ctx.Done()
	d.running.Wait()
}

// Wanted names the targets that are to be told of an alert.
func (d *Dispatcher) Wanted(a *alert.Alert) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []string
	for name, w := range d.workers {
		if w.target.wants(a) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// Notify queues an alert for targets by name. It is on disk when it returns,
// unless the disk fails, which is told.
func (d *Dispatcher) Notify(a alert.Alert, names []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, name := range names {
		w := d.workers[name]
		if w == nil || w.queue.holds(&a) {
			continue
		}
		a.Undelivered = nil
		gaveUp, err := w.queue.push(a, time.Now())
		if err != nil {
			d.o.Log.Error("a notification is kept in memory only", "notifier", name, "error", err)
		}
		if gaveUp != nil {
			w.giveUp(gaveUp, errors.New("too many wait"))
		}
		w.poke()
	}
}

// Refresh tells targets that forget what they are not told again what fires.
func (d *Dispatcher) Refresh(firing []alert.Alert) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.workers {
		if _, is := w.target.sender.(refresher); !is {
			continue
		}
		w.fresh = nil
		for _, a := range firing {
			if w.target.wants(&a) {
				w.fresh = append(w.fresh, a)
			}
		}
		w.poke()
	}
}

// Stats lists the targets by name.
func (d *Dispatcher) Stats() []Stat {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []Stat
	for _, w := range d.workers {
		s := w.stat
		if s.Queued = len(w.queue.items); s.Queued > 0 {
			s.Oldest = w.queue.items[0].Queued
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b Stat) int {
		if a.Notifier < b.Notifier {
			return -1
		}
		return 1
	})
	return out
}

// Problem says what is wrong with a target; empty if nothing is.
func (s *Stat) Problem() string {
	if s.Error == "" {
		return ""
	}
	text := fmt.Sprintf("notifier %s: %s", s.Notifier, s.Error)
	if s.Queued > 0 {
		text += fmt.Sprintf("; %d wait since %s", s.Queued, s.Oldest.UTC().Format(time.RFC3339))
	}
	if s.GivenUp > 0 {
		text += fmt.Sprintf("; %d were given up", s.GivenUp)
	}
	return text
}

func (w *worker) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *worker) start(ctx context.Context) {
	ctx, w.stop = context.WithCancel(ctx)
	w.d.running.Go(func() { w.run(ctx) })
}

func (w *worker) run(ctx context.Context) {
	for ctx.Err() == nil {
		wait := w.step(ctx)
		if wait <= 0 {
			continue
		}
		select {
		case <-time.After(wait):
		case <-w.wake:
		case <-ctx.Done():
		}
	}
}

// idle is how long a worker sleeps that has nothing to do.
const idle = time.Hour

// step makes one try, and returns how long to wait for the next one.
func (w *worker) step(ctx context.Context) time.Duration {
	w.d.mu.Lock()
	target := w.target
	now := time.Now()
	if wait := w.retry.Sub(now); wait > 0 {
		w.d.mu.Unlock()
		return wait
	}
	due, wait := w.due(now)
	fresh := w.fresh
	w.fresh = nil
	w.d.mu.Unlock()
	if len(due) == 0 && len(fresh) == 0 {
		return wait
	}
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	err := w.try(ctx, target, due, fresh)
	if err != nil && errors.Is(context.Cause(ctx), context.Canceled) {
		return 0 // the program ends: nothing failed
	}
	w.d.mu.Lock()
	defer w.d.mu.Unlock()
	w.done(due, err)
	return 0
}

func (w *worker) try(ctx context.Context, t *Target, due []*item, fresh []alert.Alert) error {
	if len(due) > 0 {
		alerts := make([]alert.Alert, len(due))
		for i := range due {
			alerts[i] = due[i].Alert
		}
		if err := t.sender.Send(ctx, alerts); err != nil {
			return err
		}
	}
	if r, is := t.sender.(refresher); is && len(fresh) > 0 {
		return r.Refresh(ctx, fresh)
	}
	return nil
}

// due takes what can be sent now, and gives up what has waited for too long.
func (w *worker) due(now time.Time) (due []*item, wait time.Duration) {
	wait = idle
	seen := make(map[string]bool) // what happened to an alert is told in order
	for _, i := range slices.Clone(w.queue.items) {
		if now.Sub(i.Queued) > w.target.giveUp {
			w.queue.remove(i)
			delete(w.hold, i)
			w.giveUp(i, fmt.Errorf("it waited for %s", w.target.giveUp))
			continue
		}
		if seen[i.Alert.ID] {
			continue
		}
		seen[i.Alert.ID] = true
		until, held := w.hold[i]
		if h, is := w.target.sender.(holder); is && !held {
			until = h.Hold(&i.Alert)
		}
		if left := until.Sub(now); left > 0 {
			w.hold[i] = until
			wait = min(wait, left)
			continue
		}
		if due = append(due, i); len(due) == w.target.sender.Batch() {
			break
		}
	}
	return due, wait
}

// done takes in how a try went.
func (w *worker) done(due []*item, err error) {
	var refused refusedError
	if err == nil || errors.As(err, &refused) {
		for _, i := range due {
			w.queue.remove(i)
			delete(w.hold, i)
			if err != nil {
				w.giveUp(i, err)
				continue
			}
			w.stat.Sent++
			w.deliver(i)
		}
	}
	if err == nil {
		w.failed, w.stat.Error = 0, ""
		return
	}
	if w.stat.Failed++; w.failed == 0 {
		w.d.o.Log.Error("a notifier cannot be told, trying again", "notifier", w.target.Name, "error", err)
	}
	w.stat.Error = err.Error()
	wait := min(firstRetry<<min(w.failed, 10), lastRetry)
	wait -= time.Duration(rand.Int64N(int64(wait / 4))) // so that many do not come at once
	var later laterError
	if errors.As(err, &later) {
		wait = max(wait, later.after)
	}
	w.failed++
	w.retry = time.Now().Add(wait)
}

func (w *worker) deliver(i *item) {
	if w.d.o.Delivered != nil {
		w.d.o.Delivered(&i.Alert, w.target.Name)
	}
}

func (w *worker) giveUp(i *item, why error) {
	w.stat.GivenUp++
	w.d.o.Log.Error("a notification is given up", "notifier", w.target.Name, "alert", i.Alert.ID, "rule", i.Alert.Rule, "error", why)
	w.deliver(i)
}
