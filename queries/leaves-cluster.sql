-- Which workloads speak with addresses outside the cluster?
-- arg since since 24h: how far back to look, in whole hours
-- times first_seen, last_seen
SELECT source_namespace, source_workload, destination_ip, port, protocol, verdict, sum(connections) AS connections,
       sum(bytes_sent) AS sent, sum(bytes_received) AS received, min(first_ms) AS first_seen, max(last_ms) AS last_seen
FROM edges WHERE destination_kind = 'outside' AND source_kind <> 'outside' AND last_ms >= $since
GROUP BY source_namespace, source_workload, destination_ip, port, protocol, verdict
ORDER BY sent DESC, source_namespace, source_workload, destination_ip, port, verdict
