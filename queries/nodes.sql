-- Which nodes have reported, from when to when?
-- arg since since 24h: how far back to look
-- times first_report, last_report
SELECT node, min(start_ms) AS first_report, max(end_ms) AS last_report, count(*) AS batches FROM coverage WHERE end_ms >= $since
GROUP BY node ORDER BY node
