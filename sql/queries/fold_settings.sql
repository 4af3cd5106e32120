-- What people set on an account, one element a tenant; null takes a setting away.
-- Params: $1 tenants text[], $2 changes text[] (JSON objects), $3 created timestamptz[] (null: the account is not new).
UPDATE credit_accounts a
SET settings = jsonb_strip_nulls(a.settings || u.change::jsonb), created_at = coalesce(u.created_at, a.created_at)
FROM unnest($1::text[], $2::text[], $3::timestamptz[]) AS u (tenant_id, change, created_at)
WHERE a.tenant_id = u.tenant_id
