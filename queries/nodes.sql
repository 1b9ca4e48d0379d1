-- Which nodes have reported, from when to when?
-- arg since since 24h: how far back to look
SELECT node, min(start_time) AS first_report, max(end_time) AS last_report, count(*)::BIGINT AS batches FROM coverage WHERE end_time >= $since
GROUP BY node ORDER BY node
