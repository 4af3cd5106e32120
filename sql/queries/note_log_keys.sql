-- Note the keys that a log is signed with now; a change of them is an entry to be recorded, the first keys are not.
-- Params: $1 shard smallint, $2 origin text, $3 verifier keys text[], $4 their ids as in audit_checkpoints text. Returns a
-- row when there was a change. The last checkpoint of other keys is looked for among the newest, because this runs soon.
WITH before AS (
  SELECT count(*) AS keys FROM log_keys WHERE shard = $1
), turn AS (
  SELECT coalesce(max(size) FILTER (WHERE signers <> $4), 0) AS size
  FROM (SELECT size, signers FROM audit_checkpoints WHERE shard = $1 ORDER BY size DESC, signers LIMIT 100) AS newest
), added AS (
  INSERT INTO log_keys AS k (shard, vkey, from_size) SELECT $1, vkey, turn.size FROM unnest($3::text[]) AS vkey, turn
  ON CONFLICT (shard, vkey) DO UPDATE SET retired_at = NULL, until_size = NULL WHERE k.retired_at IS NOT NULL
  RETURNING vkey
), retired AS (
  UPDATE log_keys SET retired_at = now(), until_size = turn.size FROM turn
  WHERE shard = $1 AND retired_at IS NULL AND vkey <> ALL ($3)
  RETURNING vkey
)
INSERT INTO pending_entries (kind, details)
SELECT 'log_key.rotate', json_build_object(
  'shard', $1::smallint, 'origin', $2::text, 'size', turn.size, 'signing', to_json($3::text[]),
  'added', (SELECT coalesce(json_agg(vkey), '[]') FROM added),
  'retired', (SELECT coalesce(json_agg(vkey), '[]') FROM retired))
FROM before, turn WHERE keys > 0 AND (EXISTS (SELECT FROM added) OR EXISTS (SELECT FROM retired))
RETURNING entry_id
