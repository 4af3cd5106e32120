-- Note what was destroyed, for the tombstone. Params: $1 erasure_id uuid, $2 kind, $3 tombstone text,
-- $4 erased_at timestamptz.
INSERT INTO private_erasures (erasure_id, kind, tombstone, erased_at) VALUES ($1, $2, $3, $4)
