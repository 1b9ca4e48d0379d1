-- How much went over each edge, both ways?
-- arg since since 24h: how far back to look, in whole hours
-- arg limit int 100: rows at most
-- times first_seen, last_seen
SELECT source_namespace, source_workload, source_ip, destination_namespace, destination_workload, destination_ip, port, protocol, verdict,
       sum(bytes_sent) AS sent, sum(bytes_received) AS received, sum(connections) AS connections, count(DISTINCT hour_ms) AS hours,
       min(first_ms) AS first_seen, max(last_ms) AS last_seen
FROM edges WHERE last_ms >= $since
GROUP BY source_namespace, source_workload, source_ip, destination_namespace, destination_workload, destination_ip, port, protocol, verdict
ORDER BY sent + received DESC, source_namespace, source_workload, source_ip, destination_namespace, destination_workload, destination_ip, port, verdict LIMIT $limit
