-- Make a rule with its versions, and what the chain is to say of it, unless its name is taken or there are too many.
-- Params: $1 name text, $2 description text or null, $3 champion text, $4 challenger text or null, $5 settings text (JSON),
-- $6 names of its versions text[], $7 their expressions text[], $8 maker text, $9 rules at most int, $10 details text (JSON).
-- Returns its id and revision.
WITH next AS (
  UPDATE rules_revision SET revision = revision + 1
  WHERE (SELECT count(*) FROM rules WHERE deleted_at IS NULL) < $9::int
    AND NOT EXISTS (SELECT FROM rules WHERE name = $1 AND deleted_at IS NULL)
  RETURNING revision
), made AS (
  INSERT INTO rules (name, description, champion, challenger, settings, revision, created_by)
  SELECT $1, $2::text, $3::text, $4::text, $5, revision, $8 FROM next
  ON CONFLICT DO NOTHING
  RETURNING rule_id, revision
), versions AS (
  INSERT INTO rule_versions (rule_id, name, expression, created_by, championed_at)
  SELECT made.rule_id, given.name, given.expression, $8, CASE WHEN given.name = $3 THEN now() END
  FROM made, unnest($6::text[], $7::text[]) AS given (name, expression)
), told AS (
  INSERT INTO pending_entries (kind, details) SELECT 'rule.create', $10::text::json FROM made
)
SELECT rule_id, revision FROM made
