package grafana

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/flowaudit/flowaudit/queries"
)

// all is among the chosen values when everything is chosen.
const all = "(all)"

// What Grafana puts into SQL: the time range in milliseconds, the length of an
// interval in seconds, and chosen values as quoted texts.
const (
	from     = "${__from}"
	to       = "${__to}"
	interval = "$__interval_s"
)

func chosen(variable string) string { return "(${" + variable + ":singlequote})" }

// within is a condition that holds for rows of the chosen values.
func within(variable string, columns ...string) string {
	either := []string{"'" + all + "' IN " + chosen(variable)}
	for _, c := range columns {
		either = append(either, c+" IN "+chosen(variable))
	}
	return "(" + strings.Join(either, " OR ") + ")"
}

var argument = regexp.MustCompile(`\$[a-z_]+`)

// ask is a question as a panel asks it: of the time range, of the rows that
// meet conditions, with times as ClickHouse's.
func ask(name string, arguments map[string]string, columns string, conditions ...string) (string, error) {
	q, err := queries.Find(name)
	if err != nil {
		return "", err
	}
	text := q.With(func(table string) string {
		condition := " WHERE start_ms <= " + to
		for _, c := range conditions {
			condition += " AND " + c
		}
		switch table {
		case queries.Totals: // ClickHouse has no sums of flows, and needs none
			return "(SELECT *, toUInt64(1) AS flows FROM flows" + condition + ")"
		case "flows", "gaps", "coverage":
			return "(SELECT * FROM " + table + condition + ")"
		}
		return ""
	})
	var bad error
	text = argument.ReplaceAllStringFunc(text, func(s string) string {
		switch value, given := arguments[s[1:]]; {
		case given:
			return value
		case s == "$since":
			return from
		}
		i := slices.IndexFunc(q.Args, func(a queries.Argument) bool { return a.Name == s[1:] && a.Type == queries.Int && !a.Required })
		if i < 0 {
			bad = fmt.Errorf("question %s: nothing is given for %s", name, s)
			return s
		}
		return q.Args[i].Default
	})
	if bad != nil {
		return "", bad
	}
	var shown []string
	for _, c := range strings.Split(columns, ", ") {
		if slices.Contains(q.Times, c) {
			c = fmt.Sprintf("toDateTime(intDiv(%s, 1000), 'UTC') AS %s", c, as(c))
		}
		shown = append(shown, c)
	}
	return fmt.Sprintf("SELECT %s\nFROM (\n%s\n)", strings.Join(shown, ", "), text), nil
}

// as is the name of a column of times: Grafana finds a series' by its name.
func as(column string) string {
	if column == "start_time" {
		return "time"
	}
	return strings.TrimSuffix(column, "_time") + "_at"
}

// page gathers panels, and the first mistake in them.
type page struct {
	Dashboard
	err error
}

func (p *page) table(title, question, columns string, conditions ...string) {
	query, err := ask(question, nil, columns, conditions...)
	p.add(question, Panel{Title: title, Shape: "table", Wide: true, Targets: []Target{{Query: query}}}, err)
}

func (p *page) overTime(title string, conditions ...string) {
	query, err := ask("denied-over-time", map[string]string{"seconds": interval}, "start_time, connections", conditions...)
	p.add("denied-over-time", Panel{Title: title, Shape: "timeseries", Wide: true, Targets: []Target{{Query: query + "\nORDER BY time"}}}, err)
}

func (p *page) add(question string, panel Panel, err error) {
	if q, notFound := queries.Find(question); notFound == nil {
		panel.Text = strings.TrimSpace(q.Text + " " + q.Note)
	}
	if p.err == nil {
		p.err = err
	}
	p.Panels = append(p.Panels, panel)
}

