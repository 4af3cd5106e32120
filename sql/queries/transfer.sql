-- One transaction over several shards. Params: $1 transaction id uuid.
SELECT transaction_id, fingerprint, state, legs::text, refusal::text, created_at
FROM credit_transfers WHERE transaction_id = $1
