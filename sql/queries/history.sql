-- A tenant's events, newest first. Params: $1 tenant text, $2 type text or null, $3 since (inclusive) or null,
-- $4 until (exclusive) timestamptz or null, $5 below this seq bigint, $6 how many int.
SELECT entry FROM audit_chain
WHERE tenant_id = $1 AND seq < $5
  AND ($2::text IS NULL OR type = $2)
  AND ($3::timestamptz IS NULL OR at >= $3)
  AND ($4::timestamptz IS NULL OR at < $4)
ORDER BY seq DESC LIMIT $6
