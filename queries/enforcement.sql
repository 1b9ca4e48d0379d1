-- What was seen of each policy and node: did it refuse what it denies, or let it pass?
-- whole: it tells of the policies and the pods of both ends
-- arg since since 24h: how far back to look
-- times last_seen
SELECT policy_refs, assessment, verdict, caveat, reason, node, source_node, destination_node, sum(counted) AS connections, max(until_ms) AS last_seen,
       argMax(from_end, until_ms) AS source, argMax(to_end, until_ms) AS destination, argMax(to_port, until_ms) AS port, argMax(by_protocol, until_ms) AS protocol
FROM (
  SELECT policy_refs, assessment, verdict, caveat, reason, node, source_node, destination_node, connections AS counted, end_ms AS until_ms,
         CASE WHEN source_pod <> '' THEN concat(source_namespace, '/', source_pod) ELSE source_ip END AS from_end,
         CASE WHEN destination_pod <> '' THEN concat(destination_namespace, '/', destination_pod) ELSE destination_ip END AS to_end,
         port AS to_port, protocol AS by_protocol
  FROM totals WHERE start_ms >= $since AND connections > 0 AND (assessment IN ('enforced', 'unenforced', 'unexplained') OR caveat <> '')
)
GROUP BY policy_refs, assessment, verdict, caveat, reason, node, source_node, destination_node
ORDER BY policy_refs, assessment, verdict, caveat, reason, node, source_node, destination_node
