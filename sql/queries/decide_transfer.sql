-- Decide a transaction that is still being prepared; the first decision stays.
-- Params: $1 transaction id uuid, $2 state text, $3 refusal text (JSON) or null. Returns it as it is decided.
UPDATE credit_transfers
SET state = CASE WHEN state = 'preparing' THEN $2 ELSE state END,
    refusal = CASE WHEN state = 'preparing' THEN $3::jsonb ELSE refusal END,
    decided_at = coalesce(decided_at, now())
WHERE transaction_id = $1
RETURNING transaction_id, fingerprint, state, legs::text, refusal::text, created_at
