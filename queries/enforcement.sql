-- What was seen of each policy and node: did it refuse what it denies, or let it pass?
-- arg since since 24h: how far back to look
SELECT policy_refs, assessment, verdict, caveat, node, source_node, destination_node, sum(connections) AS connections, max(end_time) AS last_seen,
       argMax(CASE WHEN source_pod <> '' THEN source_namespace || '/' || source_pod ELSE source_ip END, end_time) AS source,
       argMax(CASE WHEN destination_pod <> '' THEN destination_namespace || '/' || destination_pod ELSE destination_ip END, end_time) AS destination,
       argMax(port, end_time) AS port, argMax(protocol, end_time) AS protocol
FROM flows
WHERE start_time >= $since AND connections > 0 AND (assessment IN ('enforced', 'unenforced', 'unexplained') OR caveat <> '')
GROUP BY policy_refs, assessment, verdict, caveat, node, source_node, destination_node
ORDER BY policy_refs, assessment, verdict, caveat, node, source_node, destination_node
