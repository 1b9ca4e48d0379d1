-- Which edges were refused for the first time ever, and had they been allowed before?
-- arg since since 24h: since when they are refused
-- times first_denied, last_allowed
SELECT source_namespace, source_workload, source_ip, destination_namespace, destination_workload, destination_ip, port, protocol,
       sum(CASE WHEN verdict = 'denied' THEN connections ELSE 0 END) AS denied,
       min(CASE WHEN verdict = 'denied' THEN first_ms END) AS first_denied, max(CASE WHEN verdict = 'allowed' THEN last_ms END) AS last_allowed
FROM edges
GROUP BY source_namespace, source_workload, source_ip, destination_namespace, destination_workload, destination_ip, port, protocol
HAVING min(CASE WHEN verdict = 'denied' THEN first_ms END) >= $since
ORDER BY first_denied, source_namespace, source_workload, source_ip, destination_namespace, destination_workload, destination_ip, port
