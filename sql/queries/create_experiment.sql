-- Make an experiment with empty counters and its entry, unless the name is taken or there are as many as there may be.
-- Params: $1 name text, $2 definition text (JSON), $3 state text (JSON), $4 maker text, $5 most experiments int,
-- $6 details text (JSON). Returns the row of load_experiments, or none.
WITH raised AS (
  UPDATE shadow_revision SET revision = revision + 1 RETURNING revision
), made AS (
  INSERT INTO experiments (name, definition, state, revision, created_by)
  SELECT $1, $2, $3, raised.revision, $4 FROM raised WHERE (SELECT count(*) FROM experiments) < $5
  ON CONFLICT (name) DO NOTHING
  RETURNING *
), counted AS (
  INSERT INTO experiment_counters (name) SELECT name FROM made
), told AS (
  INSERT INTO pending_entries (kind, details) SELECT 'experiment.create', $6::text::json FROM made
)
SELECT name, definition, state, revision, created_at, created_by, changed_at, 0::bigint AS seq, '{}' AS totals,
       '{}' AS latency
FROM made
