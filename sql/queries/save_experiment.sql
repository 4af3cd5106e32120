-- Keep the counters of an experiment and what its journal said since, unless newer ones are kept already.
-- Params: $1 name text, $2 seq bigint, $3 totals text (JSON), $4 latency text (JSON), $5 kinds text[], $6 packed bytea[],
-- $7 versions int[], $8 weights text[]. Returns one row if they were kept.
WITH saved AS (
  UPDATE experiment_counters SET seq = $2, totals = $3, latency = $4, saved_at = now()
  WHERE name = $1 AND seq < $2
  RETURNING name
), noted AS (
  INSERT INTO experiment_journal (name, kind, packed)
  SELECT saved.name, one.kind, one.packed FROM saved, unnest($5::text[], $6::bytea[]) AS one (kind, packed)
), weighed AS (
  INSERT INTO experiment_weights (name, version, weights)
  SELECT saved.name, one.version, one.weights FROM saved, unnest($7::int[], $8::text[]) AS one (version, weights)
  ON CONFLICT DO NOTHING
)
SELECT name FROM saved
