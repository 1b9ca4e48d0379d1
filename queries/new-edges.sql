-- Which connections between workloads were never seen before?
-- An edge is new if all that is kept of it, also from long before, begins in that time.
-- arg since since 24h: since when they are new
-- arg verdict string "allowed": which verdict
-- times first_seen
SELECT source_namespace, source_workload, source_ip, destination_namespace, destination_workload, destination_ip, port, protocol,
       sum(connections) AS connections, min(first_ms) AS first_seen
FROM edges WHERE verdict = $verdict
GROUP BY source_namespace, source_workload, source_ip, destination_namespace, destination_workload, destination_ip, port, protocol
HAVING min(first_ms) >= $since
ORDER BY first_seen, source_namespace, source_workload, source_ip, destination_namespace, destination_workload, destination_ip, port
