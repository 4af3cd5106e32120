-- What a tenant moved, by hour or day and type: the rollups, and the entries that they do not hold yet.
-- Whole buckets: from the one that holds $2 to the last that starts before $3.
-- Params: $1 tenant text, $2 since, $3 until timestamptz, $4 hour or day.
WITH mark AS (
  SELECT coalesce(m.seq, -1) AS seq FROM credit_accounts a LEFT JOIN usage_marks m USING (shard) WHERE a.tenant_id = $1
), bounds AS (
  SELECT date_trunc($4, $2 AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS since,
         (date_trunc($4, ($3::timestamptz - interval '1 microsecond') AT TIME ZONE 'UTC') + ('1 ' || $4)::interval) AT TIME ZONE 'UTC' AS until
), rows AS (
  SELECT u.start AS at, type, amount, count FROM usage_hourly u, bounds
  WHERE tenant_id = $1 AND u.start >= since AND u.start < until
  UNION ALL
  SELECT at, type, amount, 1 FROM audit_entries, bounds
  WHERE tenant_id = $1 AND seq > (SELECT seq FROM mark) AND at >= since AND at < until
    AND type IN ('topup', 'consume', 'commit', 'refund')
)
SELECT date_trunc($4, at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS start, type, sum(amount)::bigint AS amount,
       sum(count)::bigint AS count
FROM rows GROUP BY 1, 2 ORDER BY 1, 2
