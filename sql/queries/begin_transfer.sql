-- Begin a transaction over several shards, or find the one that its key began. Params: $1 transaction id uuid,
-- $2 idempotency bytea, $3 fingerprint bytea, $4 legs text (JSON). Returns it.
INSERT INTO credit_transfers AS t (transaction_id, idempotency, fingerprint, state, legs)
VALUES ($1, $2, $3, 'preparing', $4::jsonb)
ON CONFLICT (idempotency) DO UPDATE SET idempotency = t.idempotency
RETURNING transaction_id, fingerprint, state, legs::text, refusal::text, created_at
