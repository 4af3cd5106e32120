-- Accounts by their names. Params: $1 tenants text[].
SELECT tenant_id, balance, reserved, version, created_at, updated_at, settings::text, controls::text
FROM credit_accounts WHERE tenant_id = ANY($1)
