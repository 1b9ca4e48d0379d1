-- Whose was an address, and when was each holder seen with it?
-- arg address address: the IP address
-- arg since since 7d: how far back to look
-- arg until since 0s: up to when
-- times first_seen, last_seen
SELECT kind, namespace, pod, workload_kind, workload, on_node, min(start_ms) AS first_seen, max(end_ms) AS last_seen, count(*) AS reports
FROM (
  SELECT source_kind AS kind, source_namespace AS namespace, source_pod AS pod, source_workload_kind AS workload_kind,
         source_workload AS workload, source_node AS on_node, start_ms, end_ms
  FROM flows WHERE source_ip = $address AND end_ms >= $since AND start_ms <= $until
  UNION ALL
  SELECT destination_kind AS kind, destination_namespace AS namespace, destination_pod AS pod, destination_workload_kind AS workload_kind,
         destination_workload AS workload, destination_node AS on_node, start_ms, end_ms
  FROM flows WHERE destination_ip = $address AND end_ms >= $since AND start_ms <= $until
)
GROUP BY kind, namespace, pod, workload_kind, workload, on_node ORDER BY first_seen, kind, namespace, pod
