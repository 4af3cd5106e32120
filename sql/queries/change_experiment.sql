-- Change where an experiment stands, with its entries, if nobody else has changed it. Params: $1 name text,
-- $2 revision that is expected bigint, $3 state text (JSON), $4 entries text (JSON array of kind and details).
-- Returns the new revision and the time of the change, or no row.
WITH raised AS (
  UPDATE shadow_revision SET revision = revision + 1 RETURNING revision
), changed AS (
  UPDATE experiments AS e SET state = $3, revision = raised.revision, changed_at = now()
  FROM raised WHERE e.name = $1 AND e.revision = $2
  RETURNING e.revision, e.changed_at
), told AS (
  INSERT INTO pending_entries (kind, details)
  SELECT one ->> 'kind', one -> 'details' FROM changed, json_array_elements($4::text::json) AS one
)
SELECT revision, changed_at FROM changed
