-- Alerts, newest first. Params: $1 below this number bigint, $2 how many int, $3 only this tenant text, null for any,
-- $4 only these tenants text[], null for all, $5 only this type text, null for any.
SELECT alert_no, alert_id, tenant_id, type, at, shard, seq, data::text
FROM credit_alerts
WHERE alert_no < $1 AND ($3::text IS NULL OR tenant_id = $3) AND ($4::text[] IS NULL OR tenant_id = ANY($4))
  AND ($5::text IS NULL OR type = $5)
ORDER BY alert_no DESC LIMIT $2
