-- Which flows did an address take part in at a time, on either end?
-- arg address address: the IP address
-- arg since since 24h: how far back to look
-- arg until since 0s: up to when
-- arg limit int 100: rows at most, the newest
-- times start_time
SELECT start_ms AS start_time, node, verdict, reason, protocol, source_ip, source_namespace, source_pod, destination_ip, destination_namespace, destination_pod,
       port, connections, bytes_sent, bytes_received
FROM flows
WHERE (source_ip = $address OR destination_ip = $address OR service_ip = $address) AND end_ms >= $since AND start_ms <= $until
ORDER BY start_ms DESC, node, verdict, source_ip, destination_ip, port LIMIT $limit
