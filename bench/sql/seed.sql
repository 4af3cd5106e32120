-- Give the tenants t0000000 to t<$1 - 1> a balance. Params: $1 tenants integer, $2 balance bigint. Returns nothing.
INSERT INTO accounts (tenant_id, balance)
SELECT 't' || lpad(number::text, 7, '0'), $2
FROM generate_series(0, $1 - 1) AS number
ON CONFLICT (tenant_id) DO UPDATE SET balance = excluded.balance
