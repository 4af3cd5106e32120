-- What a tenant moved, by hour or day and type. Params: $1 tenant text, $2 since, $3 until timestamptz, $4 hour or day.
SELECT date_trunc($4, at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS start, type, sum(amount)::bigint AS amount, count(*) AS count
FROM audit_entries
WHERE tenant_id = $1 AND at >= $2 AND at < $3 AND type IN ('topup', 'consume', 'commit', 'refund')
GROUP BY 1, 2 ORDER BY 1
