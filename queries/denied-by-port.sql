-- Which workloads and ports refused connections, and how often?
-- arg since since 24h: how far back to look
-- arg limit int 20: rows at most
-- times last_seen
SELECT destination_namespace, destination_workload, port, protocol, sum(refused) AS connections, count(*) AS pairs, max(until_ms) AS last_seen
FROM (
  SELECT pair, max(destination_namespace) AS destination_namespace, max(destination_workload) AS destination_workload,
         port, protocol, max(by_node) AS refused, max(node_until) AS until_ms
  FROM (SELECT pair, node, destination_namespace, destination_workload, port, protocol, sum(connections) AS by_node, max(end_ms) AS node_until
        FROM totals WHERE verdict = 'denied' AND start_ms >= $since GROUP BY pair, node, destination_namespace, destination_workload, port, protocol)
  GROUP BY pair, port, protocol
)
GROUP BY destination_namespace, destination_workload, port, protocol
ORDER BY connections DESC, destination_namespace, destination_workload, port LIMIT $limit
