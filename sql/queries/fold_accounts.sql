-- The accounts as the events of one transaction left them; the last event of each tenant speaks.
-- Params: $1 shard smallint, $2 tenants text[], $3 balances bigint[], $4 reserved bigint[], $5 versions bigint[],
-- $6 time of the transaction's last event timestamptz. Rows exist already, but for accounts that are new.
INSERT INTO credit_accounts AS a (tenant_id, shard, balance, reserved, version, created_at, updated_at)
SELECT u.tenant_id, $1, u.balance, u.reserved, u.version, $6, $6
FROM unnest($2::text[], $3::bigint[], $4::bigint[], $5::bigint[]) AS u (tenant_id, balance, reserved, version)
ON CONFLICT (tenant_id) DO UPDATE
SET balance = excluded.balance, reserved = excluded.reserved, version = excluded.version, updated_at = excluded.updated_at
