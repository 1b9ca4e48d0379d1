package notify

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/flowaudit/flowaudit/collector/alert"
)

// alertmanager speaks Alertmanager's API v2.
type alertmanager struct {
	post *post

	mu   sync.Mutex
	told map[string]time.Time // alerts that fire, by ID: when it was told first
}

// postable is an alert as POST /api/v2/alerts takes it.
type postable struct {
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	Starts      time.Time         `json:"startsAt"`
	Ends        time.Time         `json:"endsAt"`
	Generator   string            `json:"generatorURL,omitempty"`
}

const (
	// stays is how long Alertmanager takes an alert for firing that it is not
	// told of again: several times what it is told every minute.
	stays = 5 * time.Minute
	// settle is how long a resolution is held back after Alertmanager was told
	// that the alert fires: one that is over before its group_wait (30 s by
	// default) nobody is told of.
	settle = time.Minute
)

func newAlertmanager(s *Spec) (*alertmanager, error) {
	p, err := newPost(s)
	return &alertmanager{post: p, told: make(map[string]time.Time)}, err
}

// Batch implements Sender.
func (*alertmanager) Batch() int { return 64 }

// Hold implements holder.
func (m *alertmanager) Hold(a *alert.Alert) time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	if told, known := m.told[a.ID]; known && a.State == alert.Resolved {
		return told.Add(settle)
	}
	return time.Time{}
}

// Send implements Sender.
func (m *alertmanager) Send(ctx context.Context, alerts []alert.Alert) error {
	now := time.Now()
	var list []postable
	for i := range alerts {
		list = append(list, postableOf(&alerts[i], now))
	}
	if err := m.send(ctx, list); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range alerts {
		if a := &alerts[i]; a.State == alert.Resolved {
			delete(m.told, a.ID)
		} else if _, known := m.told[a.ID]; !known {
			m.told[a.ID] = now
		}
	}
	return nil
}

// Refresh implements refresher.
func (m *alertmanager) Refresh(ctx context.Context, firing []alert.Alert) error {
	now := time.Now()
	var list []postable
	for i := range firing {
		list = append(list, postableOf(&firing[i], now))
	}
	return m.send(ctx, list)
}

func (m *alertmanager) send(ctx context.Context, list []postable) error {
	body, err := json.Marshal(list)
	if err != nil {
		return refusedError{fmt.Errorf("write alerts: %w", err)}
	}
	return m.post.send(ctx, "/api/v2/alerts", "application/json", body, nil)
}

func postableOf(a *alert.Alert, now time.Time) postable {
	p := postable{Labels: a.Labels, Annotations: annotations(a), Starts: a.Started, Ends: now.Add(stays), Generator: a.Link}
	if a.State == alert.Resolved {
		p.Ends = a.Ended
	}
	if !strings.Contains(p.Generator, "://") {
		p.Generator = ""
	}
	return p
}

// annotations are what an alert says beside its labels.
func annotations(a *alert.Alert) map[string]string {
	out := map[string]string{"summary": a.Summary, "command": a.Command, "id": a.ID}
	set := func(name, value string) {
		if value != "" {
			out[name] = value
		}
	}
	set("description", description(a))
	set("explanation", a.Explanation)
	set("nearest_miss", a.NearestMiss)
	set("runbook_url", a.Runbook)
	set("link", a.Link)
	if a.Change != nil {
		set("change", a.Change.String())
	}
	return out
}

// description says in a sentence or two since when and how often.
func description(a *alert.Alert) string {
	if a.Detail != "" {
		return a.Detail
	}
	text := fmt.Sprintf("%d %s since %s", a.Count, plural(a.Count, "connection"), a.Since.UTC().Format(time.RFC3339))
	if a.Last.After(a.Since) {
		text += ", the last at " + a.Last.UTC().Format(time.RFC3339)
	}
	if a.Times > 1 {
		text += fmt.Sprintf("; it fires for the %d. time", a.Times)
	}
	return text
}

func plural(n uint64, word string) string {
	if n == 1 {
		return word
	}
	return word + "s"
}