// ClickHouseDashboards are those over flows.
func ClickHouseDashboards() ([]Dashboard, error) {
	var out []Dashboard
	for _, make := range []func() *page{denied, namespace, policy, nodes} {
		p := make()
		if p.err != nil {
			return nil, fmt.Errorf("make dashboard %s: %w", p.UID, p.err)
		}
		out = append(out, p.Dashboard)
	}
	return out, nil
}

func newPage(uid, title string, variables ...Variable) *page {
	return &page{Dashboard: Dashboard{UID: "flowaudit-" + uid, Title: "flowaudit: " + title, Kind: ClickHouse, Variables: variables}}
}

// choice lists what a column of keys has.
func choice(name, label, values string) Variable {
	return Variable{Name: name, Label: label, Query: "SELECT DISTINCT arrayJoin(" + values + ") AS value FROM key ORDER BY value LIMIT 5000"}
}

const (
	ends      = "source_namespace, source_workload, destination_namespace, destination_workload, port, protocol"
	whenSeen  = "first_seen, last_seen"
	bySources = "source_namespace, source_workload, source_ip, connections, destinations, ports, last_seen"
	byPorts   = "destination_namespace, destination_workload, port, protocol, connections, pairs, last_seen"
)

func denied() *page {
	p := newPage("denied", "refused connections")
	p.overTime("Refused connections")
	p.table("By namespaces", "denied-by-namespace", "source_namespace, destination_namespace, connections, pairs, "+whenSeen)
	p.table("Who was refused most", "denied-by-source", bySources)
	p.table("Where most was refused", "denied-by-port", byPorts)
	p.table("Scans of addresses", "host-scans", "source_namespace, source_pod, source_ip, port, protocol, tried, "+whenSeen)
	p.table("Scans of ports", "port-scans", "source_namespace, source_pod, source_ip, destination_ip, tried, "+whenSeen)
	return p
}

func namespace() *page {
	p := newPage("namespace", "a namespace", choice("namespace", "Namespace", "[src_namespace, dst_namespace]"), choice("workload", "Workload", "[src_workload, dst_workload]"))
	either := []string{within("namespace", "source_namespace", "destination_namespace"), within("workload", "source_workload", "destination_workload")}
	p.overTime("Refused connections, from or to", either...)
	p.table("Who was refused", "denied-by-source", bySources, either...)
	p.table("Where it was refused", "denied-by-port", byPorts, either...)
	p.table("Policies behind the refusals", "denied-by-policy", "policy, connections, pairs, source_namespaces, last_seen", either...)
	p.table("Passed although the policies deny it", "unenforced", "node, "+ends+", policies, connections, "+whenSeen, either...)
	p.table("Refused although the policies allow it", "unexplained", "node, "+ends+", reason, policies, connections, "+whenSeen, either...)
	return p
}

func policy() *page {
	p := newPage("policy", "a policy", choice("policy", "Policy", "splitByChar(',', toString(policy_names))"))
	decides := "('" + all + "' IN " + chosen("policy") + " OR hasAny(splitByChar(',', toString(policies)), [${policy:singlequote}]))"
	p.overTime("Refused connections", decides)
	p.table("Refusals by policy", "denied-by-policy", "policy, connections, pairs, source_namespaces, last_seen", decides)
	p.table("What was seen of it", "enforcement", "policy_refs, assessment, verdict, caveat, reason, node, connections, source, destination, port, protocol, last_seen", decides)
	p.table("Who was refused", "denied-by-source", bySources, decides)
	p.table("Passed although it denies", "unenforced", "node, "+ends+", policies, connections, "+whenSeen, decides)
	return p
}

func nodes() *page {
	p := newPage("coverage", "what nodes see", choice("node", "Node", "[node]"))
	node := within("node", "node")
	p.table("Nodes that report", "nodes", "node, first_report, last_report, batches", node)
	p.table("When not everything was seen", "coverage-gaps", "node, source, kind, start_time, end_time, lost, detail", node)
	p.table("What happened, beside what the policies say", "assessments", "node, assessment, caveat, flows, connections", node)
	return p
}
