-- How does what happened compare with what the policies say, on each node?
-- arg since since 24h: how far back to look
SELECT node, assessment, caveat, sum(flows) AS flows, sum(connections) AS connections FROM totals WHERE start_ms >= $since
GROUP BY node, assessment, caveat ORDER BY node, assessment, caveat
