-- Change a rule if it still has this revision, add versions to it, and say so in the chain. Params: $1 rule id bigint,
-- $2 the revision that it has bigint, $3 description text or null, $4 champion text, $5 challenger text or null,
-- $6 settings text (JSON), $7 trial int, $8 names of new versions text[], $9 their expressions text[], $10 who text,
-- $11 whether it is taken away boolean, $12 kind of the entry text, $13 its details text (JSON). Returns the new revision.
WITH old AS (
  SELECT rule_id FROM rules WHERE rule_id = $1 AND revision = $2 AND deleted_at IS NULL FOR UPDATE
), next AS (
  UPDATE rules_revision SET revision = revision + 1 WHERE EXISTS (SELECT FROM old) RETURNING revision
), changed AS (
  UPDATE rules
  SET description = $3, champion = $4::text, challenger = $5, settings = $6, trial = $7, revision = next.revision,
      changed_at = now(), deleted_at = CASE WHEN $11::boolean THEN now() END
  FROM old, next WHERE rules.rule_id = old.rule_id
  RETURNING rules.rule_id, rules.revision
), added AS (
  INSERT INTO rule_versions (rule_id, name, expression, created_by)
  SELECT changed.rule_id, given.name, given.expression, $10
  FROM changed, unnest($8::text[], $9::text[]) AS given (name, expression)
), crowned AS (
  UPDATE rule_versions AS v SET championed_at = now()
  FROM changed WHERE v.rule_id = changed.rule_id AND v.name = $4 AND v.championed_at IS NULL
), told AS (
  INSERT INTO pending_entries (kind, details) SELECT $12, $13::text::json FROM changed
)
SELECT revision FROM changed
