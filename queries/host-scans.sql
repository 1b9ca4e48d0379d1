-- Who tried one port on many addresses, without an answer?
-- arg since since 1h: how far back to look
-- arg hosts int 20: how many addresses make a scan
-- times first_seen, last_seen
SELECT source_namespace, source_pod, source_ip, port, protocol, count(DISTINCT destination_ip) AS tried, min(start_ms) AS first_seen, max(end_ms) AS last_seen
FROM totals WHERE verdict IN ('denied', 'unanswered') AND start_ms >= $since
GROUP BY source_namespace, source_pod, source_ip, port, protocol HAVING count(DISTINCT destination_ip) >= $hosts
ORDER BY tried DESC, source_ip, port, protocol, source_namespace, source_pod
