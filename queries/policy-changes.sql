-- When did policies change, and who changed them?
-- arg since since 7d: how far back to look
-- times changed
SELECT time_ms AS changed, namespace, name, author, CASE WHEN deleted = 1 THEN 'deleted' ELSE 'set' END AS change
FROM changes WHERE kind = 'policy' AND time_ms >= $since ORDER BY time_ms, namespace, name
