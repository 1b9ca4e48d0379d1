-- Which namespaces were refused connections, or refused them, and how often?
-- arg since since 24h: how far back to look
SELECT source_namespace, destination_namespace, sum(connections)::BIGINT AS connections, count(*)::BIGINT AS pairs, min(first_seen) AS first_seen, max(last_seen) AS last_seen
FROM (SELECT pair, any_value(source_namespace) AS source_namespace, any_value(destination_namespace) AS destination_namespace,
             max(connections) AS connections, min(first_seen) AS first_seen, max(last_seen) AS last_seen
      FROM (SELECT pair, node, any_value(source_namespace) AS source_namespace, any_value(destination_namespace) AS destination_namespace,
                   sum(connections) AS connections, min(start_time) AS first_seen, max(end_time) AS last_seen
            FROM flows WHERE verdict = 'denied' AND start_time >= $since GROUP BY pair, node)
      GROUP BY pair)
GROUP BY source_namespace, destination_namespace ORDER BY connections DESC, 1, 2
