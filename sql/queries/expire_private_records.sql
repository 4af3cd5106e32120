-- Destroy the oldest private records of a class. Params: $1 class text, $2 older than timestamptz, $3 how many int.
-- Returns: how many it were.
WITH old AS (
  SELECT record_id FROM private_records WHERE class = $1 AND created_at < $2
  ORDER BY created_at LIMIT $3
), gone AS (
  DELETE FROM private_records WHERE record_id IN (SELECT record_id FROM old) RETURNING record_id
)
SELECT count(*) FROM gone
