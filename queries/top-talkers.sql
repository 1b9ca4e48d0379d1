-- Which pairs of workloads moved most bytes?
-- arg since since 1h: how far back to look
-- arg limit int 20: rows at most
SELECT source_namespace, source_workload, destination_namespace, destination_workload, port, protocol,
       sum(bytes)::BIGINT AS bytes, sum(connections)::BIGINT AS connections
FROM (SELECT pair, any_value(source_namespace) AS source_namespace, any_value(source_workload) AS source_workload,
             any_value(destination_namespace) AS destination_namespace, any_value(destination_workload) AS destination_workload,
             any_value(port) AS port, any_value(protocol) AS protocol, max(bytes) AS bytes, max(connections) AS connections
      FROM (SELECT pair, node, any_value(source_namespace) AS source_namespace, any_value(source_workload) AS source_workload,
                   any_value(destination_namespace) AS destination_namespace, any_value(destination_workload) AS destination_workload,
                   any_value(port) AS port, any_value(protocol) AS protocol, sum(bytes_sent + bytes_received) AS bytes, sum(connections) AS connections
            FROM flows WHERE start_time >= $since GROUP BY pair, node)
      GROUP BY pair)
GROUP BY ALL ORDER BY bytes DESC, 1, 2, 3, 4, 5 LIMIT $limit
