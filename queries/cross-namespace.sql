-- Which traffic crosses from one namespace into another?
-- arg since since 24h: how far back to look, in whole hours
-- times last_seen
SELECT source_namespace, destination_namespace, verdict, sum(connections) AS connections, sum(bytes_sent + bytes_received) AS bytes,
       count(DISTINCT port) AS ports, max(last_ms) AS last_seen
FROM edges WHERE source_namespace <> '' AND destination_namespace <> '' AND source_namespace <> destination_namespace AND last_ms >= $since
GROUP BY source_namespace, destination_namespace, verdict ORDER BY connections DESC, source_namespace, destination_namespace, verdict
