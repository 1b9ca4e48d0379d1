-- Which rules of policies did no connection need?
-- A rule that no allowed connection went by may be one that nobody needs, or one that is needed once a year.
-- arg since since 7d: how far back to look
SELECT namespace, policy, rule FROM rules
WHERE rule <> '' AND name NOT IN (
  SELECT arrayJoin(splitByChar(',', policies)) AS name
  FROM (SELECT DISTINCT policies FROM totals WHERE expected = 'allowed' AND start_ms >= $since)
)
ORDER BY namespace, policy, rule
