-- Which workloads and ports refused connections, and how often?
-- arg since since 24h: how far back to look
-- arg limit int 20: rows at most
SELECT destination_namespace, destination_workload, port, protocol, sum(connections)::BIGINT AS connections, count(*)::BIGINT AS pairs, max(last_seen) AS last_seen
FROM (SELECT pair, any_value(destination_namespace) AS destination_namespace, any_value(destination_workload) AS destination_workload,
             any_value(port) AS port, any_value(protocol) AS protocol, max(connections) AS connections, max(last_seen) AS last_seen
      FROM (SELECT pair, node, any_value(destination_namespace) AS destination_namespace, any_value(destination_workload) AS destination_workload,
                   any_value(port) AS port, any_value(protocol) AS protocol, sum(connections) AS connections, max(end_time) AS last_seen
            FROM flows WHERE verdict = 'denied' AND start_time >= $since GROUP BY pair, node)
      GROUP BY pair)
GROUP BY destination_namespace, destination_workload, port, protocol ORDER BY connections DESC, 1, 2, 3 LIMIT $limit
