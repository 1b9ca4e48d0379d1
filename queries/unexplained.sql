-- On which nodes is traffic refused that policies allow, and why?
-- arg since since 24h: how far back to look
-- times first_seen, last_seen
SELECT node, source_namespace, source_workload, destination_namespace, destination_workload, port, protocol, reason, policies,
       sum(connections) AS connections, min(start_ms) AS first_seen, max(end_ms) AS last_seen
FROM totals WHERE assessment = 'unexplained' AND start_ms >= $since
GROUP BY node, source_namespace, source_workload, destination_namespace, destination_workload, port, protocol, reason, policies
ORDER BY node, connections DESC, source_namespace, source_workload, destination_namespace, destination_workload, port, reason, policies
