-- What a tenant moved, by hour or day and type: the rollups, and the entries that they do not hold yet.
-- Whole buckets: from the one that holds $2 to the last that starts before $3.
-- Params: $1 tenant text, $2 since, $3 until timestamptz, $4 hour or day.
WITH mark AS (
  SELECT coalesce(m.seq, -1) AS seq FROM credit_accounts a LEFT JOIN usage_marks m USING (shard) WHERE a.tenant_id = $1
), bounds AS (
  SELECT date_trunc($4, $2 AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS since
), rows AS (
  SELECT start, type, amount, count FROM usage_hourly, bounds
  WHERE $4 = 'hour' AND tenant_id = $1 AND start >= since AND start < $3
  UNION ALL
  SELECT start, type, amount, count FROM usage_daily, bounds
  WHERE $4 = 'day' AND tenant_id = $1 AND start >= since AND start < $3
  UNION ALL
  SELECT date_trunc($4, at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC', type, sum(amount), count(*)
  FROM audit_entries, bounds
  WHERE tenant_id = $1 AND seq > (SELECT seq FROM mark) AND at >= since AND at < $3
    AND type IN ('topup', 'consume', 'commit', 'refund')
  GROUP BY 1, 2
)
SELECT start, type, sum(amount)::bigint AS amount, sum(count)::bigint AS count FROM rows GROUP BY 1, 2 ORDER BY 1, 2
