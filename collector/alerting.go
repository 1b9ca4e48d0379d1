package collector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flowaudit/flowaudit/collector/alert"
	"github.com/flowaudit/flowaudit/collector/alert/notify"
	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
)

// AlertOptions say what alerts are raised and who is told.
type AlertOptions struct {
	// Config is a file of rules and notifiers, read again when it changes;
	// empty for the default rules.
	Config        string
	Alertmanagers []string // URLs of further notifiers
	LinkTemplate  string   // unless the file has one
	// Queue is the directory of what notifiers were not told yet; empty keeps
	// it in a temporary one.
	Queue string
	// Lease is NAMESPACE/NAME of the Lease by which one of many collectors
	// tells; empty where there is one collector.
	Lease string
}

func (o *AlertOptions) validate() error {
	for _, u := range o.Alertmanagers {
		if _, err := notify.Alertmanager(u, notify.Options{}); err != nil {
			return err
		}
	}
	if namespace, name, ok := strings.Cut(o.Lease, "/"); o.Lease != "" && (!ok || namespace == "" || name == "" || strings.Contains(name, "/")) {
		return fmt.Errorf("--alert-lease %q: want NAMESPACE/NAME", o.Lease)
	}
	if o.Config == "" {
		return nil
	}
	if _, err := os.Stat(o.Config); err != nil {
		return fmt.Errorf("--alert-config: %w", err)
	}
	return nil
}

// alerting evaluates rules on what is committed, and tells.
type alerting struct {
	AlertOptions
	store  store.Store
	log    *slog.Logger
	sender *notify.Dispatcher
	notify notify.Options
	nodes  func() []string // of the cluster; none if they are not known
	relay  *relay          // nil where there is one collector

	mu     sync.Mutex // guards what follows
	engine *alert.Engine
	intake *intake // what other collectors tell
	config *alert.Config
	bad    []alert.Problem // of the file
	text   string          // of the file
	leads  bool            // this collector tells
	known  bool            // the past is known to the engine
	// restored says that the alerts are known that another engine kept.
	restored bool
	early    []flow.Flow // what came before it was
	missed   uint64      // of early
	unsaved  []store.Document
	waiting  map[string]alert.Record // what notifiers were not told yet, by the alert's ID
	synced   time.Time               // when silences were read

	// newsMu guards news by itself.
	newsMu sync.Mutex
	news   []flow.Change // that the engine was not told yet

	// told guards deliveries by itself: it is taken with the dispatcher's lock.
	told       sync.Mutex
	deliveries []delivery
}

// delivery says that a notifier was told of an alert, or never will be.
type delivery struct {
	id       string
	state    alert.State
	started  time.Time
	notifier string
}

const (
	tickInterval   = time.Second
	configInterval = 5 * time.Second
	// syncInterval is how old silences may be that another collector took.
	syncInterval = 2 * time.Second
	// refreshInterval is how often Alertmanager is told what still fires.
	refreshInterval = time.Minute
	// maxEarly bounds the flows that wait until the past is known.
	maxEarly = 200_000
	// alertRetention is how long alerts are kept that are over.
	alertRetention = 400 * 24 * time.Hour
)

// Kinds of documents.
const (
	alertKind   = "alert"
	silenceKind = "silence"
	ackKind     = "acknowledgment"
)

func newAlerting(o AlertOptions, s store.Store, j alert.Judge, events notify.Sender, nodes func() []string, log *slog.Logger) (*alerting, error) {
	a := &alerting{AlertOptions: o, store: s, log: log, nodes: nodes, intake: &intake{store: s}, leads: o.Lease == "", waiting: make(map[string]alert.Record)}
	if a.Lease != "" {
		a.relay = &relay{store: s, instance: instanceName()}
	}
	if a.Queue == "" {
		dir, err := os.MkdirTemp("", "flowaudit-alerts-")
		if err != nil {
			return nil, fmt.Errorf("make a queue for notifications: %w", err)
		}
		a.Queue = dir
	}
	a.notify = notify.Options{Dir: a.Queue, Log: log, Events: events, Delivered: a.delivered}
	a.sender = notify.New(a.notify)
	a.engine = alert.NewEngine(alert.Parse(nil), j)
	return a, a.reload(true)
}

