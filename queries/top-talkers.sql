-- Which pairs of workloads moved most bytes?
-- arg since since 1h: how far back to look, in whole hours
-- arg limit int 20: rows at most
SELECT source_namespace, source_workload, destination_namespace, destination_workload, port, protocol,
       sum(bytes_sent + bytes_received) AS bytes, sum(connections) AS connections
FROM edges WHERE last_ms >= $since
GROUP BY source_namespace, source_workload, destination_namespace, destination_workload, port, protocol
ORDER BY bytes DESC, source_namespace, source_workload, destination_namespace, destination_workload, port, protocol LIMIT $limit
