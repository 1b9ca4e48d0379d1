-- When could which node not see everything, and why?
-- arg since since 24h: how far back to look
SELECT node, source, kind, start_time, end_time, lost, detail FROM gaps WHERE end_time >= $since ORDER BY start_time, node
