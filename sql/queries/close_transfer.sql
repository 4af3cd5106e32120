-- Close a decided transaction. Params: $1 transaction id uuid. Returns it.
UPDATE credit_transfers
SET state = CASE state WHEN 'committing' THEN 'committed' WHEN 'aborting' THEN 'aborted' ELSE state END
WHERE transaction_id = $1
RETURNING transaction_id, fingerprint, state, legs::text, refusal::text, created_at