// reload reads the file if it has changed. A file that is away changes nothing.
func (a *alerting) reload(first bool) error {
	text := ""
	if a.Config != "" {
		b, err := os.ReadFile(a.Config)
		if err != nil {
			if first {
				return fmt.Errorf("read --alert-config: %w", err)
			}
			a.log.Error("the alert configuration cannot be read, the one before stays", "error", err)
			return nil
		}
		text = string(b)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !first && text == a.text {
		return nil
	}
	a.text = text
	config := alert.Parse([]byte(text))
	if config.LinkTemplate == "" {
		config.LinkTemplate = a.LinkTemplate
	}
	targets, bad := notify.Parse(config.Notifiers, a.notify)
	for _, u := range a.Alertmanagers {
		t, err := notify.Alertmanager(u, a.notify)
		if err != nil {
			return err
		}
		targets = append(targets, t)
	}
	a.bad = append(append(config.Problems, bad...), a.sender.Configure(targets)...)
	a.config = config
	a.engine.Configure(config)
	for _, p := range a.bad {
		a.log.Error("a part of the alert configuration is not used", "file", a.Config, "problem", p.String())
	}
	a.log.Info("alert rules read", "rules", len(config.Rules), "notifiers", len(targets), "problems", len(a.bad))
	if !first {
		// Rules may ask for edges that none asked for before.
		a.known = false
	}
	return nil
}

// committed evaluates what was just stored. The flows are not kept.
func (a *alerting) committed(batches []flow.Batch) {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.hear()
	for i := range batches {
		b := &batches[i]
		a.engine.Heard(now, b)
		switch {
		case a.relay != nil && !a.leads:
			a.relay.add(a.engine.Sift(b.Flows), b)
		case a.known:
			a.engine.Observe(now, b.Flows)
		default:
			n := min(len(b.Flows), maxEarly-len(a.early))
			a.early = append(a.early, b.Flows[:n]...)
			a.missed += uint64(len(b.Flows) - n)
		}
	}
}

// changed takes in a change of policies.
//
// The index tells it with its lock held, and the engine asks the index with
// a.mu held: so this takes a lock of its own, and no other.
func (a *alerting) changed(c *flow.Change) {
	a.newsMu.Lock()
	defer a.newsMu.Unlock()
	a.news = append(a.news, *c)
}

// hear gives the engine what has changed. The lock must be held.
func (a *alerting) hear() {
	a.newsMu.Lock()
	news := a.news
	a.news = nil
	a.newsMu.Unlock()
	for i := range news {
		a.engine.Changed(&news[i])
	}
}

// run works until ctx ends.
func (a *alerting) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		a.sender.Run(ctx)
		return nil
	})
	group.Go(func() error {
		a.every(ctx, configInterval, func() { _ = a.reload(false) }) // it has logged
		return nil
	})
	group.Go(func() error {
		a.every(ctx, refreshInterval, a.refresh)
		return nil
	})
	group.Go(func() error {
		a.every(ctx, tickInterval, func() { a.step(ctx) })
		return nil
	})
	return group.Wait()
}

func (*alerting) every(ctx context.Context, d time.Duration, do func()) {
	ticker := time.NewTicker(d)
	defer ticker.Stop()
	for ctx.Err() == nil {
		do()
		select {
		case <-ticker.C:
		case <-ctx.Done():
		}
	}
}

// step moves the alerts on, once a second.
func (a *alerting) step(ctx context.Context) {
	a.mu.Lock()
	leads, known := a.leads, a.known
	a.mu.Unlock()
	now := time.Now()
	if a.relay != nil {
		a.carry(ctx, leads, now)
	}
	if !leads {
		return
	}
	if !known {
		if err := a.learn(ctx); err != nil {
			if ctx.Err() == nil {
				a.log.Error("alerts wait for what was recorded, trying again", "error", err)
			}
			return
		}
	}
	a.mu.Lock()
	synced := a.synced
	a.mu.Unlock()
	if synced.IsZero() || a.Lease != "" && now.Sub(synced) >= syncInterval {
		if err := a.sync(ctx, now); err != nil && ctx.Err() == nil {
			a.log.Error("silences cannot be read", "error", err)
		}
	}
	a.tick(now)
	a.save(ctx)
}

// carry writes what another collector is to tell of, or reads it.
func (a *alerting) carry(ctx context.Context, leads bool, now time.Time) {
	ctx, cancel := context.WithTimeout(ctx, retryInterval)
	defer cancel()
	if err := a.relay.flush(ctx, now); err != nil {
		a.log.Error("the collector that tells of alerts is not told, trying again", "error", err)
	}
	if !leads {
		return
	}
	a.mu.Lock()
	others := a.intake
	a.mu.Unlock()
	batches, err := others.read(ctx, now)
	if err != nil {
		a.log.Error("alerts are missing what other collectors took", "error", err)
	}
	a.committed(batches)
}

// lead begins to tell, or ends.
func (a *alerting) lead(leads bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.leads == leads {
		return
	}
	a.leads, a.known, a.restored, a.early = leads, false, false, nil
	a.synced, a.waiting, a.intake = time.Time{}, make(map[string]alert.Record), &intake{store: a.store}
	a.engine.Reset()
}

