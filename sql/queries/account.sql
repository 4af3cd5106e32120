-- One account. Params: $1 tenant text.
SELECT tenant_id, balance, reserved, version, created_at, updated_at, settings::text
FROM credit_accounts WHERE tenant_id = $1
