-- The state of quotas and thresholds that events left, one element a tenant.
-- Params: $1 tenants text[], $2 states text[] (JSON objects).
UPDATE credit_accounts a SET controls = u.state::jsonb
FROM unnest($1::text[], $2::text[]) AS u (tenant_id, state)
WHERE a.tenant_id = u.tenant_id
