-- What people set on an account, one element a tenant.
-- Params: $1 tenants text[], $2 settings text[] (JSON objects, all that is set), $3 created timestamptz[].
UPDATE credit_accounts a SET settings = u.settings::jsonb, created_at = u.created_at
FROM unnest($1::text[], $2::text[], $3::timestamptz[]) AS u (tenant_id, settings, created_at)
WHERE a.tenant_id = u.tenant_id
