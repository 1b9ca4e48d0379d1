-- Who tried many ports of one address, without an answer?
-- arg since since 1h: how far back to look
-- arg ports int 20: how many ports make a scan
-- times first_seen, last_seen
SELECT source_namespace, source_pod, source_ip, destination_ip, count(DISTINCT port) AS tried, min(start_ms) AS first_seen, max(end_ms) AS last_seen
FROM totals WHERE verdict IN ('denied', 'unanswered') AND protocol IN ('tcp', 'udp', 'sctp') AND start_ms >= $since
GROUP BY source_namespace, source_pod, source_ip, destination_ip HAVING count(DISTINCT port) >= $ports
ORDER BY tried DESC, source_ip, destination_ip, source_namespace, source_pod
