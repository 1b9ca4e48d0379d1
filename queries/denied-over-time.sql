-- How many connections were refused in each interval?
-- arg since since 24h: how far back to look
-- arg seconds int 300: length of an interval
SELECT to_timestamp(slot * $seconds) AS start_time, sum(connections)::BIGINT AS connections, count(*)::BIGINT AS pairs
FROM (SELECT slot, pair, max(connections) AS connections
      FROM (SELECT (epoch_ms(start_time) // (1000 * $seconds))::BIGINT AS slot, pair, node, sum(connections) AS connections
            FROM flows WHERE verdict = 'denied' AND start_time >= $since GROUP BY slot, pair, node)
      GROUP BY slot, pair)
GROUP BY slot ORDER BY slot
