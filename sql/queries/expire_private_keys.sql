-- Destroy keys of subjects that nothing is kept of any more. Params: $1 made before timestamptz, $2 how many int.
-- Returns: how many it were.
WITH unused AS (
  SELECT k.subject FROM private_keys k
  WHERE k.created_at < $1 AND NOT EXISTS (SELECT FROM private_records r WHERE r.subject = k.subject AND r.dek_id = k.dek_id)
  ORDER BY k.subject LIMIT $2 FOR UPDATE SKIP LOCKED
), gone AS (
  DELETE FROM private_keys WHERE subject IN (SELECT subject FROM unused) RETURNING subject
)
SELECT count(*) FROM gone
