-- Which namespaces saw traffic, and have no policy that isolates all their pods?
-- arg since since 24h: how far back to look, in whole hours
-- times last_seen
SELECT namespace, side, sum(seen) AS connections, max(until_ms) AS last_seen
FROM (
  SELECT destination_namespace AS namespace, 'ingress' AS side, sum(connections) AS seen, max(last_ms) AS until_ms
  FROM edges WHERE destination_kind = 'pod' AND last_ms >= $since GROUP BY destination_namespace
  UNION ALL
  SELECT source_namespace AS namespace, 'egress' AS side, sum(connections) AS seen, max(last_ms) AS until_ms
  FROM edges WHERE source_kind = 'pod' AND last_ms >= $since GROUP BY source_namespace
)
WHERE (namespace, side) NOT IN (SELECT namespace, side FROM rules WHERE rule = '' AND all_pods = 1)
GROUP BY namespace, side ORDER BY namespace, side
