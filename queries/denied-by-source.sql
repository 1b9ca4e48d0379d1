-- Who was refused most often, and by how many different destinations?
-- arg since since 24h: how far back to look
-- arg limit int 20: rows at most
-- times last_seen
SELECT source_namespace, source_workload, source_ip, sum(refused) AS connections, count(DISTINCT destination_ip) AS destinations,
       count(DISTINCT port) AS ports, max(until_ms) AS last_seen
FROM (
  SELECT pair, max(source_namespace) AS source_namespace, max(source_workload) AS source_workload, max(source_ip) AS source_ip,
         destination_ip, port, max(by_node) AS refused, max(node_until) AS until_ms
  FROM (SELECT pair, node, source_namespace, source_workload, source_ip, destination_ip, port, sum(connections) AS by_node, max(end_ms) AS node_until
        FROM totals WHERE verdict = 'denied' AND start_ms >= $since
        GROUP BY pair, node, source_namespace, source_workload, source_ip, destination_ip, port)
  GROUP BY pair, destination_ip, port
)
GROUP BY source_namespace, source_workload, source_ip
ORDER BY connections DESC, source_namespace, source_workload, source_ip LIMIT $limit