// tick moves the engine on, and hands what it tells to the notifiers: what is
// in their queues is on disk before the alert is kept as told.
func (a *alerting) tick(now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.hear()
	a.engine.Present(a.nodes())
	tick := a.engine.Tick(now)
	for _, n := range tick.Notify {
		names := a.sender.Wanted(&n)
		a.waiting[n.ID] = alert.Record{Alert: alert.Alert{ID: n.ID, State: n.State, Started: n.Started, Undelivered: names}}
		a.sender.Notify(n, names)
		a.log.Info("alert", "state", n.State, "rule", n.Rule, "severity", n.Severity, "id", n.ID, "summary", n.Summary)
	}
	for i := range tick.Save {
		a.keep(&tick.Save[i], now)
	}
	a.told.Lock()
	deliveries := a.deliveries
	a.deliveries = nil
	a.told.Unlock()
	for _, d := range deliveries {
		r, known := a.waiting[d.id]
		if known && r.State == d.state && r.Started.Equal(d.started) {
			r.Undelivered = slices.DeleteFunc(slices.Clone(r.Undelivered), func(name string) bool { return name == d.notifier })
			a.waiting[d.id] = r
			if r.Rule != "" {
				a.keep(&r, now)
			}
		}
	}
}

// keep puts an alert on its way into the store. The lock must be held.
func (a *alerting) keep(r *alert.Record, now time.Time) {
	if w, waits := a.waiting[r.ID]; waits && w.State == r.State && w.Started.Equal(r.Started) {
		r.Undelivered = w.Undelivered
		if a.waiting[r.ID] = *r; len(r.Undelivered) == 0 {
			delete(a.waiting, r.ID)
		}
	}
	body, err := alert.EncodeRecord(r)
	if err != nil {
		a.log.Error("an alert is not kept", "id", r.ID, "error", err)
		return
	}
	a.unsaved = append(a.unsaved, store.Document{Kind: alertKind, ID: r.ID, Time: now, Body: body})
}

// maxUnsaved bounds what waits for a store that refuses.
const maxUnsaved = 20_000

// save writes what waits for the store.
func (a *alerting) save(ctx context.Context) {
	a.mu.Lock()
	documents := a.unsaved
	a.unsaved = nil
	a.mu.Unlock()
	if len(documents) == 0 {
		return
	}
	writing, cancel := context.WithTimeout(context.WithoutCancel(ctx), retryInterval)
	defer cancel()
	if err := a.store.Put(writing, documents); err != nil {
		a.log.Error("alerts are not stored yet, trying again", "alerts", len(documents), "error", err)
		a.mu.Lock()
		if a.unsaved = append(documents, a.unsaved...); len(a.unsaved) > maxUnsaved {
			a.unsaved = a.unsaved[len(a.unsaved)-maxUnsaved:]
		}
		a.mu.Unlock()
	}
}

// delivered is called when a notifier was told, or gave up.
func (a *alerting) delivered(n *alert.Alert, notifier string) {
	a.told.Lock()
	defer a.told.Unlock()
	a.deliveries = append(a.deliveries, delivery{n.ID, n.State, n.Started, notifier})
}

// refresh tells notifiers that forget.
func (a *alerting) refresh() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.leads {
		return
	}
	var firing []alert.Alert
	for _, f := range a.engine.Alerts() {
		if f.State == alert.Firing && f.Notified {
			firing = append(firing, f)
		}
	}
	a.sender.Refresh(firing)
}

// problems says what of the configuration is not used, and who cannot be told.
func (a *alerting) problems() []string {
	var out []string
	a.mu.Lock()
	for _, p := range a.bad {
		out = append(out, "alerts: "+p.String())
	}
	if a.relay != nil {
		if n := a.relay.lost(); n > 0 {
			out = append(out, fmt.Sprintf("alerts: %d flows were not told to the collector that evaluates them: more came in a second than are passed on", n))
		}
	}
	if a.missed > 0 {
		out = append(out, fmt.Sprintf("alerts: %d flows came before the past was known and were not evaluated", a.missed))
	}
	a.mu.Unlock()
	for _, s := range a.sender.Stats() {
		if text := s.Problem(); text != "" {
			out = append(out, "alerts: "+text)
		}
	}
	return out
}

// alertStats counts alerts and notifications, for metrics.
type alertStats struct {
	alert.Stats
	Notifiers []notify.Stat
	Problems  int  // parts of the configuration that are not used
	Leads     bool // this collector tells
}

func (a *alerting) stats() alertStats {
	a.mu.Lock()
	defer a.mu.Unlock()
	return alertStats{Stats: a.engine.Stats(), Notifiers: a.sender.Stats(), Problems: len(a.bad), Leads: a.leads}
}

// retain deletes alerts that are long over.
func (a *alerting) retain(ctx context.Context, now time.Time) error {
	return errors.Join(a.store.Discard(ctx, alertKind, now.Add(-alertRetention)), a.store.Discard(ctx, store.ShortLived, now.Add(-time.Hour)))
}
