-- Which connections lived long?
-- A flow that goes on in later windows brings no new connection there, only bytes.
-- whole: it tells connections apart by the addresses of both ends
-- arg since since 24h: how far back to look
-- arg minutes int 60: how long is long
-- arg limit int 100: rows at most
-- times first_seen, last_seen
SELECT source_namespace, max(source_name) AS source_pod, source_ip, destination_namespace, max(destination_name) AS destination_pod, destination_ip, port, protocol,
       source_port, intDiv(max(until_ms) - min(since_ms), 60000) AS minutes, max(moved) AS bytes, min(since_ms) AS first_seen, max(until_ms) AS last_seen
FROM (
  SELECT node, source_namespace, source_ip, destination_namespace, destination_ip, port, protocol, source_port,
         max(source_pod) AS source_name, max(destination_pod) AS destination_name, sum(bytes_sent + bytes_received) AS moved,
         min(start_ms) AS since_ms, max(end_ms) AS until_ms
  FROM flows WHERE connections = 0 AND verdict = 'allowed' AND start_ms >= $since
  GROUP BY node, source_namespace, source_ip, destination_namespace, destination_ip, port, protocol, source_port
)
GROUP BY source_namespace, source_ip, destination_namespace, destination_ip, port, protocol, source_port
HAVING max(until_ms) - min(since_ms) >= $minutes * 60000
ORDER BY minutes DESC, source_ip, destination_ip, port, source_port LIMIT $limit
