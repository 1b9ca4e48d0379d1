package grafana

import (
	"slices"
	"strings"
)

// anything is a pattern that all values meet.
const anything = ".*"

// PrometheusDashboard is the one over metrics. Its variables are those that the
// links of alerts set.
func PrometheusDashboard() Dashboard {
	return Dashboard{
		UID: "flowaudit", Title: "flowaudit", Kind: Prometheus,
		Variables: []Variable{{Name: "namespace", Label: "Namespace"}, {Name: "workload", Label: "Workload"}},
		Panels: []Panel{
			pairs("Refused attempts", "denied"),
			pairs("Passed although the policies deny it", "unenforced"),
			pairs("Refused although the policies allow it", "unexplained"),
			series("Connections by what happened", "A second, of all namespaces.", "", "sum by (verdict) (rate(flowaudit_connections_total[$__rate_interval]))", "{{verdict}}"),
			series("Agents", "", "", "sum by (state) (flowaudit_collector_agents)", "{{state}}"),
			series("Nodes whose time is covered", "How many nodes' time the batches cover: less than the agents is a gap.", "",
				`sum(rate(flowaudit_collector_watched_seconds_total{scope="node"}[$__rate_interval]))`, "covered"),
			series("Events lost", "", "", "sum by (kind) (rate(flowaudit_collector_lost_events_total[$__rate_interval]))", "{{kind}}"),
			series("From report to store, 9 of 10", "", "s",
				"histogram_quantile(0.9, sum by (le) (rate(flowaudit_collector_report_lag_seconds_bucket[$__rate_interval])))", "batches",
				"histogram_quantile(0.9, sum by (le) (rate(flowaudit_store_append_seconds_bucket[$__rate_interval])))", "transaction of the store"),
			series("What waits", "", "", "sum(flowaudit_collector_waiting_batches)", "batches at the store", "sum(flowaudit_agent_queue_batches)", "batches at the agents"),
			series("Store", "", "bytes", "sum(flowaudit_store_bytes)", "on disk"),
			series("Memory of the agents", "", "bytes", "max("+agentMemory+")", "largest", "avg("+agentMemory+")", "average"),
			series("Sources that are not read", "", "", "sum by (source) (flowaudit_agent_source_open == bool 0)", "{{source}}"),
		},
	}
}

const agentMemory = `process_resident_memory_bytes * on (job, instance) group_left () flowaudit_build_info{program="flowaudit-agent"}`

// pairs shows the most frequent pairs of workloads with a chosen one at either
// end. Metrics name a workload with its kind, alerts without.
func pairs(title, what string) Panel {
	of := func(end string) string {
		return strings.NewReplacer("WHAT", what, "END", end).Replace(`rate(flowaudit_WHAT_connections_total{END_namespace=~"$namespace", END_workload=~"(.*/)?$workload"}[$__rate_interval])`)
	}
	return series(title, "A second, the ten most frequent pairs of workloads.", "",
		"topk(10, sum by (source_namespace, source_workload, destination_namespace, destination_workload) ("+of("source")+" or "+of("destination")+"))",
		"{{source_namespace}}/{{source_workload}} → {{destination_namespace}}/{{destination_workload}}")
}

// series is a panel of queries, each with its legend.
func series(title, text, unit string, queries ...string) Panel {
	p := Panel{Title: title, Text: text, Shape: "timeseries", Unit: unit}
	for pair := range slices.Chunk(queries, 2) {
		p.Targets = append(p.Targets, Target{pair[0], pair[1]})
	}
	return p
}
