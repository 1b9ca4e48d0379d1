-- Which workloads speak with a cloud's metadata address, where credentials are to be had?
-- arg since since 24h: how far back to look, in whole hours
-- times first_seen, last_seen
SELECT source_namespace, source_workload, destination_ip, port, verdict, sum(connections) AS connections, min(first_ms) AS first_seen, max(last_ms) AS last_seen
FROM edges
WHERE destination_ip IN ('169.254.169.254', 'fd00:ec2::254', '169.254.170.2', '169.254.170.23', 'fd00:ec2::23', '100.100.100.200', '168.63.129.16') AND last_ms >= $since
GROUP BY source_namespace, source_workload, destination_ip, port, verdict
ORDER BY connections DESC, source_namespace, source_workload, destination_ip, port, verdict
