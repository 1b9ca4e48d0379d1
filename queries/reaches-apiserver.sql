-- Which workloads speak with the Kubernetes API server?
-- arg since since 24h: how far back to look
-- times last_seen
SELECT source_namespace, source_workload, source_ip, destination_ip, port, verdict, sum(seen) AS connections, max(until_ms) AS last_seen
FROM (
  SELECT pair, source_namespace, source_workload, source_ip, destination_ip, port, verdict, max(by_node) AS seen, max(node_until) AS until_ms
  FROM (SELECT pair, node, source_namespace, source_workload, CASE WHEN source_workload = '' THEN source_ip ELSE '' END AS source_ip,
               destination_ip, port, verdict, sum(connections) AS by_node, max(end_ms) AS node_until
        FROM totals
        WHERE (destination_kind = 'apiserver' OR service_namespace = 'default' AND service = 'kubernetes') AND start_ms >= $since
        GROUP BY pair, node, source_namespace, source_workload, source_ip, destination_ip, port, verdict)
  GROUP BY pair, source_namespace, source_workload, source_ip, destination_ip, port, verdict
)
GROUP BY source_namespace, source_workload, source_ip, destination_ip, port, verdict
ORDER BY connections DESC, source_namespace, source_workload, source_ip, destination_ip, port, verdict
