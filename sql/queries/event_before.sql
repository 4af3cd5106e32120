-- A tenant's last event up to a time. Params: $1 tenant text, $2 time timestamptz.
SELECT entry FROM audit_chain WHERE tenant_id = $1 AND at <= $2 ORDER BY seq DESC LIMIT 1
