-- When could which node not see everything, and why?
-- arg since since 24h: how far back to look
-- times start_time, end_time
SELECT node, source, kind, start_ms AS start_time, end_ms AS end_time, lost, detail FROM gaps WHERE end_ms >= $since ORDER BY start_ms, node, source, kind
