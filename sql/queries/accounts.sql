-- Accounts by name. Params: $1 the name before the first text, $2 how many int, $3 only these tenants text[], null for all.
SELECT tenant_id, balance, reserved, version, created_at, updated_at, settings::text, controls::text
FROM credit_accounts WHERE tenant_id > $1 AND ($3::text[] IS NULL OR tenant_id = ANY($3)) ORDER BY tenant_id LIMIT $2
