-- Which policies are behind the refusals, and how often was each?
-- A connection that several policies refuse counts for each of them; an empty policy means that none explains it.
-- arg since since 24h: how far back to look
-- times last_seen
SELECT policy, sum(refused) AS connections, count(*) AS pairs, count(DISTINCT source_namespace) AS source_namespaces, max(until_ms) AS last_seen
FROM (
  SELECT pair, policy, max(source_namespace) AS source_namespace, max(by_node) AS refused, max(node_until) AS until_ms
  FROM (
    SELECT pair, node, source_namespace, arrayJoin(splitByChar(',', policies)) AS policy, by_node, node_until
    FROM (SELECT pair, node, source_namespace, policies, sum(connections) AS by_node, max(end_ms) AS node_until
          FROM totals WHERE verdict = 'denied' AND start_ms >= $since GROUP BY pair, node, source_namespace, policies)
  )
  GROUP BY pair, policy
)
GROUP BY policy ORDER BY connections DESC, policy
