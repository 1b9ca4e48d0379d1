package suggest

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
	batchv1 "k8s.io/api/batch/v1"

	"github.com/flowaudit/flowaudit/policy/history"
	"github.com/flowaudit/flowaudit/policy/replay"
)

// Schedule is a CronJob.
type Schedule struct {
	Namespace, Name string
	Cron            string // as in its spec
	TimeZone        string // "" means UTC
	Suspended       bool
	Created         time.Time // zero if it is not known
}

// Schedules are those of CronJobs; not nil, as they are known then.
func Schedules(jobs []*batchv1.CronJob) []Schedule {
	out := make([]Schedule, 0, len(jobs))
	for _, c := range jobs {
		s := Schedule{Namespace: c.Namespace, Name: c.Name, Cron: c.Spec.Schedule, Created: c.CreationTimestamp.Time, Suspended: c.Spec.Suspend != nil && *c.Spec.Suspend}
		if c.Spec.TimeZone != nil {
			s.TimeZone = *c.Spec.TimeZone
		}
		out = append(out, s)
	}
	return out
}

func (s *Schedule) validate() error {
	if _, err := s.parse(); err != nil {
		return fmt.Errorf("CronJob %s/%s: %w", s.Namespace, s.Name, err)
	}
	return nil
}

func (s *Schedule) parse() (cron.Schedule, error) {
	text := s.Cron
	if strings.Contains(text, "TZ") { // its parser panics on some of them
		return nil, fmt.Errorf("schedule %q: a time zone belongs into spec.timeZone", text)
	}
	if s.TimeZone != "" {
		text = "CRON_TZ=" + s.TimeZone + " " + text
	}
	return cron.ParseStandard(text)
}

// due counts how often the schedule came within a time, up to a bound, and
// says when it comes next.
func (s *Schedule) due(since, until time.Time) (times int, next time.Time) {
	parsed, err := s.parse()
	if err != nil {
		return 0, time.Time{}
	}
	if s.Created.After(since) {
		since = s.Created
	}
	next = parsed.Next(since.UTC())
	for times < 1000 && !next.IsZero() && !next.After(until) {
		times++
		next = parsed.Next(next)
	}
	return times, next
}

const (
	// fullCoverage is the share of time that may be blind.
	fullBlind = 0.01
	// settled is how long nothing new was seen of a workload that is ready.
	settled = 24 * time.Hour
)

// readiness says of each workload in the scope whether it was watched enough.
func (r *run) readiness() {
	r.out.Ready = true
	for _, g := range r.grouping.groups {
		if !r.scope[g] {
			continue
		}
		for _, w := range g.workloads {
			if r.o.wants(w) {
				r.ready(g, w)
			}
		}
	}
	r.neverRan()
	r.coverage()
	if len(r.out.Policies) == 0 {
		r.out.Ready = false
	}
	slices.SortFunc(r.out.Readiness, func(a, b Readiness) int {
		if a.Namespace != b.Namespace {
			return strings.Compare(a.Namespace, b.Namespace)
		}
		return strings.Compare(a.Workload, b.Workload)
	})
}

func (r *run) ready(g *group, w *history.Workload) {
	since := w.First
	if since.Before(r.h.Since) {
		since = r.h.Since
	}
	if len(r.h.Edges) > 0 && since.Before(r.h.Edges[0].First) {
		since = r.h.Edges[0].First // before the first traffic nobody was watching
	}
	out := Readiness{Namespace: w.Namespace, Workload: w.String(), Watched: r.h.Until.Sub(since), Egress: w.Egress, Ingress: w.Ingress}
	out.Days = float64(int(out.Watched.Hours()/24*10)) / 10
	because := func(format string, args ...any) { out.Reasons = append(out.Reasons, fmt.Sprintf(format, args...)) }
	if out.Watched < r.o.ReadyAfter {
		because("watched for %.1f days, less than %.1f", out.Watched.Hours()/24, r.o.ReadyAfter.Hours()/24)
	}
	if r.out.Blind > fullBlind {
		because("%s of the time was not watched", replay.Percent(r.out.Blind))
	}
	if g.selector == nil {
		because("its labels do not tell it")
	}
	if w.Egress+w.Ingress == 0 {
		because("it never talked")
	} else if n := r.fresh(g); n > 0 {
		because("%d of its edges were first seen in the last day", n)
	}
	if w.Kind == "CronJob" {
		r.cronJob(w, because)
	} else if !w.Running() && !w.Periodic() {
		r.notice("no-pods", w.Namespace, w.String(), fmt.Sprintf("%s has no pods since %s", w, w.Last.UTC().Format("2006-01-02 15:04")), "")
	}
	out.Ready = len(out.Reasons) == 0
	r.out.Ready = r.out.Ready && out.Ready
	r.out.Readiness = append(r.out.Readiness, out)
}

// fresh counts what was seen of a group for the first time in the last day.
func (r *run) fresh(g *group) int {
	first := make(map[string]time.Time)
	for _, l := range r.lessons[g] {
		key := fmt.Sprint(replay.EndText(&l.edge.Source), replay.EndText(&l.edge.Destination), l.edge.Protocol, l.edge.Port)
		if known, ok := first[key]; !ok || l.edge.First.Before(known) {
			first[key] = l.edge.First
		}
	}
	n := 0
	for _, t := range first {
		if r.h.Until.Sub(t) < settled {
			n++
		}
	}
	return n
}

