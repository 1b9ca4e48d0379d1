package alert

import (
	"cmp"
	"slices"

	"github.com/flowaudit/flowaudit/flow"
)

// Seen is an alert as it shows by a sight; false if it does not. Where an end
// does not show, what is said in words is withheld, for it names both, and the
// ID, which is made of both, is the one that blind gives for it.
func (a Alert) Seen(s flow.Sight, blind func(id string) string) (Alert, bool) {
	if s.All() {
		return a, true
	}
	from, to := a.From.shows(s), a.To.shows(s)
	if a.Cluster != s.Cluster() || !from && !to {
		return Alert{}, false
	}
	a.Policies = s.Policies(a.Policies)
	if a.Change != nil && !s.Namespace(cmp.Or(a.Change.Namespace, a.Change.Name)) {
		a.Change = nil
	}
	if a.Node != "" && (!from || a.From.Node != a.Node) && (!to || a.To.Node != a.Node) {
		a.Node = ""
	}
	if a.From != nil && a.To != nil && (from || a.From.bare()) && (to || a.To.bare()) {
		return a, true
	}
	a.ID, a.Labels = blind(a.ID), a.shownLabels(from, to)
	a.From, a.To = a.From.shown(from), a.To.shown(to)
	a.Peers, a.Explanation, a.NearestMiss, a.Detail, a.Command, a.Link = nil, "", "", "", "", ""
	a.SilencedBy, a.Acknowledged, a.Undelivered = "", nil, nil
	a.Summary = a.Rule + ": " + a.From.String() + " to " + a.To.String()
	return a, true
}

func (e *End) shows(s flow.Sight) bool { return e != nil && s.Namespace(e.Namespace) }

// bare reports whether an end has no namespace that could withhold it.
func (e *End) bare() bool {
	return e.Namespace == "" && slices.Contains([]string{flow.EndpointNode.String(), flow.EndpointOutside.String(), flow.EndpointAPIServer.String()}, e.Kind)
}

func (e *End) shown(shows bool) *End {
	if e == nil || shows || e.bare() {
		return e
	}
	return &End{Kind: flow.EndpointUnknown.String(), Namespace: e.Namespace}
}

// shownLabels are those that tell nothing of an end that does not show.
func (a *Alert) shownLabels(from, to bool) map[string]string {
	out := make(map[string]string)
	keep := func(names ...string) {
		for _, n := range names {
			if v, ok := a.Labels[n]; ok {
				out[n] = v
			}
		}
	}
	keep("alertname", "severity", "cluster", "protocol", "port", "source_namespace", "destination_namespace", "namespace")
	if from {
		keep("source", "source_workload")
	}
	if to {
		keep("destination", "destination_workload")
	}
	return out
}
