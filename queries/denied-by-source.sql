-- Who was refused most often, and by how many different destinations?
-- arg since since 24h: how far back to look
-- arg limit int 20: rows at most
SELECT source_namespace, source_workload, source_ip, sum(connections)::BIGINT AS connections, count(DISTINCT destination_ip)::BIGINT AS destinations,
       count(DISTINCT port)::BIGINT AS ports, max(last_seen) AS last_seen
FROM (SELECT pair, any_value(source_namespace) AS source_namespace, any_value(source_workload) AS source_workload, any_value(source_ip) AS source_ip,
             any_value(destination_ip) AS destination_ip, any_value(port) AS port, max(connections) AS connections, max(last_seen) AS last_seen
      FROM (SELECT pair, node, any_value(source_namespace) AS source_namespace, any_value(source_workload) AS source_workload,
                   any_value(source_ip) AS source_ip, any_value(destination_ip) AS destination_ip, any_value(port) AS port,
                   sum(connections) AS connections, max(end_time) AS last_seen
            FROM flows WHERE verdict = 'denied' AND start_time >= $since GROUP BY pair, node)
      GROUP BY pair)
GROUP BY source_namespace, source_workload, source_ip ORDER BY connections DESC, 1, 2, 3 LIMIT $limit
