-- Destroy the key of a subject of which nothing is kept. Params: $1 subject text, $2 dek_id bytea.
DELETE FROM private_keys k WHERE subject = $1 AND dek_id = $2
AND NOT EXISTS (SELECT FROM private_records r WHERE r.subject = k.subject AND r.dek_id = k.dek_id)
