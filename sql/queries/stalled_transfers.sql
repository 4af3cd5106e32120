-- Transactions that somebody should finish: begun long ago and open, or closed with a leg that was held too late.
-- Params: $1 age in seconds double precision, $2 how many int.
SELECT transaction_id, fingerprint, state, legs::text, refusal::text, created_at FROM credit_transfers
WHERE state NOT IN ('committed', 'aborted') AND created_at < now() - make_interval(secs => $1)
UNION ALL
SELECT DISTINCT ON (t.transaction_id) t.transaction_id, t.fingerprint, t.state, t.legs::text, t.refusal::text, t.created_at
FROM credit_reservations r JOIN credit_transfers t ON t.transaction_id = r.transfer_id
WHERE r.status = 'held' AND r.transfer_id IS NOT NULL AND t.state IN ('committed', 'aborted')
  AND t.created_at < now() - make_interval(secs => $1)
LIMIT $2
