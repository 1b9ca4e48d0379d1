package columns

import (
	"fmt"
	"strings"

	"github.com/flowaudit/flowaudit/flow"
)

// Restriction writes views as they show by a flow.Sight that does not see
// everything, in a database's dialect. It says the same as the Sight does of
// flows: what is withheld is empty, and rows that do not show are not there.
type Restriction struct {
	Quote func(string) string // makes a text an SQL literal
	// Before is a format for a column: its text before the first slash.
	Before string
	// Keep is a format for a column of texts joined by commas, and a list of
	// literals: those of the texts whose part before the first slash is in it.
	Keep string
}

// View is what stands for a view of queries.Views, or queries.Totals, in a
// question; base is what the view is without a restriction.
func (r *Restriction) View(view, base string, s flow.Sight) string {
	names := make([]string, len(s.Namespaces()))
	for i, n := range s.Namespaces() {
		names[i] = r.Quote(n)
	}
	list, cluster := strings.Join(names, ", "), r.Quote(s.Cluster())
	switch view {
	case "flows":
		return r.flows(base, list, cluster, "start_time, end_time, source_port, packets_sent, bytes_sent, packets_received, bytes_received, tcp_flags")
	case "totals":
		return r.flows(base, list, cluster, "flows")
	case "edges":
		return r.edges(base, list, cluster)
	case "gaps":
		return r.reports(base, list, "source, kind, start_ms, end_ms, start_time, end_time, lost, '' AS detail")
	case "coverage":
		return r.reports(base, list, "'' AS instance, start_ms, end_ms, start_time, end_time")
	case "changes":
		return fmt.Sprintf("(SELECT * FROM %s WHERE cluster = %s AND (namespace IN (%s) OR kind = 'namespace' AND namespace = '' AND name IN (%[3]s)))", base, cluster, list)
	}
	return fmt.Sprintf("(SELECT * FROM %s WHERE cluster = %s AND namespace IN (%s))", base, cluster, list) // identities, rules
}

// flows are rows of flows or of their sums; own are the columns that only one of them has.
func (r *Restriction) flows(base, list, cluster, own string) string {
	return fmt.Sprintf(`(SELECT start_ms, end_ms, CASE WHEN node LIKE '%%/%%' THEN CASE WHEN %[1]s IN (%[2]s) THEN node ELSE '' END
		WHEN sees_source AND source_node = node OR sees_destination AND destination_node = node THEN node ELSE '' END AS node,
		cluster, pair, direction, verdict, expected, assessment, caveat, reason, protocol, port, %[3]s, %[4]s,
		CASE WHEN service_namespace IN (%[2]s) THEN service_ip ELSE '' END AS service_ip, CASE WHEN service_namespace IN (%[2]s) THEN service_port ELSE 0 END AS service_port,
		CASE WHEN service_namespace IN (%[2]s) THEN service ELSE '' END AS service, CASE WHEN service_namespace IN (%[2]s) THEN service_namespace ELSE '' END AS service_namespace,
		%[5]s AS policies, '' AS policy_refs,
		CASE WHEN refused_at = 'between' OR refused_at = 'egress' AND sees_source AND (sees_destination OR bare_destination)
			OR refused_at = 'ingress' AND sees_destination AND (sees_source OR bare_source) THEN refused_at ELSE '' END AS refused_at, connections, %[6]s
		FROM %[7]s)`, fmt.Sprintf(r.Before, "node"), list,
		ends("source", "ip", "pod", "workload_kind", "workload"), ends("destination", "ip", "pod", "workload_kind", "workload"),
		fmt.Sprintf(r.Keep, "policies", list), own, visible(base, list, cluster))
}

func (r *Restriction) edges(base, list, cluster string) string {
	return fmt.Sprintf(`(SELECT hour_ms, first_ms, last_ms, first_time, last_time, cluster, direction, verdict, expected, assessment, caveat, protocol, port, %s, %s,
		connections, bytes_sent, bytes_received FROM %s)`,
		ends("source", "ip", "identity", "workload_kind", "workload"), ends("destination", "ip", "identity", "workload_kind", "workload"), visible(base, list, cluster))
}

// visible are the rows of a base that show, with whether each end does.
func visible(base, list, cluster string) string {
	end := func(name string) string {
		return fmt.Sprintf("%[1]s_namespace IN (%[2]s) AS sees_%[1]s, %[1]s_namespace = '' AND %[1]s_kind IN ('%[3]s', '%[4]s', '%[5]s') AS bare_%[1]s",
			name, list, flow.EndpointNode, flow.EndpointOutside, flow.EndpointAPIServer)
	}
	return fmt.Sprintf("(SELECT *, %s, %s FROM %s WHERE cluster = %s AND (source_namespace IN (%s) OR destination_namespace IN (%[5]s)))",
		end("source"), end("destination"), base, cluster, list)
}

// ends are the columns of an end as they show: what names a pod only where the
// end shows, its address also where it is no pod's.
func ends(name string, address string, own ...string) string {
	out := []string{name + "_namespace"}
	for _, c := range own {
		out = append(out, fmt.Sprintf("CASE WHEN sees_%[1]s THEN %[1]s_%[2]s ELSE '' END AS %[1]s_%[2]s", name, c))
	}
	for _, c := range []struct{ name, withheld string }{{address, ""}, {"node", ""}, {"kind", flow.EndpointUnknown.String()}} {
		out = append(out, fmt.Sprintf("CASE WHEN sees_%[1]s OR bare_%[1]s THEN %[1]s_%[2]s ELSE '%[3]s' END AS %[1]s_%[2]s", name, c.name, c.withheld))
	}
	return strings.Join(out, ", ")
}

// reports are rows that a node, or a pod of the namespaces, tells of itself.
func (r *Restriction) reports(base, list, columns string) string {
	return fmt.Sprintf("(SELECT node, %s FROM %s WHERE node NOT LIKE '%%/%%' OR %s IN (%s))", columns, base, fmt.Sprintf(r.Before, "node"), list)
}
