-- Begin a verification if one is due and nobody is at it. One whose replica has fallen silent is given up first.
-- Params, timestamptz: $1 now, $2 until when this claim lasts, $3 when the last one must have ended before, $4 when the
-- last try that failed must have begun before; $5 replica text. Returns its id, and the sizes that the last one found.
WITH silent AS (
  UPDATE ledger_verifications SET finished_at = $1 WHERE finished_at IS NULL AND claimed_until < $1
  RETURNING verification_id
)
INSERT INTO ledger_verifications (started_at, claimed_until, replica)
SELECT $1, $2, $5 FROM ledger
WHERE ledger.created_at < $3
  AND NOT EXISTS (SELECT FROM ledger_verifications WHERE faults IS NOT NULL AND finished_at >= $3)
  AND NOT EXISTS (SELECT FROM ledger_verifications WHERE faults IS NULL AND started_at >= $4)
  AND NOT EXISTS (SELECT FROM ledger_verifications WHERE finished_at IS NULL)
  AND NOT EXISTS (SELECT FROM silent)
ON CONFLICT DO NOTHING
RETURNING verification_id,
  (SELECT sizes FROM ledger_verifications WHERE faults = 0 ORDER BY started_at DESC LIMIT 1) AS sizes
