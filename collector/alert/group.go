package alert

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"text/template"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// group is what a rule knows of flows that are one trouble.
type group struct {
	key    groupKey
	alert  Alert // its State is empty while nothing is wrong
	window window
	// met is when the condition was last true, by the flows' time or now,
	// whichever keeps what has just arrived from being over already.
	met     time.Time
	seen    time.Time // when an event came last
	pending time.Time // since when
	example *flow.Flow
	changed bool // since it was saved
	saved   time.Time
	unless  bool // another rule says it better
}

// maxExamples is how many ports and peers an alert names.
const maxExamples = 8

func newGroup(r *compiled, key groupKey) *group {
	g := &group{key: key}
	if r.Count != nil {
		g.window = newWindow(r.Count)
	}
	text, _ := json.Marshal(key) // a struct of plain fields has a JSON form
	sum := sha256.Sum256(append([]byte(r.Name+" "), text...))
	g.alert = Alert{ID: hex.EncodeToString(sum[:8]), Rule: r.Name, Cluster: key.Cluster}
	return g
}

// take takes an event in.
func (g *group) take(r *compiled, now time.Time, ev *event) {
	a := &g.alert
	if a.State != Firing && a.State != Pending && (a.Since.IsZero() || now.Sub(a.Last) > max(time.Duration(r.KeepFiring), g.within(r))) {
		a.Since, a.Count, a.Ports, a.Peers, a.Policies = ev.Start, 0, nil, nil, nil
	}
	if ev.Start.Before(a.Since) {
		a.Since = ev.Start
	}
	if ev.End.After(a.Last) {
		a.Last = ev.End
	}
	a.Count += ev.count
	g.seen, g.changed = now, true
	g.describe(ev)
	holds := true
	if g.window != nil {
		g.window.add(ev.at, ev.item(r.Count.Of), ev.count)
		value := g.window.value(ev.at)
		a.Value = float64(value)
		limit := r.Count.Over
		if a.State == Firing {
			limit = r.Count.Clear
		}
		holds = value >= limit
	}
	if !holds {
		return
	}
	g.met = now
	if a.State != Firing && a.State != Pending {
		a.State, g.pending, g.unless = Pending, now, false
	}
}

func (g *group) within(r *compiled) time.Duration {
	if r.Count == nil {
		return 0
	}
	return time.Duration(r.Count.Within)
}

// describe keeps what an alert says of its flows.
func (g *group) describe(ev *event) {
	a := &g.alert
	if g.example == nil || a.State != Firing && ev.refused && g.example.Verdict != flow.VerdictDenied {
		f := *ev.Flow
		g.example = &f
	}
	if !slices.Contains(a.Ports, ev.Port) && len(a.Ports) < maxExamples && ev.Protocol.HasPorts() {
		a.Ports = append(a.Ports, ev.Port)
	}
	if len(a.Peers) < maxExamples {
		if peer := ev.to.end().String(); !slices.Contains(a.Peers, peer) {
			a.Peers = append(a.Peers, peer)
		}
	}
	for _, p := range ev.Policies {
		if !slices.Contains(a.Policies, p) && len(a.Policies) < maxExamples {
			a.Policies = append(a.Policies, p)
		}
	}
	a.Protocol = ev.Protocol.String()
}

// fire completes the alert.
func (g *group) fire(r *compiled, now time.Time, c *Config, j Judge, link *template.Template) {
	a := &g.alert
	a.State, a.Severity, a.Started, a.Ended, a.Notified = Firing, r.Severity, now, time.Time{}, false
	a.Times++
	a.Node = g.key.Node
	if g.key.Port != 0 || r.by.port {
		a.Port, a.Protocol = g.key.Port, g.key.Protocol.String()
	} else if len(a.Ports) == 1 {
		a.Port = a.Ports[0]
	}
	a.From, a.To = g.end(g.key.From, true), g.end(g.key.To, false)
	if f := g.example; f != nil {
		a.Explanation, a.NearestMiss = j.Explain(f)
		if a.From == nil && r.by.policy { // an example says more than nothing
			a.From, a.To = g.end(keyOf(f.Src, f.Source), true), g.end(keyOf(f.Dst, f.Destination), false)
		}
	}
	a.Labels = g.labels(r)
	a.Command = command(a, r)
	a.Runbook = runbook(c, r)
	g.render(r, link)
}

// render makes the texts that change as an alert goes on.
func (g *group) render(r *compiled, link *template.Template) {
	a := &g.alert
	a.Summary = execute(r.summary, a)
	if g.key.More {
		a.Summary = fmt.Sprintf("rule %s has more than %d alerts: this one stands for all further ones", r.Name, maxGroups)
	}
	if link != nil {
		a.Link = strings.TrimSpace(execute(link, a))
	}
}

// defaultRunbooks is where the pages of the default rules are.
const defaultRunbooks = "https://github.com/flowaudit/flowaudit/blob/main/docs/runbooks"

func runbook(c *Config, r *compiled) string {
	if r.Runbook == "" || strings.Contains(r.Runbook, "://") {
		return r.Runbook
	}
	return strings.TrimRight(cmp.Or(c.RunbookURL, defaultRunbooks), "/") + "/" + r.Runbook
}

// end is an end of the key, with what the example knows of it.
func (g *group) end(k endKey, source bool) *End {
	if k == (endKey{}) {
		return nil
	}
	e := k.end()
	f := g.example
	if f == nil {
		return e
	}
	known, addr := f.Source, f.Src
	if !source {
		known, addr = f.Destination, f.Dst
	}
	if keyOf(addr, known) != k {
		return e
	}
	if addr.IsValid() {
		e.Address = addr.Unmap().String()
	}
	if known != nil {
		e.Pod, e.Node = known.Pod, cmp.Or(e.Node, known.Node)
	}
	return e
}

// labels are what notifiers and silences go by.
func (g *group) labels(r *compiled) map[string]string {
	a := &g.alert
	out := map[string]string{"alertname": r.Name, "severity": r.Severity}
	set := func(name, value string) {
		if value != "" {
			out[name] = value
		}
	}
	set("cluster", a.Cluster)
	set("node", g.key.Node)
	for side, e := range map[string]endKey{"source": g.key.From, "destination": g.key.To} {
		if e == (endKey{}) {
			continue
		}
		set(side, e.end().String())
		set(side+"_namespace", e.Namespace)
		set(side+"_workload", e.Workload.Name)
	}
	set("namespace", cmp.Or(g.key.To.Namespace, g.key.From.Namespace, g.key.Policy.Namespace))
	set("policy", strings.TrimPrefix(g.key.Policy.Namespace+"/"+g.key.Policy.Name, "/"))
	if r.by.port && g.key.Protocol != 0 {
		set("protocol", g.key.Protocol.String())
		if g.key.Protocol.HasPorts() {
			set("port", fmt.Sprint(g.key.Port))
		}
	}
	for k, v := range r.Labels {
		set(k, v)
	}
	return out
}
