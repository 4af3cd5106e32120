-- The newest checkpoint of a shard with at least so many entries, with the lines of witnesses under it in the order of
-- their names. When asked for, the newest one that a witness has cosigned, if there is any.
-- Params: $1 shard smallint, $2 size at least bigint, $3 cosigned boolean.
SELECT c.size, c.root, c.note || coalesce((
    SELECT string_agg(s.line, '' ORDER BY s.witness, s.key_id) FROM audit_cosignatures s
    WHERE s.shard = $1 AND s.size = c.size), '') AS note
FROM audit_checkpoints c
WHERE c.shard = $1 AND c.size >= $2 AND c.size <= coalesce(
  (SELECT max(s.size) FROM audit_cosignatures s WHERE s.shard = $1 AND s.size >= $2 AND $3::boolean), 9223372036854775807)
ORDER BY c.size DESC, c.signed_at DESC LIMIT 1
