-- How many connections were refused in each interval?
-- arg since since 24h: how far back to look
-- arg seconds int 300: length of an interval
-- times start_time
SELECT slot * 1000 * $seconds AS start_time, sum(refused) AS connections, count(*) AS pairs
FROM (
  SELECT slot, pair, max(by_node) AS refused
  FROM (SELECT intDiv(start_ms, 1000 * $seconds) AS slot, pair, node, sum(connections) AS by_node
        FROM flows WHERE verdict = 'denied' AND start_ms >= $since GROUP BY slot, pair, node)
  GROUP BY slot, pair
)
GROUP BY slot ORDER BY slot
