-- Give a subject a data key, unless it has one. Params: $1 subject text, $2 dek_id, $3 kek_id, $4 wrapped bytea,
-- $5 created_at timestamptz.
INSERT INTO private_keys (subject, dek_id, kek_id, wrapped, created_at) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (subject) DO NOTHING
