-- Which flows did an address take part in, on either end?
-- arg address address: the IP address
-- arg since since 24h: how far back to look
-- arg limit int 100: rows at most, the newest
SELECT start_time, node, verdict, reason, protocol, source_ip, source_namespace, source_pod, destination_ip, destination_namespace, destination_pod,
       port, connections, bytes_sent, bytes_received
FROM flows WHERE (source_ip = $address OR destination_ip = $address OR service_ip = $address) AND start_time >= $since
ORDER BY start_time DESC, node LIMIT $limit
