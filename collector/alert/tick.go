package alert

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"text/template"
	"time"
)

// Tick is what has become of the alerts since the last one.
type Tick struct {
	Notify []Alert // that fire, or have resolved, and were not told yet
	Save   []Record
}

// Record is an alert as it is kept, so that another engine can go on with it.
type Record struct {
	Alert
	Key groupKey `json:"key"`
}

// saveEvery is how old what is kept of a firing alert's counts may be.
const saveEvery = 20 * time.Second

// forgetAfter is how long it is known that an alert has fired before.
const forgetAfter = 24 * time.Hour

// over reports whether a group can be forgotten.
func (g *group) over(r *compiled, now time.Time) bool {
	quiet := now.Sub(later(g.seen, g.met))
	switch g.alert.State {
	case Firing, Pending:
		return false
	case Resolved:
		return quiet > forgetAfter
	}
	return quiet > max(time.Minute, g.within(r)) && (g.alert.Times == 0 || quiet > forgetAfter)
}

// Tick looks at all groups. It is called every second or so.
func (e *Engine) Tick(now time.Time) Tick {
	e.nodes.now, e.ticked, e.awake = now, now, false
	e.silences = slices.DeleteFunc(e.silences, func(s Silence) bool { return now.After(s.Ends) })
	e.watchNodes(now)
	link, err := parseTemplate("link_template", e.config.link())
	if err != nil {
		link = nil // Parse has named it
	}
	var out Tick
	e.counts.Firing, e.counts.Pending, e.counts.Full = make(map[RuleSeverity]int), 0, e.memory.full
	for _, g := range e.ended {
		g.alert.State, g.alert.Ended = Resolved, now
		g.alert.Detail = cmp.Or(g.alert.Detail, "its rule is gone")
		out.tell(g, now)
	}
	e.ended = nil
	for _, r := range e.rules {
		for key, g := range r.groups {
			e.step(r, g, now, link, &out)
			if g.over(r, now) {
				delete(r.groups, key)
			}
		}
	}
	slices.SortFunc(out.Notify, func(a, b Alert) int { return cmp.Or(a.Started.Compare(b.Started), cmp.Compare(a.ID, b.ID)) })
	return out
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// step moves one group on.
func (e *Engine) step(r *compiled, g *group, now time.Time, link *template.Template, out *Tick) {
	a := &g.alert
	switch a.State {
	case Pending:
		e.counts.Pending++
		e.stepPending(r, g, now, link)
	case Firing:
		e.stepFiring(r, g, now, link)
	}
	if a.State == Firing {
		e.counts.Firing[RuleSeverity{a.Rule, a.Severity}]++
		a.SilencedBy = e.silencedBy(a, now)
		ack, known := e.acks[a.ID]
		if a.Acknowledged = nil; known && now.Before(ack.Until) {
			a.Acknowledged = &ack
		}
		if !a.Notified && a.SilencedBy == "" && a.Acknowledged == nil {
			a.Notified = true
			out.Notify = append(out.Notify, *a)
			g.saved = time.Time{}
		}
		if g.changed && now.Sub(g.saved) >= saveEvery {
			g.save(now, out)
		}
		return
	}
	if a.State == Resolved && a.Ended.Equal(now) {
		out.tell(g, now)
	}
}

func (t *Tick) tell(g *group, now time.Time) {
	if g.alert.Notified {
		t.Notify = append(t.Notify, g.alert)
	}
	g.save(now, t)
}

func (g *group) save(now time.Time, out *Tick) {
	g.changed, g.saved = false, now
	out.Save = append(out.Save, Record{g.alert, g.key})
}

func (e *Engine) stepPending(r *compiled, g *group, now time.Time, link *template.Template) {
	if e.said(r, g) {
		g.unless = true
	}
	switch {
	case g.window != nil && g.window.value(now) < r.Count.Clear && now.Sub(g.met) > time.Second, now.Sub(g.met) > time.Duration(r.KeepFiring):
		g.alert.State = ""
	case !g.unless && now.Sub(g.pending) >= time.Duration(r.For):
		g.fire(r, now, e.config, e.judge, link)
		e.counts.Fired++
		g.changed, g.saved = true, time.Time{}
	}
}

func (e *Engine) stepFiring(r *compiled, g *group, now time.Time, link *template.Template) {
	if now.Sub(g.met) < time.Duration(r.KeepFiring) {
		if g.changed && now.Sub(g.saved) >= saveEvery {
			g.render(r, link)
		}
		return
	}
	g.render(r, link)
	g.alert.State, g.alert.Ended = Resolved, now
	g.example = nil
}

// said reports whether an alert of a better rule is about the same source, or
// about the same change.
func (e *Engine) said(r *compiled, g *group) bool {
	if len(r.Unless) == 0 {
		return false
	}
	for _, o := range e.rules {
		if !slices.Contains(r.Unless, o.Name) {
			continue
		}
		for _, other := range o.groups {
			if s := other.alert.State; s != Firing && s != Pending || other.key.Cluster != g.key.Cluster {
				continue
			}
			if o.by.source && other.key.From == g.key.From || o.by.change && other.aboutChange(g) {
				return true
			}
		}
	}
	return false
}

// aboutChange reports whether the flow that a group is about is one of those
// that a change denies.
func (g *group) aboutChange(o *group) bool {
	if o.example == nil || g.alert.Change == nil {
		return false
	}
	return g.alert.Change.concerns(o.example) && !o.alert.Since.Before(g.alert.Change.Time.Add(-clockSlack))
}

// Restore goes on with alerts that another engine kept.
func (e *Engine) Restore(records []Record, now time.Time) {
	for _, rec := range records {
		i := slices.IndexFunc(e.rules, func(r *compiled) bool { return r.Name == rec.Rule })
		if rec.State != Firing {
			if i >= 0 && now.Sub(rec.Last) < forgetAfter {
				g := e.group(e.rules[i], rec.Key)
				g.alert, g.seen = rec.Alert, now
			}
			continue
		}
		if i < 0 {
			e.ended = append(e.ended, &group{key: rec.Key, alert: rec.Alert})
			continue
		}
		g := e.group(e.rules[i], rec.Key)
		g.alert, g.met = rec.Alert, now
	}
}

// EncodeRecord is a record's JSON.
func EncodeRecord(r *Record) ([]byte, error) { return json.Marshal(r) }

// DecodeRecord reads what EncodeRecord wrote.
func DecodeRecord(text []byte) (Record, error) {
	var r Record
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("read alert: %w", err)
	}
	return r, nil
}

// Stats counts alerts as of the last Tick.
func (e *Engine) Stats() Stats {
	s := e.counts
	s.Firing = make(map[RuleSeverity]int, len(e.rules))
	for _, r := range e.rules {
		s.Firing[RuleSeverity{r.Name, r.Severity}] = 0
	}
	maps.Copy(s.Firing, e.counts.Firing)
	return s
}

// Alerts gives the alerts that fire or are pending.
func (e *Engine) Alerts() []Alert {
	var out []Alert
	for _, r := range e.rules {
		for _, g := range r.groups {
			if g.alert.State == Firing || g.alert.State == Pending {
				out = append(out, g.alert)
			}
		}
	}
	return out
}
