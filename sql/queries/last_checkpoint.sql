-- The newest checkpoint of a shard. Params: $1 shard smallint.
SELECT size, root, note, signers FROM audit_checkpoints WHERE shard = $1 ORDER BY size DESC, signed_at DESC LIMIT 1