// cronJob says whether a job was seen as often as it was due.
func (r *run) cronJob(w *history.Workload, because func(string, ...any)) {
	hours := 0
	for _, g := range []*group{r.grouping.of[w]} {
		for _, l := range r.lessons[g] {
			hours = max(hours, l.edge.Hours)
		}
	}
	at := slices.IndexFunc(r.o.Schedules, func(s Schedule) bool { return s.Namespace == w.Namespace && s.Name == w.Name })
	if at < 0 {
		if hours < 2 {
			because("it was seen to run in %d hours only, and its schedule is not known", hours)
		}
		return
	}
	times, next := r.o.Schedules[at].due(r.h.Since, r.h.Until)
	if times == 0 {
		because("its schedule (%s) did not come in this time; the next is %s", r.o.Schedules[at].Cron, next.UTC().Format("2006-01-02 15:04"))
	} else if hours == 0 {
		because("its schedule came %d times, and it was not seen to talk", times)
	}
}

// neverRan lists CronJobs of which no pod was seen.
func (r *run) neverRan() {
	for _, s := range r.o.Schedules {
		w := history.Workload{Namespace: s.Namespace}
		w.Kind, w.Name = "CronJob", s.Name
		if r.h.Workload(s.Namespace, w.Workload) != nil || !r.o.wants(&w) {
			continue
		}
		times, next := s.due(r.h.Since, r.h.Until)
		reason := fmt.Sprintf("no pod of it was seen, though its schedule (%s) came %d times", s.Cron, times)
		if times == 0 {
			reason = fmt.Sprintf("its schedule (%s) has not come yet; the next is %s", s.Cron, next.UTC().Format("2006-01-02 15:04"))
		}
		if s.Suspended {
			reason = "it is suspended and was never seen"
		}
		r.out.Ready = false
		r.out.Readiness = append(r.out.Readiness, Readiness{Namespace: s.Namespace, Workload: w.String(), Reasons: []string{reason}})
	}
}

// coverage says what the suggestion does not stand on.
func (r *run) coverage() {
	if len(r.h.Edges) == 0 {
		r.notice("no-traffic", "", "", "no traffic was recorded in this time: nothing is suggested", "widen --since, or check flowaudit status")
	}
	if len(r.h.Coverage.Nodes) == 0 {
		r.notice("no-coverage", "", "", "no node reported its coverage: it is not known what was missed", "")
	} else if r.out.Blind > 0 {
		var nodes []string
		span := r.h.Coverage.Until.Sub(r.h.Coverage.Since)
		for _, n := range r.h.Coverage.Nodes {
			if n.Covered < span-time.Duration(fullBlind*float64(span)) {
				nodes = append(nodes, fmt.Sprintf("%s %s", n.Node, replay.Percent(1-float64(n.Covered)/float64(span))))
			}
		}
		if len(nodes) > 0 {
			slices.Sort(nodes)
			r.notice("blind", "", "", "nodes were not watched for a part of the time ("+few(nodes)+"): traffic may be missing", "flowaudit query coverage-gaps")
		}
	}
	if r.o.Schedules == nil && len(r.h.Edges) > 0 {
		r.notice("no-schedules", "", "", "CronJobs that have not run yet are not known", "give them with --cronjobs")
	}
	for _, p := range r.h.Problems {
		r.notice("timeline", "", "", p, "")
	}
}

// finishNotices sorts the notices and leaves out those about groups that the
// result does not have.
func (r *run) finishNotices() {
	for _, n := range r.grouping.notices {
		for _, g := range r.grouping.groups {
			if g.namespace == n.Namespace && g.name() == n.Workload && (r.used[g] || r.scope[g] || g.selector == nil && r.missed(g)) {
				r.notices = append(r.notices, n)
			}
		}
	}
	for _, n := range r.h.Namespaces {
		if n.Deleted.IsZero() || !r.missedNamespace(n.Name) {
			continue
		}
		r.notice("namespace-deleted", n.Name, "", fmt.Sprintf("namespace %s was deleted at %s: nothing is suggested for it, nor for traffic with it", n.Name, n.Deleted.UTC().Format("2006-01-02 15:04")), "")
	}
	slices.SortStableFunc(r.notices, func(a, b Notice) int {
		return strings.Compare(a.Namespace+"\x00"+a.Code+"\x00"+a.Text, b.Namespace+"\x00"+b.Code+"\x00"+b.Text)
	})
	r.out.Notices = slices.Compact(r.notices)
}

// missed reports whether traffic with a group was set aside because it cannot
// be selected.
func (r *run) missed(g *group) bool {
	for e, reason := range r.learner.aside {
		if reason == NoSelector && (r.learner.group(e.From) == g || r.learner.group(e.To) == g) {
			return true
		}
	}
	return false
}

func (r *run) missedNamespace(name string) bool {
	if r.o.wantsNamespace(name) && len(r.o.Namespaces) > 0 {
		return true
	}
	for e, reason := range r.learner.aside {
		if reason == GoneWith && (e.Source.Namespace == name || e.Destination.Namespace == name) {
			return true
		}
	}
	return false
}
