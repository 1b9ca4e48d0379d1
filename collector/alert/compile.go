package alert

import (
	"bytes"
	"fmt"
	"slices"
	"text/template"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// compiled is a rule that can be evaluated, with its groups.
type compiled struct {
	*Rule
	match   *matcher
	except  *matcher
	refusal bool // it can be about refusals only
	summary *template.Template
	by      grouping
	groups  map[groupKey]*group
}

// grouping says which fields of a key are set.
type grouping struct{ source, destination, port, node, policy, change bool }

func compile(r *Rule) (*compiled, error) {
	c := &compiled{Rule: r, groups: make(map[groupKey]*group)}
	var err error
	if c.match, err = compileSelector(&r.Match); err != nil {
		return nil, fmt.Errorf("match: %w", err)
	}
	if c.except, err = compileSelector(&r.Except); err != nil {
		return nil, fmt.Errorf("except: %w", err)
	}
	if isEmpty(&r.Except) {
		c.except = nil
	}
	if c.summary, err = parseTemplate("summary", r.Summary); err != nil {
		return nil, err
	}
	has := func(field string) bool { return slices.Contains(r.Group, field) }
	c.by = grouping{has("source"), has("destination"), has("port"), has("node") || r.Coverage != nil, has("policy"), has("change")}
	c.refusal = true
	for v := range verdictCount {
		for a := range assessmentCount {
			if c.match.could(flow.Verdict(v), flow.Assessment(a), flow.EndpointPod) && !refused(flow.Verdict(v), flow.Assessment(a)) {
				c.refusal = false
			}
		}
	}
	return c, nil
}

func isEmpty(s *Selector) bool {
	lists := [][]string{s.Verdict, s.Assessment, s.Direction, s.Protocol, s.Port, s.Node, s.Cluster}
	for _, e := range []*Ends{&s.From, &s.To} {
		lists = append(lists, e.Kind, e.Namespace, e.Workload, e.CIDR, e.Service)
	}
	return s.Refused == nil && !slices.ContainsFunc(lists, func(l []string) bool { return len(l) > 0 })
}

// takes reports whether the rule is about a flow, given that it could be.
func (c *compiled) takes(f *flow.Flow) bool {
	if !c.match.matches(f) {
		return false
	}
	return c.except == nil || !c.except.could(f.Verdict, f.Assessment, kindOf(f.Destination)) || !c.except.matches(f)
}

// parseTemplate reads a template and tries it, so that one that fails is named
// before an alert needs it.
func parseTemplate(name, text string) (*template.Template, error) {
	t, err := template.New(name).Option("missingkey=zero").Funcs(templateFuncs()).Parse(text)
	if err != nil {
		return nil, err
	}
	for _, a := range []*Alert{Sample(), {Rule: "coverage-lost", Node: "n1", Detail: "silent"}} {
		if err := t.Execute(&bytes.Buffer{}, a); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// Sample is an alert with every field set, by which templates are tried.
func Sample() *Alert {
	at := time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC)
	return &Alert{
		ID: "00f1a2b3c4d5e6f7", Rule: "first-denied", Severity: "warning", State: Firing,
		Summary: "shop/web was refused by shop/db for the first time ever (tcp/3306)",
		Labels:  map[string]string{"alertname": "first-denied", "severity": "warning", "source": "shop/web", "destination": "shop/db"}, Cluster: "prod",
		From:     &End{Kind: "pod", Namespace: "shop", WorkloadKind: "Deployment", Workload: "web", Pod: "web-6d4b75cb6d-x2x9q", Node: "n1", Address: "10.1.0.1"},
		To:       &End{Kind: "pod", Namespace: "shop", WorkloadKind: "StatefulSet", Workload: "db", Pod: "db-0", Node: "n2", Address: "10.1.0.3"},
		Protocol: "tcp", Port: 3306, Node: "n2", Started: at.Add(5 * time.Second), Since: at, Last: at.Add(3 * time.Second), Count: 3, Value: 3, Times: 1,
		Ports: []uint16{3306}, Peers: []string{"shop/db"},
		Policies:    []flow.PolicyRef{{Kind: "NetworkPolicy", Namespace: "shop", Name: "db-policy", Side: "ingress"}},
		Change:      &Change{Time: at.Add(-time.Minute), Kind: "policy", Namespace: "shop", Name: "db-policy", Author: "kubectl"},
		Explanation: "ingress denied: isolated by shop/db-policy, and no rule allows it",
		NearestMiss: "shop/db-policy ingress[0]: pod shop/web lacks label role=api, has role=web (spec.ingress[0].from[0].podSelector)",
		Command:     "flowaudit observe --verdict denied --from-workload shop/web --to-workload shop/db --since 2026-11-02T10:00:00Z",
		Link:        "https://grafana.example/d/flowaudit", Runbook: "https://github.com/flowaudit/flowaudit/blob/main/docs/runbooks/first-denied.md",
	}
}
