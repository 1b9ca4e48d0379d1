-- Which namespaces were refused connections, or refused them, and how often?
-- arg since since 24h: how far back to look
-- times first_seen, last_seen
SELECT source_namespace, destination_namespace, sum(refused) AS connections, count(*) AS pairs, min(since_ms) AS first_seen, max(until_ms) AS last_seen
FROM (
  -- Two nodes may report one connection: of a pair, the larger side counts.
  SELECT pair, max(source_namespace) AS source_namespace, max(destination_namespace) AS destination_namespace,
         max(by_node) AS refused, min(node_since) AS since_ms, max(node_until) AS until_ms
  FROM (SELECT pair, node, source_namespace, destination_namespace, sum(connections) AS by_node, min(start_ms) AS node_since, max(end_ms) AS node_until
        FROM totals WHERE verdict = 'denied' AND start_ms >= $since GROUP BY pair, node, source_namespace, destination_namespace)
  GROUP BY pair
)
GROUP BY source_namespace, destination_namespace ORDER BY connections DESC, source_namespace, destination_namespace
