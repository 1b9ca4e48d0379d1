-- Whom did a workload reach, directly and through others?
-- It follows allowed connections from workload to workload; what has no workload is shown and not followed.
-- arg namespace string: the workload's namespace
-- arg workload string: the workload's name
-- arg since since 24h: how far back to look, in whole hours
-- arg hops int<=3 1: how many steps to follow
-- times first_seen, last_seen
SELECT min(hop) AS hops, namespace, workload, ip, port, protocol, max(seen) AS connections, min(since_ms) AS first_seen, max(until_ms) AS last_seen
FROM (
  SELECT hop, namespace, workload, ip, port, protocol, sum(connections) AS seen, min(first_ms) AS since_ms, max(last_ms) AS until_ms
  FROM (
    SELECT 1 AS hop, destination_namespace AS namespace, destination_workload AS workload, destination_ip AS ip, port, protocol, connections, first_ms, last_ms FROM edges
    WHERE source_namespace = $namespace AND source_workload = $workload AND verdict = 'allowed' AND last_ms >= $since
    UNION ALL
    SELECT 2 AS hop, destination_namespace AS namespace, destination_workload AS workload, destination_ip AS ip, port, protocol, connections, first_ms, last_ms FROM edges
    WHERE source_workload <> '' AND verdict = 'allowed' AND last_ms >= $since AND $hops >= 2 AND (source_namespace, source_workload) IN (
      SELECT destination_namespace, destination_workload FROM edges WHERE source_namespace = $namespace AND source_workload = $workload AND verdict = 'allowed' AND last_ms >= $since)
    UNION ALL
    SELECT 3 AS hop, destination_namespace AS namespace, destination_workload AS workload, destination_ip AS ip, port, protocol, connections, first_ms, last_ms FROM edges
    WHERE source_workload <> '' AND verdict = 'allowed' AND last_ms >= $since AND $hops >= 3 AND (source_namespace, source_workload) IN (
      SELECT destination_namespace, destination_workload FROM edges WHERE source_workload <> '' AND verdict = 'allowed' AND last_ms >= $since
      AND (source_namespace, source_workload) IN (SELECT destination_namespace, destination_workload FROM edges WHERE source_namespace = $namespace AND source_workload = $workload AND verdict = 'allowed' AND last_ms >= $since))
  )
  GROUP BY hop, namespace, workload, ip, port, protocol
)
GROUP BY namespace, workload, ip, port, protocol ORDER BY hops, namespace, workload, ip, port, protocol
