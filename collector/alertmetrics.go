package collector

import (
	"github.com/prometheus/client_golang/prometheus"
)

// alertMetrics tells Prometheus about alerts and who is told of them.
type alertMetrics struct {
	*alerting

	firing, pending, fired, overflow, problems, leads *prometheus.Desc
	notifications, queued, oldest                     *prometheus.Desc
}

func newAlertMetrics(a *alerting) *alertMetrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("flowaudit_"+name, help, labels, nil)
	}
	target := []string{"notifier", "type"}
	return &alertMetrics{
		alerting: a,
		firing:   desc("alerts_firing", "Alerts that fire, by rule.", "rule", "severity"),
		pending:  desc("alerts_pending", "Alerts whose condition holds, not yet for as long as their rule wants."),
		fired:    desc("alerts_fired_total", "Alerts that began to fire."),
		overflow: desc("alerts_overflow_total", "Events of groups that a rule had no room for: the rule groups by too much."),
		problems: desc("alerts_config_problems", "Rules and notifiers that are not used, because something is wrong with them."),
		leads:    desc("alerts_leader", "1 at the collector that tells of alerts."),

		notifications: desc("notifications_total", "Notifications that were taken (sent), tries that failed, and notifications given up.", append(target, "result")...),
		queued:        desc("notifications_queued", "Notifications that wait to be taken.", target...),
		oldest:        desc("notifications_oldest_timestamp_seconds", "Since when the oldest of them waits; 0 if none does.", target...),
	}
}

// Describe implements prometheus.Collector.
func (m *alertMetrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.firing, m.pending, m.fired, m.overflow, m.problems, m.leads, m.notifications, m.queued, m.oldest} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (m *alertMetrics) Collect(out chan<- prometheus.Metric) {
	s := m.stats()
	for k, n := range s.Firing {
		gauge(out, m.firing, float64(n), k.Rule, k.Severity)
	}
	gauge(out, m.pending, float64(s.Pending))
	counter(out, m.fired, s.Fired)
	counter(out, m.overflow, s.Overflow)
	gauge(out, m.problems, float64(s.Problems))
	gauge(out, m.leads, number(s.Leads))
	for _, n := range s.Notifiers {
		for result, count := range map[string]uint64{"sent": n.Sent, "failed": n.Failed, "given_up": n.GivenUp} {
			counter(out, m.notifications, count, n.Notifier, n.Type, result)
		}
		gauge(out, m.queued, float64(n.Queued), n.Notifier, n.Type)
		gauge(out, m.oldest, seconds(n.Oldest), n.Notifier, n.Type)
	}
}
