-- Read what an idempotency key did before. Params: $1 idempotency_key text.
-- Returns: tenant_id text, amount bigint, balance bigint, version bigint, transaction_id uuid, created_at timestamptz.
SELECT tenant_id, amount, balance, version, transaction_id, created_at
FROM entries
WHERE idempotency_key = $1
