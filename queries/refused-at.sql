-- Where were connections stopped: at the source's node, at the destination's, or between?
-- arg since since 24h: how far back to look
-- times first_seen, last_seen
SELECT refused_at, source_node, destination_node, reason, sum(connections) AS connections, min(start_ms) AS first_seen, max(end_ms) AS last_seen
FROM totals WHERE refused_at <> '' AND start_ms >= $since
GROUP BY refused_at, source_node, destination_node, reason ORDER BY refused_at, source_node, destination_node, reason
