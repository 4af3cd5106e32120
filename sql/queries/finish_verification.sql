-- Keep what a verification found, and have it recorded in the chain; with nulls, note that it could not be done.
-- Params: $1 id uuid, $2 now timestamptz, $3 faults int, $4 entries of each shard bigint[], $5 report text (JSON),
-- $6 details of the entry text (JSON).
WITH done AS (
  UPDATE ledger_verifications SET finished_at = $2, faults = $3, sizes = $4, report = $5::text::jsonb
  WHERE verification_id = $1 AND finished_at IS NULL
  RETURNING verification_id
)
INSERT INTO pending_entries (kind, details) SELECT 'audit.verify', $6::text::json FROM done WHERE $6::text IS NOT NULL
