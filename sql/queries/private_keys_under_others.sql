-- Wrapped keys that another master key than the current one wraps, locked. Params: $1 current kek_id bytea,
-- $2 after this subject text, $3 how many int.
SELECT subject, dek_id, kek_id, wrapped FROM private_keys
WHERE kek_id <> $1 AND subject > $2 ORDER BY subject LIMIT $3 FOR UPDATE
